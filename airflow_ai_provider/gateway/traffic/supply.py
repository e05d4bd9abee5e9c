"""What a process holds, needs and uses of one limit."""

from __future__ import annotations

import math
from collections.abc import Callable

from airflow_ai_provider.gateway.traffic.desk import Wanted
from airflow_ai_provider.gateway.traffic.purse import Purse
from airflow_ai_provider.gateway.traffic.rates import HORIZON
from airflow_ai_provider.gateway.traffic.terms import Limit

_COSTS: dict[Limit, Callable[[int, int, int], int]] = {
    "requests": lambda requests, input_tokens, output_tokens: requests,
    "tokens": lambda requests, input_tokens, output_tokens: input_tokens + output_tokens,
    "input": lambda requests, input_tokens, output_tokens: input_tokens,
    "output": lambda requests, input_tokens, output_tokens: output_tokens,
}


class Supply:
    """One limit, as one process sees it."""

    __slots__ = ("_pace", "_used", "cost", "limit", "purse", "queued")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.cost = _COSTS[limit]
        """Units of requests, input tokens and output tokens."""
        self.purse = Purse()
        self.queued = 0
        """Units that those in line need."""
        self._used = 0
        """Units used since the last visit to the desk …"""
        self._pace = 0.0
        """… and per second, lately."""

    def use(self, units: int) -> None:
        """A call leaves the line."""
        self.queued -= units
        self._used += units
        self.purse.take(units)

    def measure(self, seconds: float, weight: float) -> None:
        """Take in how much was used in the last ``seconds``."""
        self._pace += weight * (self._used / seconds - self._pace)
        self._used = 0

    @property
    def soon(self) -> int:
        """Units that will be needed before the next visit, if it goes on like this."""
        return int(self._pace * HORIZON)

    @property
    def runs_low(self) -> bool:
        """Whether to fetch more before the last permits are used."""
        return self.purse.left < self.purse.batch / 2 and (self.queued > 0 or self._pace * HORIZON >= 1)

    @property
    def idle(self) -> bool:
        """Whether there is much more in hand than is used."""
        return self.purse.left > 0 and self._pace * HORIZON < self.purse.left / 4

    def wanted(self, *, first: int, share: float) -> Wanted | None:
        """What to ask for: for the first call, the ``share`` of the line that could go, and what comes soon."""
        least = max(0.0, first - self.purse.left)
        units = max(least, math.ceil(self.queued * share) + self.soon - self.purse.left)
        return Wanted(units, least or min(units, 1.0)) if units > 0 else None
