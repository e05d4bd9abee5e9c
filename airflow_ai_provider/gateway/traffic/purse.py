"""Permits that a process holds for one limit, in the order of their moments."""

from __future__ import annotations

import math
from collections import deque

from airflow_ai_provider.gateway.traffic.desk import Permits

_DUST = 1e-6


class Purse:
    """What is left of the permits of one limit."""

    __slots__ = ("_parts", "batch", "left")

    def __init__(self) -> None:
        self._parts: deque[Permits] = deque()
        self.left = 0.0
        """Units in hand."""
        self.batch = 0.0
        """Units that came last."""

    def add(self, permits: Permits) -> None:
        self._parts.append(permits)
        self.left += permits.units
        self.batch = permits.units

    @property
    def interval(self) -> float:
        """Seconds from one unit to the next; 0 where there is none."""
        return self._parts[0].interval if self._parts else 0.0

    def moment(self, units: float) -> float | None:
        """When a call of ``units`` may leave; ``None`` where that is more than is in hand."""
        if units <= 0:
            return -math.inf
        if units > self.left + _DUST:
            return None
        for start, interval, held in self._parts:
            if units <= held + _DUST:
                return start + units * interval
            units -= held
        return None

    def take(self, units: float) -> None:
        """Spend units; more than are in hand spend all of them."""
        while units > 0 and self._parts:
            start, interval, held = self._parts[0]
            if held > units + _DUST:
                self._parts[0] = Permits(start + units * interval, interval, held - units)
                self.left -= units
                return
            self._parts.popleft()
            self.left -= held
            units -= held
        if not self._parts:
            self.left = 0.0

    def drop_before(self, moment: float) -> None:
        """Lose whole units whose moment is before; they are not given back, for others may have waited for them."""
        while self._parts:
            start, interval, held = self._parts[0]
            passed = moment - start
            if passed <= 0 or passed < interval:
                return
            self.take(held if passed >= held * interval else float(math.floor(passed / interval)))

    def empty_after(self, now: float) -> float:
        """Give up everything; returns how many units of it could still go to others."""
        self.drop_before(now)
        left, self.left = self.left, 0.0
        self._parts.clear()
        return left
