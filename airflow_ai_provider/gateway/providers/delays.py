"""Reads delays as vendors state them: numbers, durations, dates, epochs, and the phrases of error messages.

Every function is pure: ``now`` is passed in. None raises, and a delay is a finite number of seconds, 0 or more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

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
