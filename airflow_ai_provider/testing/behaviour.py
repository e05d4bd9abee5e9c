"""How the double behaves: latency, limits, prices and faults, as values.

Which request meets which fault is decided by a hash of (seed, the request's body, how often this body was refused
before), not by the order of arrival: the same load meets the same faults at any concurrency, and a retry draws anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Literal, TypedDict, get_args

from airflow_ai_provider.testing.invoice import Price

OK = "ok"
MARKER = re.compile(rb"\[\[double:([a-z0-9_]+)(?:\*(\d+))?\]\]")
"""``[[double:hang]]`` in a prompt forces that fault; ``[[double:429*2]]`` only on the request's first two tries."""


class Fault(StrEnum):
    """What can go wrong, by the name used in markers, scripts, rates (``rate_<name>``) and outcomes."""

    UNAUTHORIZED = "401"
    FORBIDDEN = "403"
    NOT_FOUND = "404"
    REQUEST_TIMEOUT = "408"
    CONFLICT = "409"
    UNPROCESSABLE = "422"
    RATE_LIMITED = "429"
    SERVER_ERROR = "500"
    BAD_GATEWAY = "502"
    UNAVAILABLE = "503"
    GATEWAY_TIMEOUT = "504"
    REDIRECT = "redirect"
    """307 to another path of the double, which answers and charges a client that follows."""
    INSUFFICIENT_QUOTA = "insufficient_quota"
    CONTENT_POLICY = "content_policy"
    CONTEXT_LENGTH = "context_length"
    DROP_BEFORE = "drop_before"
    """The connection ends before an answer is made: not charged."""
    HANG = "hang"
    """Never answers and makes no answer: not charged."""
    DROP_AFTER = "drop_after"
    """The answer is made and charged, then the connection ends without a byte of it."""
    DROP_MIDWAY = "drop_midway"
    """Charged; the connection ends after half of the answer's bytes."""
    HANG_BILLED = "hang_billed"
    """Charged; nothing is ever sent."""
    SLOW = "slow"
    """Charged; the answer's bytes trickle over ``slow_seconds``."""
    MALFORMED = "malformed"
    """Charged; the answer is not JSON."""
    OVERSIZED = "oversized"
    """Charged; the answer is JSON of ``oversized_bytes``."""
    NO_USAGE = "no_usage"
    """Charged; the answer says nothing of tokens."""
    TRUNCATED = "truncated"
    """Charged; half an answer, ``finish_reason`` is ``length``."""
    EMPTY = "empty"
    """Charged; an answer without text."""


@dataclass(frozen=True, slots=True)
class Faults:
    """The share of requests that meet each fault, 0 to 1; together at most 1."""

    rate_401: float = 0.0
    rate_403: float = 0.0
    rate_404: float = 0.0
    rate_408: float = 0.0
    rate_409: float = 0.0
    rate_422: float = 0.0
    rate_429: float = 0.0
    rate_500: float = 0.0
    rate_502: float = 0.0
    rate_503: float = 0.0
    rate_504: float = 0.0
    rate_redirect: float = 0.0
    rate_insufficient_quota: float = 0.0
    rate_content_policy: float = 0.0
    rate_context_length: float = 0.0
    rate_drop_before: float = 0.0
    rate_hang: float = 0.0
    rate_drop_after: float = 0.0
    rate_drop_midway: float = 0.0
    rate_hang_billed: float = 0.0
    rate_slow: float = 0.0
    rate_malformed: float = 0.0
    rate_oversized: float = 0.0
    rate_no_usage: float = 0.0
    rate_truncated: float = 0.0
    rate_empty: float = 0.0

    def __post_init__(self) -> None:
        rates = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, rate in rates.items():
            if not 0 <= rate <= 1:
                raise ValueError(f"{name}={rate}: expected a share between 0 and 1")
        if sum(rates.values()) > 1 + 1e-9:
            raise ValueError(f"the rates add up to {sum(rates.values()):.3f}: expected at most 1")

    def odds(self) -> tuple[tuple[float, Fault], ...]:
        """Upper ends of each fault's part of [0, 1), for ``fault_at``."""
        ends, end = [], 0.0
        for rate_field in fields(self):
            rate = getattr(self, rate_field.name)
            if rate:
                end += rate
                ends.append((end, Fault(rate_field.name.removeprefix("rate_"))))
        return tuple(ends)


