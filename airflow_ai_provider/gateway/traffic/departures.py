"""When calls leave, one after the other, so that none of the vendor's windows is overfilled.

A call may be later than its place: its attempt took long to become durable, or the event loop was held up. Sent as soon
as possible, late calls would leave together, and with those that come on time more would leave within the next second
than the limit allows. Three rules prevent that:

* Late calls leave one after the other, at most at twice the pace of their places.
* What left late is made up for one window later: a call whose place is ``WINDOW`` after that of a late one leaves
  ``WINDOW`` after it did. So no second sees more calls leave than it has places, and nothing of the limit is lost.
* Whichever call is ready first has the first place: preparations take unequally long.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from typing import NamedTuple

from airflow_ai_provider.gateway.traffic.terms import AIM

WINDOW = 1.0 / AIM
"""Seconds: vendors count over one second, or over a multiple of it; a bit more, as calls arrive less evenly than they
leave."""
_ROUNDING = 1e-4


class Departure(NamedTuple):
    """One planned departure. Moments are seconds on any one clock."""

    moment: float
    place: float
    """The moment of its permits."""
    gap: float
    """Seconds that it keeps at least from the one before."""


class Departures:
    """Departures of one process: those planned, and past ones as far as they bind the next."""

    __slots__ = ("_after", "_last", "_past", "_planned", "_until")

    def __init__(self) -> None:
        self._planned: list[Departure] = []
        self._until = -math.inf
        """The last moment that was ever planned."""
        self._past: deque[tuple[float, float]] = deque()
        """Place and moment of the departures of the last window."""
        self._after = -math.inf
        """Departures before are ruled out by those of one window ago."""
        self._last = -math.inf

    def proposed(self, place: float, gap: float, now: float, *, bound: bool) -> Departure:
        """The departure that a call with the next ``place`` would get; ``bound`` to those of one window ago."""
        while self._past and self._past[0][0] + WINDOW <= place + _ROUNDING:
            self._after = max(self._after, self._past.popleft()[1] + WINDOW)
        return Departure(max(place, now, self._until + gap, self._after if bound else now), place, gap)

    def plan(self, departure: Departure) -> None:
        self._until = departure.moment
        insort(self._planned, departure)

    def cancel(self, departure: Departure) -> None:
        """A call with a planned departure will not leave; another one may have taken it already."""
        self._planned.pop(self._planned.index(departure) if departure in self._planned else -1)

    def next(self) -> float:
        """When the next call that is ready may leave."""
        first = self._planned[0]
        return max(first.moment, self._last + first.gap)

    def leave(self, now: float) -> float:
        """Let a call leave now; returns by how many seconds it is late."""
        place = self._planned.pop(0).place
        self._last = now
        self._past.append((place, now))
        return now - place
