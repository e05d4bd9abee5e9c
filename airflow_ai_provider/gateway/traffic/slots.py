"""How many at once: slots divided among workers by what they want and their team's share (weighted max-min fairness).

Workers hold slots on a lease that each of their visits renews; those of a worker that is not seen again come free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LEASE = 10.0
"""Seconds without a sign of life after which a worker counts as dead."""
TURN = 5.0
"""Seconds after which slots that cannot be divided go to others."""
_NO_SHARE = 1e-6
"""Weight of a team that only another version of the policy knows."""


@dataclass(slots=True)
class Worker:
    team: str
    seen: float
    want: int = 0
    slots: int = 0
    """What it may have under way, or has."""


def forget_dead(workers: dict[str, Worker], now: float) -> None:
    for name in [name for name, worker in workers.items() if worker.seen < now - LEASE]:
        del workers[name]


def split(limit: int, workers: Mapping[str, Worker], shares: Mapping[str, float], now: float) -> dict[str, int]:
    """How many slots each worker should have; together as many as there are, or are wanted."""
    wanting = {name: worker for name, worker in workers.items() if worker.want > 0}
    if not wanting:
        return {}
    sizes: dict[str, int] = {}
    for worker in wanting.values():
        sizes[worker.team] = sizes.get(worker.team, 0) + 1
    weights = {name: shares.get(worker.team, _NO_SHARE) / sizes[worker.team] for name, worker in wanting.items()}
    return _whole(_fair(float(limit), wanting, weights), now)


def _fair(left: float, wanting: Mapping[str, Worker], weights: Mapping[str, float]) -> dict[str, float]:
    """Nobody gets more than he wants, and what is left over is divided by weight."""
    weight = sum(weights.values())
    fair = {}
    for name in sorted(wanting, key=lambda name: (wanting[name].want / weights[name], name)):
        fair[name] = min(float(wanting[name].want), left * weights[name] / weight)
        left -= fair[name]
        weight -= weights[name]
    return fair


def _whole(fair: Mapping[str, float], now: float) -> dict[str, int]:
    """Whole numbers that add up; whom rounding favours changes every ``TURN``."""
    names = sorted(fair)
    first = int(now / TURN) % len(names)
    whole, total, given = {}, 0.0, 0
    for name in names[first:] + names[:first]:
        total += fair[name]
        whole[name] = math.floor(total + 1e-6) - given
        given += whole[name]
    return whole
