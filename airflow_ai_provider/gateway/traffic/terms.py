"""What one deployment allows, as plain numbers per second, and under which name its workers share it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import orjson

from airflow_ai_provider.errors import PolicyError
from airflow_ai_provider.policy import Breaker, Deployment

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
        """The same terms for somebody who has ``share`` of everything and nobody to share it with."""
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
