"""What happened to a process' calls since its last visit to the desk."""

from __future__ import annotations

import math

from airflow_ai_provider.gateway.traffic.desk import ProbeWord
from airflow_ai_provider.gateway.traffic.terms import Limit


class News:
    """Counts, as the fields of ``Ask`` of the same names have them; ``seconds`` is a sum here."""

    __slots__ = ("alive_at", "back", "cool", "failed", "late", "limited", "ok", "probe", "seconds", "streak")

    def __init__(self, alive_at: float = -math.inf) -> None:
        """``alive_at`` is when a call was answered last."""
        self.alive_at = alive_at
        self.ok = 0
        self.seconds = 0.0
        self.failed = 0
        self.streak = 0
        self.limited = 0
        self.late = 0
        self.cool = 0.0
        self.probe: ProbeWord = ""
        self.back: dict[Limit, float] = {}

    def good(self, seconds: float, now: float) -> None:
        """A call was answered."""
        self.ok += 1
        self.seconds += seconds
        self._alive(now)

    def refused(self, now: float, *, late: bool) -> None:
        """A call was answered by 429; ``late`` if it had left after its place."""
        self.limited += 1
        self.late += late
        self._alive(now)

    def bad(self, sent: float) -> None:
        """A call failed as in an outage. Calls that were sent together time out together: what was answered after this
        one was sent ends no streak that it could be part of."""
        self.failed += 1
        if sent >= self.alive_at:
            self.streak += 1

    def _alive(self, now: float) -> None:
        self.alive_at = now
        self.streak = 0

    def unused(self, limit: Limit, units: float) -> None:
        """Units that were permitted and not used; negative for more than were permitted."""
        if units:
            self.back[limit] = self.back.get(limit, 0.0) + units

    @property
    def mean_seconds(self) -> float:
        return self.seconds / self.ok if self.ok else 0.0
