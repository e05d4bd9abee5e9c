"""The quotas the double enforces itself: per model, over a sliding window. Time is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from airflow_ai_provider.testing import wire
from airflow_ai_provider.testing.behaviour import Limits


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


class Quotas:
    """Requests and tokens of every model."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._windows: dict[str, dict[str, SlidingWindow]] = {}

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

    def _of(self, model: str) -> dict[str, SlidingWindow]:
        if model not in self._windows:
            limits = self._limits
            per_minute = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
            self._windows[model] = {
                what: SlidingWindow(limit, limits.window_s) for what, limit in per_minute.items() if limit is not None
            }
        return self._windows[model]
