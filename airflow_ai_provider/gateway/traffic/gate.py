"""What callers see of traffic: a gate before each deployment, and the right to send one call through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from airflow_ai_provider.errors import DeploymentGivenUp, VendorError
from airflow_ai_provider.gateway.providers.base import RateLimits
from airflow_ai_provider.gateway.traffic.desk import CircuitState
from airflow_ai_provider.ledger.money import Usage


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
