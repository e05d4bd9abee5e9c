"""What an answer or an error says about the deployment it came from."""

from __future__ import annotations

from typing import Literal

from airflow_ai_provider.errors import TransientError, VendorError
from airflow_ai_provider.gateway.providers.base import RateLimits

Word = Literal["up", "limited", "down"]

COOL = 1.0
"""Seconds to hold back after a 429 that does not say how long."""
_SHORT = 0.1
"""Waits that pacing evens out by itself."""
_DOWN_STATUSES = frozenset({408, 424})


def said_by(error: VendorError) -> Word:
    """``down`` is what a circuit counts: 5xx, time-outs, lost connections. A refused request was at least answered.

    A row that is larger than a quota says nothing of the others.
    """
    if error.http_status == 429 and error.kind != "too_large":
        return "limited"
    if not isinstance(error, TransientError):
        return "up"
    status = error.http_status
    return "down" if status is None or status >= 500 or status in _DOWN_STATUSES else "up"


def shows_model(error: VendorError) -> bool:
    """Whether a refusal shows that the vendor's API is there: it was charged nothing, in a status of such an API."""
    return error.http_status is not None and not error.billed and error.kind not in ("redirected", "wrong_address")


def cool_down(limits: RateLimits, tokens: int) -> float:
    """Seconds until a call of ``tokens`` fits again, as the headers have it; 0 where it does now.

    OpenAI's and Anthropic's resets are the time until all of the quota is back, at an even pace.
    """
    waits = (
        _wait(limits.requests, limits.requests_remaining, limits.requests_reset, 1, at_once=limits.at_once),
        _wait(limits.tokens, limits.tokens_remaining, limits.tokens_reset, tokens, at_once=limits.at_once),
    )
    wait = max(waits)
    return wait if wait >= _SHORT else 0.0


def _wait(limit: int | None, remaining: int | None, reset: float | None, need: int, *, at_once: bool) -> float:
    if remaining is None or reset is None or remaining >= need:
        return 0.0
    if limit is None:
        return 0.0 if remaining else reset
    if remaining >= limit:  # all of the quota would not be enough
        return 0.0
    return reset if at_once else reset * min(1.0, (need - remaining) / (limit - remaining))
