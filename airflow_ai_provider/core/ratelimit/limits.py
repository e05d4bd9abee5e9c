"""Limits of a deployment, the requests and grants between a process and its limiter, and the gate's interface.

What one deployment allows, as plain numbers per second, and under which name its workers share it.

What a worker asks of the desk that keeps a deployment's limits, and what it is granted.

One round trip settles everything at once for all calls of a process: permits, slots, what became of earlier calls.

What callers see of traffic: a gate before each deployment, and the right to send one call through it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

import orjson

from airflow_ai_provider.core.errors import DeploymentGivenUp, PolicyError, VendorError
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.policy import Breaker, Deployment
from airflow_ai_provider.core.providers.base import RateLimits

Limit = Literal["requests", "tokens", "input", "output"]

AIM = 0.992
"""How much of a vendor's limit is scheduled at most; ``caution.Caution`` takes more off while the vendor refuses."""
OTHERS = ""
"""Stands for all teams that have no share of their own."""
_SMALLEST_SHARE = 1e-6


@dataclass(frozen=True, slots=True)
class BreakerTerms:
    """``policy.Breaker``, in shares and seconds."""

    failures: int = 5
    failure_rate: float = 0.5
    calls: int = 20
    window: float = 10.0
    probe_every: float = 5.0


@dataclass(frozen=True, slots=True)
class Terms:
    """The limits of one deployment."""

    rates: Mapping[Limit, float] = field(default_factory=dict)
    """Units per second; a limit that is not there is none."""
    concurrency: int = 32
    """Requests under way at once, of all workers."""
    shares: Mapping[str, float] = field(default_factory=lambda: {OTHERS: 1.0})
    """By team, ``OTHERS`` among them; adds up to 1."""
    breaker: BreakerTerms = BreakerTerms()

    @property
    def adaptive(self) -> bool:
        """Whether how many are under way is found by trying, for want of any limit."""
        return not self.rates

    def team(self, name: str) -> str:
        return name if name in self.shares else OTHERS

    def part(self, share: float) -> Terms:
        """The same terms for a process that has ``share`` of each limit to itself."""
        rates = {limit: rate * share for limit, rate in self.rates.items()}
        return replace(self, rates=rates, concurrency=max(1, int(self.concurrency * share)), shares={OTHERS: 1.0})

    def as_json(self) -> bytes:
        return orjson.dumps({"adaptive": self.adaptive, **{name: getattr(self, name) for name in self.__slots__}})


def terms_of(name: str, deployment: Deployment, team: str) -> Terms:
    """The terms of a deployment. Raises ``PolicyError`` where nothing of it is left for ``team``."""
    shares = dict(deployment.shares)
    left = 1.0 - math.fsum(shares.values())
    if left > _SMALLEST_SHARE:
        shares[OTHERS] = left
    elif team not in shares:
        raise PolicyError(
            f"deployments.{name}.shares: nothing is left for team {team!r}; give it a share, or less to the others"
        )
    return Terms(_rates(deployment), deployment.concurrency, shares, _breaker(deployment.breaker))


def key_of(name: str, deployment: Deployment) -> str:
    """What the workers of one deployment have in common: equal names for other places or models are other limits."""
    place = [deployment.model, deployment.api_base, deployment.connection]
    return f"{name}:{hashlib.sha256(orjson.dumps(place)).hexdigest()[:16]}"


def _rates(deployment: Deployment) -> dict[Limit, float]:
    per_minute: dict[Limit, int | None] = {
        "requests": deployment.requests_per_minute,
        "tokens": deployment.tpm,
        "input": deployment.input_tpm,
        "output": deployment.output_tpm,
    }
    return {limit: amount * AIM / 60 for limit, amount in per_minute.items() if amount}


def _breaker(said: Breaker) -> BreakerTerms:
    return BreakerTerms(said.failures, said.failure_percent / 100, said.calls, said.window, said.probe_every)


CircuitState = Literal["closed", "open", "half_open"]
ProbeWord = Literal["", "want", "ok", "failed", "free"]


class Wanted(NamedTuple):
    """Units of one limit."""

    units: float
    first: float
    """What the first queued call needs: fewer would be of no use."""


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


class Limiter(Protocol):
    """Keeps the limits of one deployment for all who share it."""

    async def ask(self, ask: Ask) -> Grant:
        """Never raises for a store that is away."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CircuitChanged:
    """A deployment's circuit changed. Every process hears of it; ``here`` is true for the one whose calls did it."""

    deployment: str
    state: CircuitState
    reason: str
    here: bool


class Gate(Protocol):
    """One deployment's limits, shared by all workers."""

    @property
    def resting(self) -> bool:
        """Whether a call would be turned away: fall back at once. Who asks may be given a probe to send next."""
        ...

    async def enter(self, *, input_tokens: int, output_tokens: int) -> Pass:
        """Wait until a call of about so many tokens may leave. Never refuses for a limit.

        Raises ``DeploymentResting`` while the circuit is open, also to who is waiting when it opens.
        """
        ...

    async def pause(self, seconds: float) -> None:
        """A retry's back-off. Ends early when the circuit opens."""
        ...

    def give_up(self, reason: DeploymentGivenUp) -> None:
        """Reject waiting and future calls with ``reason``."""
        ...

    def may_retry(self) -> bool:
        """Whether the retry budget has room for one retry, which is then taken."""
        ...

    async def close(self) -> None:
        """Give everything back. Who still waits is turned away with ``DeploymentResting``."""
        ...


class Pass(Protocol):
    """The right to send one call. ``depart`` right before it is sent, one of ``answered``, ``failed`` and ``unused``,
    and then always ``leave``."""

    async def depart(self) -> None:
        """Wait, at most some seconds, until the call's place has come.

        ``enter`` returns a little before, so that what a call still needs can be done in the meantime; where that took
        longer, this paces those that are late. Raises ``DeploymentResting`` where the circuit opens meanwhile.
        """
        ...

    def answered(self, *, usage: Usage | None, limits: RateLimits | None, seconds: float) -> None:
        """The vendor answered, and said what it charged and what its limits are, if it did."""
        ...

    def failed(self, error: VendorError, seconds: float) -> None:
        """The attempt failed. Tokens that were surely not charged go back; the request itself counts."""
        ...

    def unused(self) -> None:
        """Nothing was sent: everything goes back."""
        ...

    def leave(self) -> None:
        """The slot is free again."""
        ...
