"""Delays and quotas that vendors state in headers and messages.

Reads delays as vendors state them: numbers, durations, dates, epochs, and the phrases of error messages.

Every function is pure: ``now`` is passed in. None raises, and a delay is a finite number of seconds, 0 or more.

Reads what vendors say of their quotas and of when to come back, from the headers of an answer or a refusal.

| vendor | headers | resets |
|---|---|---|
| OpenAI, Groq | ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` | durations, behind proxies Unix times |
| Anthropic | ``anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}`` | RFC 3339 |
| Mistral | ``[x-]ratelimitbysize-…``, ``x-ratelimit-…-{req,tokens}-minute`` | seconds |
| Together, OpenRouter | ``x-ratelimit-{limit,remaining,reset}``, ``x-tokenlimit-…`` | seconds, Unix times in ms |
| IETF drafts | ``ratelimit-{limit,remaining,reset}``; ``ratelimit`` and ``ratelimit-policy`` | seconds |

Pure: no header is a reason to fail, and no figure is negative.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from airflow_ai_provider.core.providers.base import LONGEST_WAIT, RateLimits

LONGEST_SECONDS = 86_400.0 * 31
"""No delay is read as longer than this."""
_LONGEST_TEXT = 128
_EPOCH_RANGE = 5 * 365 * 86_400.0
"""A number is taken for a moment if it is one within so many seconds of now."""
_EPOCH_UNITS = (1.0, 1e3, 1e6, 1e9)
"""Seconds, milliseconds, microseconds, nanoseconds."""
_NUMBER = re.compile(r"[+-]?\d{1,30}(?:\.\d{1,30})?", re.ASCII)
_UNITS = {
    **dict.fromkeys(("ns", "nanosecond", "nanoseconds"), 1e-9),
    **dict.fromkeys(("us", "µs", "μs", "microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ms", "msec", "msecs", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86_400.0),
}
_PART = rf"(\d{{1,15}}(?:\.\d{{1,15}})?)\s?({'|'.join(sorted(_UNITS, key=len, reverse=True))})(?![a-zµμ])"
"""A number and its unit."""
_WHOLE = rf"{_PART}(?:(?:\s|,\s?|\sand\s)?{_PART})*"
_PARTS = re.compile(_PART, re.ASCII | re.IGNORECASE)
_DURATION = re.compile(_WHOLE, re.ASCII | re.IGNORECASE)
_ISO_DURATION = re.compile(
    r"P(?:(\d{1,9})D)?(?:T(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,15}(?:\.\d{1,12})?)S)?)?", re.ASCII | re.IGNORECASE
)
_CLOCK = re.compile(r"(\d{1,6}):([0-5]?\d):([0-5]?\d(?:\.\d{1,12})?)", re.ASCII)
"""Hours, minutes, seconds: a .NET TimeSpan."""
_PHRASE = re.compile(
    r"(?:(?:try|retry|wait)(?:ing)?|resets?)"
    r"(?:\s(?:your|the|this|requests?|again|in|after|for|at least|about))*\s"
    rf"(?P<delay>{_WHOLE})",
    re.ASCII | re.IGNORECASE,
)
_BODY_SECONDS = ("retry_after", "retryAfter", "retry_after_seconds", "retry_delay", "retryDelay")
_BODY_MILLISECONDS = ("retry_after_ms", "retryAfterMs")


def seconds_until(text: object, now: datetime, *, unit: float = 1.0) -> float | None:
    """Seconds from ``now`` that a header or a field states; ``None`` where it states none that can be read.

    Reads a number of ``unit`` seconds, a Unix time in s, ms, µs or ns, a duration (``6m0s``, ``820ms``, ``1 minute``,
    ``PT6S``, ``00:00:06``) and a date (RFC 3339, RFC 9110 with its obsolete forms). The past is 0. Of several values
    the longest counts.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = f"{float(max(min(text, 1e24), -1e24)):.9f}"
    if not isinstance(text, str) or not (text := text.strip().strip("\"'").strip()) or len(text) > _LONGEST_TEXT:
        return None
    seconds = _one(text, now, unit)
    if seconds is None and "," in text:
        several = [found for part in text.split(",") if (found := _one(part.strip(), now, unit)) is not None]
        seconds = max(several, default=None)
    if seconds is None or not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), LONGEST_SECONDS)


def body_delay(body: object, message: str, now: datetime) -> float | None:
    """Seconds that an error's body asks to wait: in a field of it, in Google's ``RetryInfo``, or in its ``message``."""
    fields = body if isinstance(body, Mapping) else {}
    found = [seconds_until(fields.get(name), now) for name in _BODY_SECONDS]
    found += [seconds_until(fields.get(name), now, unit=1e-3) for name in _BODY_MILLISECONDS]
    details = fields.get("details")
    for detail in details[:20] if isinstance(details, list) else ():
        if isinstance(detail, Mapping):
            found.append(_protobuf_duration(detail.get("retryDelay"), now))
    stated = [seconds for seconds in found if seconds is not None]
    return max(stated) if stated else _phrase(message)


