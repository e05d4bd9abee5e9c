"""Permits: their schedule, what a process holds of them, and when its calls leave.

How fast: GCRA over a schedule that workers reserve ahead, divided among teams.

GCRA (the virtual scheduling form of the leaky bucket, ITU-T I.371) keeps one moment for each limit: up to there all is
given away. Permits are consecutive places behind it, so a batch for one worker is as evenly spaced as single ones
would be, and workers that hold places do not meet. A place is at the end of its interval: in no window, whatever the
sizes of the requests, more than rate x window is sent; who comes after a quiet time may lead by his first request.

Shares: each team has a schedule of its own at its part of the rate, where only teams with something still to come
count, so the share of an idle team is lent; ``ahead``, the schedule of all together, keeps the sum from ever passing
the rate by more than ``HORIZON``.

Permits that a process holds for one limit, in the order of their moments.

What a process holds, needs and uses of one limit.

When calls leave, one after the other, so that none of the vendor's windows is overfilled.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from airflow_ai_provider.core.ratelimit.limits import AIM, Limit, Permits, Wanted

HORIZON = 0.1
"""Seconds' worth of its rate that one worker may take at a time."""
BURST = 0.02
"""Seconds that may be caught up on when no worker asked in time."""
HUNGRY = 0.5
"""Seconds for which a team that did not get all it wanted counts as busy, should it be late to ask again."""
CREDIT = 1.0
"""Seconds' worth of unused units that are kept for later at most."""


@dataclass(slots=True)
class Line:
    """One team's schedule for one limit."""

    until: float = 0.0
    """All before is given away."""
    credit: float = 0.0
    """Units given back, which the next ones need not wait for; a debt if negative."""
    hungry_until: float = 0.0
    """It wanted more than it got, and will surely be back."""


@dataclass(slots=True)
class Schedule:
    """One limit of a deployment."""

    ahead: float = 0.0
    lines: dict[str, Line] = field(default_factory=dict)


def give_back(line: Line, units: float, rate: float) -> None:
    """Take units back. What is kept is bounded, a debt is not."""
    line.credit = min(line.credit + units, rate * CREDIT)


def reserve(
    schedule: Schedule,
    wanted: Wanted,
    *,
    rate: float,
    shares: Mapping[str, float],
    team: str,
    workers: int,
    earliest: float,
    now: float,
    catch_up: float = BURST,
) -> Permits:
    """Permits for one of a team's ``workers``, none of them before ``earliest``.

    A team that wanted more than it got may still have the places of the last ``catch_up`` seconds: its workers were
    held up. What an idle one did not use is gone.
    """
    line = schedule.lines.setdefault(team, Line())
    busy = sum(
        shares.get(name, 0.0)
        for name, other in schedule.lines.items()
        if name != team and max(other.until, other.hungry_until) > now
    )
    pace = (shares[team] + busy) / shares[team] / rate
    units = min(wanted.units, max(wanted.first, math.floor(HORIZON / pace / workers)))
    pull = min(line.credit, units)
    due = units - pull
    back = max(BURST, catch_up) if line.hungry_until > now else BURST
    lead = now - max(back, wanted.first / rate)
    slack = HORIZON if busy else 0.0
    start = max(line.until, schedule.ahead - slack, now - max(back, wanted.first * pace), earliest)
    schedule.ahead = max(schedule.ahead, lead, earliest) + due / rate
    line.credit -= pull
    line.hungry_until = now + HUNGRY if wanted.units > units else 0.0
    line.until = start + due * pace
    return Permits(start, due * pace / units, units)


_DUST = 1e-6


class HeldPermits:
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


_COSTS: dict[Limit, Callable[[int, int, int], int]] = {
    "requests": lambda requests, input_tokens, output_tokens: requests,
    "tokens": lambda requests, input_tokens, output_tokens: input_tokens + output_tokens,
    "input": lambda requests, input_tokens, output_tokens: input_tokens,
    "output": lambda requests, input_tokens, output_tokens: output_tokens,
}


class PermitSupply:
    """One limit, as one process sees it."""

    __slots__ = ("_pace", "_used", "cost", "limit", "purse", "queued")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.cost = _COSTS[limit]
        """Units of requests, input tokens and output tokens."""
        self.purse = HeldPermits()
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
