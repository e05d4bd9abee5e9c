"""What a worker asks of the desk that keeps a deployment's limits, and what it is granted.

One round trip settles everything at once for all calls of a process: permits, slots, what became of earlier calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from airflow_ai_provider.gateway.traffic.terms import Limit

CircuitState = Literal["closed", "open", "half_open"]
ProbeWord = Literal["", "want", "ok", "failed", "free"]


class Wanted(NamedTuple):
    """Units of one limit."""

    units: float
    first: float
    """What the first call in line needs: less than this would help nobody."""


class Permits(NamedTuple):
    """Units of one limit that may be used one after the other: the n-th from ``start + n * interval`` on."""

    start: float
    interval: float
    units: float


@dataclass(frozen=True, slots=True)
class Ask:
    """One worker's news and wishes."""

    worker: str
    team: str
    epoch: str = ""
    """The desk's own, as last heard; empty for a worker that is new."""
    in_use: int = 0
    """Requests under way."""
    want: int = 0
    """Requests that it would have under way if it could."""
    units: Mapping[Limit, Wanted] = field(default_factory=dict)
    back: Mapping[Limit, float] = field(default_factory=dict)
    """Units of earlier permits that were not used; negative where more was."""
    ok: int = 0
    """Calls since the last time that showed the deployment to be up …"""
    seconds: float = 0.0
    """… and how long they took on average."""
    failed: int = 0
    """Calls that failed as in an outage."""
    streak: int = 0
    """How many of ``failed`` came after the last good one."""
    limited: int = 0
    """Calls answered by 429."""
    late: int = 0
    """How many of ``limited`` were sent after their permit's moment."""
    cool: float = 0.0
    """Seconds for which the vendor wants nothing from anybody."""
    probe: ProbeWord = ""
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """The desk's answer. Moments are on the asker's clock."""

    epoch: str
    permits: Mapping[Limit, Permits]
    slots: int
    """No call may start while as many as this are under way."""
    cool_until: float
    circuit: CircuitState
    changed: bool
    """Whether the circuit changed by this ask."""
    reason: str
    """Why it did."""
    probe: bool
    """One call may go to a resting deployment, from this worker."""
    probe_at: float
    """When it makes sense to ask for that."""
    catch_up: float
    """Seconds for which a permit may still be used after its moment."""
    fraction: float
    """The part of all limits that is this worker's own, should it be left alone."""


class Desk(Protocol):
    """Keeps the limits of one deployment for all who share it."""

    async def ask(self, ask: Ask) -> Grant:
        """Never raises for a store that is away."""
        ...

    async def close(self) -> None: ...