def _one(text: str, now: datetime, unit: float) -> float | None:
    if _NUMBER.fullmatch(text):
        return _number(float(text), now.timestamp(), unit)
    for read in (_duration, _iso_duration, _clock):
        if (seconds := read(text)) is not None:
            return seconds
    return _date(text, now)


def _number(value: float, now: float, unit: float) -> float:
    for scale in _EPOCH_UNITS:
        if abs(value / scale - now) < _EPOCH_RANGE:
            return value / scale - now
    return value * unit


@lru_cache(maxsize=256)  # a vendor's resets repeat, and every answer has several
def _duration(text: str) -> float | None:
    if not _DURATION.fullmatch(text):
        return None
    return math.fsum(float(number) * _UNITS[name.lower()] for number, name in _PARTS.findall(text))


def _iso_duration(text: str) -> float | None:
    match = _ISO_DURATION.fullmatch(text)
    if match is None or not any(match.groups()):
        return None
    return math.fsum(float(part or 0) * size for part, size in zip(match.groups(), (86_400, 3600, 60, 1), strict=True))


def _clock(text: str) -> float | None:
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    return math.fsum(float(part) * size for part, size in zip(match.groups(), (3600, 60, 1), strict=True))


def _date(text: str, now: datetime) -> float | None:
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(text)
            return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
        except (ValueError, TypeError, OverflowError, IndexError, AttributeError):
            continue
    return None


def _protobuf_duration(value: Any, now: datetime) -> float | None:
    """``"34s"``, or ``{"seconds": 34, "nanos": 5}``."""
    if not isinstance(value, Mapping):
        return seconds_until(value, now)
    whole, nanos = seconds_until(value.get("seconds"), now), seconds_until(value.get("nanos"), now, unit=1e-9)
    return None if whole is None and nanos is None else min((whole or 0.0) + (nanos or 0.0), LONGEST_SECONDS)


def _phrase(message: str) -> float | None:
    match = _PHRASE.search(message[:4000])
    return None if match is None else min(_duration(match["delay"]) or 0.0, LONGEST_SECONDS)


Headers = Callable[[str], str | None]
"""A response's headers, by lower-case name."""
Unit = Literal["requests", "tokens"]

_LARGEST = 10**12
_MOST_SKEW = 86_400.0
_COUNT = re.compile(r"(\d{1,13})(?=\s*(?:$|[,;]))", re.ASCII)
"""A number, also one that policies follow, as in the drafts' ``100, 100;w=60``."""
_ITEM = re.compile(
    r'(?:"([^"]{0,64})"|([\w.*/-]{1,64}))?((?:\s*;\s*[a-z][\w*-]{0,15}=(?:"[^"]{0,64}"|[^\s;,"]{1,32}))+)'
)
"""An item of a structured field, ``"default";r=50;t=30``."""
_PARAMETER = re.compile(r'([a-z][\w*-]{0,15})=(?:"([^"]{0,64})"|([^\s;,"]{1,32}))')
_LONGEST_FIELD = 1024


class _Names(NamedTuple):
    """Headers of one quota."""

    unit: Unit
    limit: str
    remaining: str
    reset: str
    at_once: bool
    """See ``RateLimits.at_once``."""


class _Quota(NamedTuple):
    """What the headers say of one quota."""

    unit: Unit
    limit: int | None
    remaining: int | None
    reset: float | None
    at_once: bool


def _named(unit: Unit, pattern: str, *, at_once: bool = True, reset: str | None = None) -> _Names:
    limit, remaining, until_reset = (pattern.format(figure) for figure in ("limit", "remaining", "reset"))
    return _Names(unit, limit, remaining, reset or until_reset, at_once)


_ANTHROPIC = (
    _named("requests", "anthropic-ratelimit-requests-{}", at_once=False),
    _named("tokens", "anthropic-ratelimit-tokens-{}", at_once=False),
    _named("tokens", "anthropic-ratelimit-input-tokens-{}", at_once=False),
    _named("tokens", "anthropic-ratelimit-output-tokens-{}", at_once=False),
)
_OTHERS = (
    _named("requests", "x-ratelimit-{}-requests", at_once=False),
    _named("tokens", "x-ratelimit-{}-tokens", at_once=False),
    _named("requests", "x-ratelimit-{}-req-minute"),
    _named("tokens", "x-ratelimit-{}-tokens-minute"),
    _named("tokens", "ratelimitbysize-{}"),
    _named("tokens", "x-ratelimitbysize-{}-minute", reset="ratelimitbysize-reset"),
    _named("requests", "x-ratelimit-{}"),
    _named("tokens", "x-tokenlimit-{}"),
    _named("requests", "x-rate-limit-{}"),
    _named("requests", "ratelimit-{}"),
)
_RETRY_AFTER = ("retry-after", "x-retry-after", "x-ratelimit-retry-after")
_RETRY_AFTER_MS = ("retry-after-ms", "x-ms-retry-after-ms")


