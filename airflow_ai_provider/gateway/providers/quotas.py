"""What vendors say of their quotas beside an answer, in the headers that OpenAI and Anthropic document.

OpenAI's, which most compatible vendors send as well: ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``, with
resets as durations such as ``6m0s`` or ``120ms``. Anthropic's: ``anthropic-ratelimit-{requests,tokens}-`` with the same
three after it, and resets as RFC 3339 timestamps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from airflow_ai_provider.gateway.providers.base import RateLimits

Headers = Callable[[str], str | None]
"""A response's headers, by lower-case name."""

_FIGURES = ("limit", "remaining", "reset")
_OPENAI = {of: tuple(f"x-ratelimit-{figure}-{of}" for figure in _FIGURES) for of in ("requests", "tokens")}
_ANTHROPIC = {of: tuple(f"anthropic-ratelimit-{of}-{figure}" for figure in _FIGURES) for of in ("requests", "tokens")}
_LARGEST = 10**12
_LONGEST = 86_400.0 * 31
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|[dhms]))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|[dhms])")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def read_limits(headers: Headers, now: datetime) -> RateLimits | None:
    """The quota by either vendor's headers; ``None`` where there are none that can be read.

    Anthropic's first: litellm adds OpenAI's to them, without the resets.
    """
    return _read(headers, now, _ANTHROPIC) or _read(headers, now, _OPENAI)


def _read(headers: Headers, now: datetime, names: Mapping[str, tuple[str, ...]]) -> RateLimits | None:
    limit, left, reset = names["requests"]
    limit_tokens, left_tokens, reset_tokens = names["tokens"]
    requests, tokens = headers(left), headers(left_tokens)
    if requests is None and tokens is None:  # what most answers of most servers have
        return None
    found = RateLimits(
        requests=count(headers(limit)),
        requests_remaining=count(requests),
        requests_reset=until(headers(reset), now),
        tokens=count(headers(limit_tokens)),
        tokens_remaining=count(tokens),
        tokens_reset=until(headers(reset_tokens), now),
    )
    return None if found == RateLimits() else found


def count(text: str | None) -> int | None:
    """A number of requests or tokens."""
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 13:
        return None
    return min(int(text), _LARGEST)


def until(text: str | None, now: datetime) -> float | None:
    """Seconds from ``now`` to a reset: a duration as Go writes it, seconds, or a timestamp. At most 31 days."""
    if not text or len(text) > 64:
        return None
    if (seconds := _duration(text)) is None and (seconds := _moment(text, now)) is None:
        return None
    return min(max(seconds, 0.0), _LONGEST)


def _duration(text: str) -> float | None:
    if _DURATION.fullmatch(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return float(text) if re.fullmatch(r"\d{1,12}(?:\.\d{1,9})?", text, re.ASCII) else None


def _moment(text: str, now: datetime) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
