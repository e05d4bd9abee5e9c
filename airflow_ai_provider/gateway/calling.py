"""A row's way through the deployments of a tier: attempt after attempt, deployment after deployment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from airflow_ai_provider.errors import DeploymentResting, DeploymentStopped, VendorError
from airflow_ai_provider.gateway.answer import RowStatus
from airflow_ai_provider.gateway.attempting import Ask, Attempts, Outcome, PassedOver, Plan, in_time
from airflow_ai_provider.gateway.funds import BatchFunds
from airflow_ai_provider.gateway.lanes import Lane
from airflow_ai_provider.gateway.retry import Again, Decision, decide
from airflow_ai_provider.gateway.reuse import Stored
from airflow_ai_provider.policy import Tier

_OPEN = "circuit_open"
_LOOK_AGAIN_SECONDS = 1.0
"""How often a row that no deployment takes looks whether a circuit has closed."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A tier's answer to a row, paid for or found; or why there is none."""

    stored: Stored | None
    tier: Tier
    lane: Lane
    reused: bool = False
    cost_nano: int = 0
    failure: str | None = None
    status: RowStatus = "ok"
    short_nano: int = 0
    """Room that no budget had."""
    permanent: bool = False
    """The vendor will never accept this row: it is for a person to look at."""


@dataclass(slots=True)
class _Way:
    """How far one row has come."""

    ask: Ask
    tier: Tier
    funds: BatchFunds
    share: int
    """What any attempt of the row can cost at most, in nano-dollars."""
    ends: float | None
    """By the loop's clock, when the row is given up; ``None`` is never."""
    row_seconds: float | None
    """How long the row may take from its first request on, until that has left."""
    held: bool = False
    spent: int = 0
    failure: str = "no deployment"
    passed_over: PassedOver | None = None

    def pass_over(self, lane: Lane, reason: str, failure: str) -> None:
        """The next deployment is asked instead; the ledger's row says so."""
        self.failure = failure
        self.passed_over = PassedOver(lane.name, reason)


class Calls:
    """Asks deployments until one answers, for one job and one event loop."""

    def __init__(self, plan: Plan, attempts: Attempts) -> None:
        self._plan = plan
        self._attempts = attempts
        self._rng = random.Random()  # noqa: S311 - spreads retries, keeps no secret

    async def reply(
        self,
        ask: Ask,
        tier: Tier,
        lanes: Sequence[Lane],
        keys: Sequence[bytes],
        funds: BatchFunds,
        ends: float | None,
    ) -> Reply:
        """The answer of the first of ``lanes`` that gives one; ``keys`` are those of their answers.

        ``ends`` is when, by the loop's clock, the row's batch must be done.
        """
        share = max(self._attempts.bound(ask, lane) for lane in lanes)
        way = _Way(ask, tier, funds, share, ends, self._plan.route.deadline.row)
        reply = await self._ask_all(way, lanes, keys)
        if way.held:
            await funds.give_back(share)
        return replace(reply, cost_nano=way.spent)

    async def _ask_all(self, way: _Way, lanes: Sequence[Lane], keys: Sequence[bytes]) -> Reply:
        """Lane after lane, until one answers, the deadline has come, or none is left to ask.

        While the circuits of all that could answer are open the row waits, as long as its retries might have taken.
        """
        retry = self._plan.route.retry
        patience = asyncio.get_running_loop().time() + retry.attempts * retry.max_wait
        try:
            while True:
                resting = False
                for lane, key in zip(lanes, keys, strict=True):
                    if (reply := await self._ask_lane(way, lane, key)) is not None:
                        return reply
                    resting |= way.passed_over == PassedOver(lane.name, _OPEN)
                if not resting or asyncio.get_running_loop().time() > patience:
                    break
                await in_time(asyncio.sleep(_LOOK_AGAIN_SECONDS * self._rng.uniform(0.5, 1.5)), way.ends)
        except TimeoutError:
            way.failure = f"deadline: no answer in the time that the route allows; before that: {way.failure}"
        return Reply(None, way.tier, lanes[-1], failure=way.failure, status="error")

    async def _ask_lane(self, way: _Way, lane: Lane, key: bytes) -> Reply | None:
        """The lane's answer or its final refusal; ``None`` where the next one is to be asked."""
        if not lane.takes(way.ask.prepared.size):
            limit = lane.facts.context_tokens
            explanation = f"context_window: the row needs more than the {limit} tokens that {lane.name} takes"
            way.pass_over(lane, "context_window", explanation)
            return None
        number = 0
        while True:
            number += 1
            if not way.held and (short := await in_time(way.funds.room(way.share), way.ends)):
                reason = f"over_budget: no room left in budget {short}"
                over = Reply(None, way.tier, lane, failure=reason, status="over_budget")
                return replace(over, short_nano=way.share)
            way.held = True
            try:
                outcome = await self._attempt(way, lane, key)
            except DeploymentResting as resting:
                way.pass_over(lane, _OPEN, f"{_OPEN}: {resting}")
                return None
            except DeploymentStopped as stopped:
                way.pass_over(lane, "deployment_stopped", f"deployment_stopped: {stopped}")
                return None
            if outcome.stored is not None:
                return Reply(outcome.stored, way.tier, lane)
            assert outcome.error is not None
            decision = self._decide(outcome.error, number, way)
            way.pass_over(lane, outcome.error.kind, f"{outcome.error.kind}: {outcome.error}")
            if decision == "give up":
                return Reply(None, way.tier, lane, failure=way.failure, status="error", permanent=True)
            if not isinstance(decision, Again):
                return None
            await in_time(lane.gate.pause(decision.seconds), way.ends)

    async def _attempt(self, way: _Way, lane: Lane, key: bytes) -> Outcome:
        if way.ends is not None and asyncio.get_running_loop().time() >= way.ends:
            raise TimeoutError
        outcome, way.ends = await self._attempts.make(
            way.ask,
            way.tier,
            lane,
            key,
            hold_id=way.funds.hold_id,
            share=way.share,
            ends=way.ends,
            row_seconds=way.row_seconds,
            passed_over=way.passed_over,
        )
        way.row_seconds = None
        way.spent += outcome.cost_nano
        way.held = outcome.still_held
        return outcome

    def _decide(self, error: VendorError, number: int, way: _Way) -> Decision:
        return decide(error, attempt=number, retry=self._plan.route.retry, rng=self._rng)