def read_limits(headers: Headers, now: datetime) -> RateLimits | None:
    """The quota that an answer's headers tell; ``None`` where there is none that can be read."""
    quotas = [quota for quota in _quotas(headers, now) if quota.remaining is not None]
    return _most_binding(quotas) if quotas else None


def retry_after(headers: Headers, now: datetime) -> float | None:
    """Seconds for which a vendor asks to wait, at most ``LONGEST_WAIT``."""
    clock = _vendors_clock(headers, now)
    for names, unit in ((_RETRY_AFTER_MS, 1e-3), (_RETRY_AFTER, 1.0)):
        for name in names:
            if (seconds := seconds_until(headers(name), clock, unit=unit)) is not None:
                return min(seconds, LONGEST_WAIT)
    return None


def exhausted_until(headers: Headers, now: datetime) -> float | None:
    """Seconds until the last quota is back of those that a refusal's headers call used up; at most ``LONGEST_WAIT``.

    A quota of which only the reset is told counts as used up: its vendor has just refused.
    """
    waits = [quota.reset for quota in _quotas(headers, now) if quota.reset is not None and not quota.remaining]
    if not waits:
        clock = _vendors_clock(headers, now)
        alone = (until(headers(name.reset), clock) for name in _OTHERS if headers(name.remaining) is None)
        waits = [seconds for seconds in alone if seconds is not None]
    return min(max(waits), LONGEST_WAIT) if waits else None


def count(text: str | None) -> int | None:
    """A number of requests or tokens."""
    match = _COUNT.match(text.strip()) if text else None
    return min(int(match[1]), _LARGEST) if match else None


def until(text: str | None, now: datetime) -> float | None:
    """Seconds from ``now`` to a reset, in any form that ``seconds_until`` reads. At most 31 days."""
    return seconds_until(text.partition(";")[0], now) if text else None


def _quotas(headers: Headers, now: datetime) -> list[_Quota]:
    """Every quota told. litellm adds OpenAI's headers to Anthropic's, without the resets: those go before."""
    if found := list(_plain(headers, now, _ANTHROPIC)):
        return found
    return [*_plain(headers, now, _OTHERS), *_structured(headers("ratelimit"), headers, now)]


def _plain(headers: Headers, now: datetime, families: Sequence[_Names]) -> Iterator[_Quota]:
    for names in families:
        remaining = headers(names.remaining)
        if remaining is not None:  # most answers of most servers have none
            reset = until(headers(names.reset), _vendors_clock(headers, now))
            yield _Quota(names.unit, count(headers(names.limit)), count(remaining), reset, names.at_once)


def _structured(field: str | None, headers: Headers, now: datetime) -> Iterator[_Quota]:
    """The quotas of a ``RateLimit`` header: as a list of items or, in older drafts, ``limit=100, remaining=50, …``."""
    if not field or len(field) > _LONGEST_FIELD:
        return
    clock = _vendors_clock(headers, now)
    policies = dict(_items(headers("ratelimit-policy")))
    for name, said in _items(field):
        policy = policies.get(name, {})
        unit: Unit = "tokens" if "token" in f"{name} {policy.get('qu', '')}".lower() else "requests"
        yield _Quota(unit, count(policy.get("q")), count(said.get("r")), until(said.get("t"), clock), at_once=True)
    if "remaining" in (flat := _parameters(field)):
        limit, remaining = count(flat.get("limit")), count(flat["remaining"])
        yield _Quota("requests", limit, remaining, until(flat.get("reset"), clock), at_once=True)


def _items(field: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    if field and len(field) <= _LONGEST_FIELD:
        for match in _ITEM.finditer(field):
            yield match[1] or match[2] or "", _parameters(match[3])


def _parameters(text: str) -> dict[str, str]:
    return {match[1]: match[2] or match[3] or "" for match in _PARAMETER.finditer(text)}


def _most_binding(quotas: Iterable[_Quota]) -> RateLimits | None:
    """Of several quotas of one unit that with the least left, and of those the one that takes longest."""
    of: dict[Unit, _Quota] = {}
    for quota in quotas:
        known = of.get(quota.unit)
        if known is None or _rank(quota) < _rank(known):
            of[quota.unit] = quota
    none = _Quota("requests", None, None, None, at_once=False)
    requests, tokens = of.get("requests", none), of.get("tokens", none)
    return RateLimits(
        requests=requests.limit,
        requests_remaining=requests.remaining,
        requests_reset=requests.reset,
        tokens=tokens.limit,
        tokens_remaining=tokens.remaining,
        tokens_reset=tokens.reset,
        at_once=requests.at_once or tokens.at_once,
    )


def _rank(quota: _Quota) -> tuple[int, float]:
    return (_LARGEST if quota.remaining is None else quota.remaining, -(quota.reset or 0.0))


def _vendors_clock(headers: Headers, now: datetime) -> datetime:
    """The vendor's own time, as far as it can be true: its moments are on its clock, and ours may be off."""
    theirs = _parsed_date(headers("date") or "")
    return theirs if theirs is not None and abs((theirs - now).total_seconds()) < _MOST_SKEW else now


@lru_cache(maxsize=16)  # a vendor's answers of one second say the same
def _parsed_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
