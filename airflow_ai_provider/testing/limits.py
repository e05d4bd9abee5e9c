"""The quotas the double enforces itself, per model, in the ways that vendors count. Time is passed in."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from airflow_ai_provider.testing import wire
from airflow_ai_provider.testing.behaviour import Limits


class Window(Protocol):
    """One quota of one model."""

    limit: int

    def wait(self, now: float, amount: int) -> float:
        """Seconds until ``amount`` fits, 0 if it does now."""
        ...

    def spend(self, now: float, amount: int) -> None: ...

    def remaining(self, now: float) -> int: ...

    def reset_in(self, now: float) -> float:
        """Seconds until all of it is free again."""
        ...


class SlidingWindow:
    """No more than ``limit`` in any stretch of ``seconds``."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self.used = 0
        self._spent: deque[tuple[float, int]] = deque()

    def wait(self, now: float, amount: int) -> float:
        """Seconds until ``amount`` fits, 0 if it does now. More than the limit never fits: a whole window."""
        self._forget_before(now - self.seconds)
        if self.used + amount <= self.limit:
            return 0.0
        too_much = self.used + amount - self.limit
        for at, spent in self._spent:
            too_much -= spent
            if too_much <= 0:
                return at + self.seconds - now
        return self.seconds

    def spend(self, now: float, amount: int) -> None:
        self._spent.append((now, amount))
        self.used += amount

    def remaining(self, now: float) -> int:
        self._forget_before(now - self.seconds)
        return max(0, self.limit - self.used)

    def reset_in(self, now: float) -> float:
        """Seconds until all of it is free again."""
        return max(0.0, self._spent[-1][0] + self.seconds - now) if self._spent else 0.0

    def _forget_before(self, at: float) -> None:
        while self._spent and self._spent[0][0] <= at:
            self.used -= self._spent.popleft()[1]


class FixedWindow:
    """No more than ``limit`` from one multiple of ``seconds`` to the next."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self._used = 0
        self._window = -1

    def wait(self, now: float, amount: int) -> float:
        return 0.0 if amount <= self._left(now) else self.reset_in(now)

    def spend(self, now: float, amount: int) -> None:
        self._left(now)
        self._used += amount

    def remaining(self, now: float) -> int:
        return max(0, self._left(now))

    def reset_in(self, now: float) -> float:
        return self.seconds - now % self.seconds

    def _left(self, now: float) -> int:
        window = math.floor(now / self.seconds)
        if window != self._window:
            self._window, self._used = window, 0
        return self.limit - self._used


class TokenBucket:
    """Fills evenly with ``limit`` per ``seconds``, up to ``burst``: with a small one it is a leaky bucket."""

    def __init__(self, limit: int, seconds: float, burst: int) -> None:
        self.limit = limit
        self._rate = limit / seconds
        self._burst = burst
        self._level = float(burst)
        self._at = -math.inf

    def wait(self, now: float, amount: int) -> float:
        self._fill(now)
        return max(0.0, (amount - self._level) / self._rate)

    def spend(self, now: float, amount: int) -> None:
        self._fill(now)
        self._level -= amount

    def remaining(self, now: float) -> int:
        self._fill(now)
        return max(0, math.floor(self._level))

    def reset_in(self, now: float) -> float:
        self._fill(now)
        return (self._burst - self._level) / self._rate

    def _fill(self, now: float) -> None:
        self._level = min(float(self._burst), self._level + max(0.0, now - self._at) * self._rate)
        self._at = max(self._at, now)


def window_of(limits: Limits, limit: int) -> Window:
    match limits.counted:
        case "fixed_window":
            return FixedWindow(limit, limits.window_s)
        case "token_bucket":
            return TokenBucket(limit, limits.window_s, limits.burst or limit)
        case _:
            return SlidingWindow(limit, limits.window_s)


class Quotas:
    """Requests and tokens of every model."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._windows: dict[str, dict[str, Window]] = {}

    def refusal(self, model: str, tokens: int, now: float) -> wire.Refusal | None:
        """A 429 if this request is beyond a quota; otherwise it is let in and counted."""
        windows = self._of(model)
        amounts = {"requests": 1, "tokens": tokens}
        for what, window in windows.items():
            if wait := window.wait(now, amounts[what]):
                return wire.over_limit(model, what, window.limit, wait)
        for what, window in windows.items():
            window.spend(now, amounts[what])
        return None

    def spend_output(self, model: str, tokens: int, now: float) -> None:
        if window := self._of(model).get("tokens"):
            window.spend(now, tokens)

    def headers(self, model: str, now: float) -> Iterator[tuple[str, str]]:
        """``x-ratelimit-*`` of the quotas that are set."""
        for what, window in self._of(model).items():
            yield f"x-ratelimit-limit-{what}", str(window.limit)
            yield f"x-ratelimit-remaining-{what}", str(window.remaining(now))
            yield f"x-ratelimit-reset-{what}", f"{window.reset_in(now):.3f}s"

    def _of(self, model: str) -> dict[str, Window]:
        if model not in self._windows:
            limits = self._limits
            per_minute = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
            self._windows[model] = {
                what: window_of(limits, limit) for what, limit in per_minute.items() if limit is not None
            }
        return self._windows[model]
