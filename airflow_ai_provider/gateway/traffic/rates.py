"""How fast: GCRA over a schedule that workers reserve ahead, divided among teams.

GCRA (the virtual scheduling form of the leaky bucket, ITU-T I.371) keeps one moment for each limit: up to there all is
given away. Permits are consecutive places behind it, so a batch for one worker is as evenly spaced as single ones
would be, and workers that hold places do not meet. A place is at the end of its interval: in no window, whatever the
sizes of the requests, more than rate x window is sent; who comes after a quiet time may lead by his first request.

Shares: each team has a schedule of its own at its part of the rate, where only teams with something still to come
count, so the share of an idle team is lent; ``ahead``, the schedule of all together, keeps the sum from ever passing
the rate by more than ``HORIZON``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from airflow_ai_provider.gateway.traffic.desk import Permits, Wanted

HORIZON = 0.1
"""Seconds' worth of its rate that one worker may take at a time."""
BURST = 0.02
"""Seconds that may be caught up on when nobody asked in time."""
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
