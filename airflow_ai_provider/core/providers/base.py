"""What a wire adapter is: one HTTP request in, its answer or one of our errors out. It never retries.

What a failed attempt may have cost is decided in one place for all adapters. The rule that must not be relaxed: an
attempt counts as not billed only where it is certain that the vendor did not charge, which is where the request never
left, or the vendor itself refused it in a complete HTTP response of a status in ``not_charged``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

from airflow_ai_provider.core.errors import VendorError, VendorPermanentError, VendorTransientError
from airflow_ai_provider.core.ledger.call_costs import Usage

_VENDOR_FAILED = frozenset({500, 503, 529})
"""The vendor says itself that it failed. A gateway's 502 or 504 may hide an answer that was made and charged."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAYBE_CHARGED = frozenset({408, 409, 424})
"""Another request, or this one, may have been under way when the vendor gave up on it; 424 is Bedrock's, Azure ML's and
Hugging Face's for a model that failed."""
_TRANSIENT = {
    408: "timeout",
    409: "conflict",
    424: "server_error",
    425: "server_error",
    429: "rate_limited",
    498: "rate_limited",  # Groq's, for its flex tier
    504: "timeout",
}
_PERMANENT = {
    **dict.fromkeys(_REDIRECTS, "redirected"),
    400: "bad_request",
    401: "unauthorized",
    402: "payment_required",
    403: "forbidden",
    404: "not_found",
    413: "too_large",
    422: "unprocessable",
}

LONGEST_WAIT = 600.0
"""Seconds for which a vendor's word holds calls back, whatever it says; then a single call finds out."""
MAX_ANSWER_BYTES = 16 * 2**20
"""More than this is no answer of a model: 100,000 tokens are some 400 KB."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One masked request."""

    attempt_id: str
    """Sent as ``Idempotency-Key`` to vendors that honour one."""
    messages: Sequence[Mapping[str, Any]] = field(repr=False)
    """Each one's content is text, or parts in OpenAI's form: ``text``, ``image_url``, ``file``."""
    max_tokens: int
    output_schema: Mapping[str, Any] | None
    timeout: float
    """Seconds until the attempt counts as lost."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The route's own parameters; they go over the deployment's."""
    tools: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    """Tool definitions in OpenAI's form, passed through."""
    tool_choice: str | Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What a vendor says of its quota beside an answer. ``None`` where it says nothing; resets in seconds from now."""

    requests: int | None = None
    requests_remaining: int | None = None
    requests_reset: float | None = None
    tokens: int | None = None
    tokens_remaining: int | None = None
    tokens_reset: float | None = None
    at_once: bool = False
    """Whether a quota is back as a whole at its reset, and nothing of it before; otherwise at an even pace."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What an answer says of itself besides its tokens; ``None`` where it says nothing."""

    model: str | None = None
    service_tier: str | None = None
    """In lower case."""
    cost_usd: Decimal | None = None
    """The vendor's own figure; infinite where there is one that cannot be meant."""


@dataclass(frozen=True, slots=True)
class ModelReply:
    """One answer. ``usage`` is ``None`` where the vendor did not say: it may have charged anything up to the hold."""

    text: str = field(repr=False)
    """Without what the model thought. What it says instead of an answer where it refuses."""
    usage: Usage | None
    finish_reason: str
    """In the words of ``endings``."""
    vendor_id: str | None = None
    """The vendor's own name of the answer, at most 100 printable characters; ``None`` where it gave none."""
    tool_calls: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    """As the vendor sent them."""
    limits: RateLimits | None = None
    claims: Claims = Claims()


class Provider(Protocol):
    """Speaks to one deployment."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Send one request. Raises ``VendorTransientError`` or ``VendorPermanentError``, nothing else."""
        ...

    async def close(self) -> None: ...


def not_charged(status: int) -> bool:
    """Whether a complete HTTP response of this status says that nothing is charged. A redirect is not followed: nothing
    was sent to its target."""
    return status in _VENDOR_FAILED | _REDIRECTS or (400 <= status < 500 and status not in _MAYBE_CHARGED)


def http_error(place: str, status: int, *, detail: str = "", retry_after: float | None = None) -> VendorError:
    """The error for a complete HTTP response of ``status``.

    ``place`` begins the message and ``detail`` ends it: neither may hold anything of the request. ``kind`` depends on
    the status alone.
    """
    message = f"{place}{f' ({detail})' if detail else ''}"
    billed = not not_charged(status)
    if status in _TRANSIENT or status >= 500:
        kind = _TRANSIENT.get(status, "server_error")
        return VendorTransientError(message, kind=kind, http_status=status, billed=billed, retry_after=retry_after)
    kind = _PERMANENT.get(status, f"http_{status}")
    return VendorPermanentError(message, kind=kind, http_status=status, billed=billed)
