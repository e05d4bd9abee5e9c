"""How many retries a deployment gets: a share of its first attempts, so that an outage is not multiplied.

A token bucket as in Finagle's RetryBudget: every call puts a fifth of a retry in, every retry takes one out, and a few
may be had even when there is little traffic.
"""

from __future__ import annotations

SHARE = 0.2
"""Retries per first attempt."""
FLOOR = 10.0
"""Retries at the start, and those that a quiet minute fills up to."""
CEILING = 100.0
_PER_SECOND = FLOOR / 60


class RetryBudget:
    """For one deployment in one process. Time is passed in."""

    __slots__ = ("_filled", "_left")

    def __init__(self, now: float) -> None:
        self._left = FLOOR
        self._filled = now

    def sent(self) -> None:
        """A call was sent; that of a retry as well, for which ``take`` pays."""
        self._left = min(CEILING, self._left + SHARE)

    def take(self, now: float) -> bool:
        """Whether there is room for one retry, which is then taken."""
        if self._left < FLOOR:
            self._left = min(FLOOR, self._left + (now - self._filled) * _PER_SECOND)
        self._filled = now
        if self._left < 1:
            return False
        self._left -= 1 + SHARE
        return True