def fault_at(odds: Iterable[tuple[float, Fault]], draw: float) -> Fault | None:
    return next((fault for end, fault in odds if draw < end), None)


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from a request to its answer: even between ``mean - jitter`` and ``mean + jitter``, never below 0."""

    mean: float = 0.0
    jitter: float = 0.0

    def at(self, draw: float) -> float:
        return max(0.0, self.mean + self.jitter * (2 * draw - 1))


Counted = Literal["sliding_window", "fixed_window", "token_bucket"]
_COUNTED = get_args(Counted)


@dataclass(frozen=True, slots=True)
class Limits:
    """Quota per model: what is beyond it is refused with 429."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Input tokens as they are let in and output tokens as they are made."""
    window_s: float = 60.0
    """Length of the "minute", so that tests need not wait for one."""
    counted: Counted = "sliding_window"
    """Over any stretch of ``window_s``, from one multiple of it to the next, or by a bucket that fills evenly."""
    burst: int | None = None
    """Size of the bucket; ``None`` is the whole quota."""

    def __post_init__(self) -> None:
        if self.counted not in _COUNTED:
            raise ValueError(f"counted={self.counted!r}: expected one of {list(_COUNTED)}")


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer as it goes over the wire, and what the vendor charges for it."""

    body: str
    """Sent as UTF-8, whatever it is."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    """Besides the usual ones; ``Content-Type`` replaces ``application/json``."""
    cost_nanodollars: int | None = None
    """On the invoice; ``None`` is no line there."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Everything that can be set on a double, at start or while it runs."""

    prices: Mapping[str, Price] = field(default_factory=lambda: {"*": Price("0.15", "0.60")})
    """By model; ``*`` is every other model. A model without a price is answered with 404."""
    faults: Faults = field(default_factory=Faults)
    latency: Latency = field(default_factory=Latency)
    hold_after: int | None = None
    """Requests after so many get no answer until this is changed, so that a test can act while they are in flight."""
    limits: Limits = field(default_factory=Limits)
    script: tuple[str, ...] = ()
    """Names of faults and of ``answers``, and ``ok``: consumed in the order of arrival before ``faults`` apply."""
    answers: Mapping[str, RawAnswer] = field(default_factory=dict)
    """Answers to send as they are, by the names that markers and ``script`` give them: ``[[double:<name>]]``."""
    seed: int = 0
    api_key: str | None = None
    """If set, a request with another bearer token gets 401."""
    context_tokens: int = 128_000
    """More input tokens than this get 400 ``context_length_exceeded``."""
    dimensions: int = 1536
    """Of an embedding, where the request does not say."""
    retry_after: float = 1.0
    """Seconds, in the headers of injected 429 and 503."""
    slow_seconds: float = 2.0
    oversized_bytes: int = 64 * 2**20
    tokens_per_message: int = 0
    """Charged for each message beyond its text, as vendors do for roles and separators."""
    image_tokens: int = 85
    """Charged for each image part of a message."""
    file_tokens: int = 256
    """Charged for each file part of a message."""
    cached_share: float = 0.0
    """Share of the input tokens said, and charged, to come from the vendor's own cache."""
    cache_write_share: float = 0.0
    """Share of the other input tokens said, and charged, to be written to the vendor's own cache."""
    refused_params: tuple[str, ...] = ()
    """A request with one of these gets OpenAI's 400 ``unsupported_parameter``, which names the first."""
    demands_strict: bool | None = None
    """Whether a JSON schema must be sent with ``strict: true``, or must not; ``None``: as it likes."""
    charged_params: Mapping[str, str] = field(default_factory=dict)
    """USD charged on top for a request with one of these that is not ``false``, such as ``enable_search``."""
    honour_idempotency: bool = True
    """The same ``Idempotency-Key`` again returns the stored answer and charges nothing. Many vendors do not."""

    def changed(self, changes: Mapping[str, Any]) -> Behaviour:
        """A copy with some settings replaced, given as values or as parsed JSON of them.

        Raises ``ValueError`` for an unknown setting, fault or price.
        """
        unknown = changes.keys() - {f.name for f in fields(self)}
        if unknown:
            raise ValueError(
                f"unknown setting {sorted(unknown)[0]!r}: expected one of {[f.name for f in fields(self)]}"
            )
        changed = replace(self, **{name: _as_value(name, value) for name, value in changes.items()})
        for step in changed.script:
            changed.step(step)
        return changed

    def step(self, name: str) -> Fault | RawAnswer | None:
        """The fault or answer of that name, ``None`` for ``ok``. Raises ``ValueError`` for any other name."""
        return self.answers[name] if name in self.answers else as_fault(name)


class Changes(TypedDict, total=False):
    """Keyword arguments of ``configure``: the fields of ``Behaviour``."""

    prices: Mapping[str, Price]
    faults: Faults
    latency: Latency
    hold_after: int | None
    limits: Limits
    script: Iterable[str]
    answers: Mapping[str, RawAnswer]
    seed: int
    api_key: str | None
    context_tokens: int
    dimensions: int
    retry_after: float
    slow_seconds: float
    oversized_bytes: int
    tokens_per_message: int
    image_tokens: int
    file_tokens: int
    cached_share: float
    cache_write_share: float
    refused_params: tuple[str, ...]
    demands_strict: bool | None
    charged_params: Mapping[str, str]
    honour_idempotency: bool


@dataclass(frozen=True, slots=True)
class Draw:
    """Two even random numbers in [0, 1) that belong to one try of one request."""

    fault: float
    latency: float


def draw_for(seed: int, body: bytes, tries: int) -> Draw:
    digest = blake2b(body, digest_size=16, key=f"{seed}/{tries}".encode()).digest()
    return Draw(int.from_bytes(digest[:8]) / 2**64, int.from_bytes(digest[8:]) / 2**64)


def forced_by(marker: re.Match[bytes], tries: int) -> str:
    """What a marker asks of this try (0 is the first): a fault's name, or ``ok`` when it has been served."""
    name, times = marker.group(1).decode(), marker.group(2)
    return OK if times is not None and tries >= int(times) else name


def as_fault(name: str) -> Fault | None:
    """The fault of that name, None for ``ok``. Raises ``ValueError`` for any other name."""
    if name == OK:
        return None
    try:
        return Fault(name)
    except ValueError:
        raise ValueError(f"unknown fault {name!r}: expected {OK!r} or one of {[f.value for f in Fault]}") from None


_NESTED: Mapping[str, type] = {"faults": Faults, "latency": Latency, "limits": Limits}


def _as_value(name: str, value: Any) -> Any:
    try:
        if name in _NESTED and isinstance(value, Mapping):
            return _NESTED[name](**value)
        if name == "prices":
            return {model: price if isinstance(price, Price) else Price(**price) for model, price in value.items()}
        if name == "refused_params":
            return tuple(str(param) for param in value)
        if name == "answers":
            return {raw: each if isinstance(each, RawAnswer) else RawAnswer(**each) for raw, each in value.items()}
    except TypeError as error:
        raise ValueError(f"setting {name!r}: {error}") from None
    if name == "script":
        return tuple(str(step) for step in value)
    return value
