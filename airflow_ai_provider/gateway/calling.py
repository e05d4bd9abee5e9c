"""A row's way through the deployments of a tier: attempt after attempt, deployment after deployment."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from airflow_ai_provider.errors import (
    DeploymentGivenUp,
    DeploymentResting,
    DeploymentStopped,
    ParameterRefused,
    PrivacyError,
    PromptError,
    VendorError,
)
from airflow_ai_provider.gateway.answer import RowStatus
from airflow_ai_provider.gateway.attempting import Ask, Attempts, Outcome, PassedOver, Plan, in_time
from airflow_ai_provider.gateway.funds import BatchFunds
from airflow_ai_provider.gateway.giving_up import GivingUp
from airflow_ai_provider.gateway.lanes import Lane, Lanes
from airflow_ai_provider.gateway.retry import Again, Decision, Tries, decide, patience, uses_attempt
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
    refused: bool = False
    """It is a vendor that refused it, and not we."""


@dataclass(frozen=True, slots=True)
class Way:
    """A row as one tier asks it, and the deployments that can take it, in order."""

    ask: Ask
    tier: Tier
    lanes: Sequence[Lane]
    keys: Sequence[bytes]
    """Of the answers that each of them would give."""


@dataclass(slots=True)
class _Walk:
    """How far one row has come."""

    way: Way
    funds: BatchFunds
    doors: asyncio.Semaphore
    """How many rows choose among the tier's deployments at a time."""
    share: int
    """What any attempt of the row can cost at most, in nano-dollars."""
    ends: float | None
    """By the loop's clock, when the row is given up; ``None`` is never."""
    row_seconds: float | None
    """How long the row may take from its first request on, until that has left."""
    patience: float
    """Seconds that the row still waits for open circuits and 429s."""
    tries: dict[str, Tries] = field(default_factory=lambda: defaultdict(Tries))
    """By deployment."""
    held: bool = False
    spent: int = 0
    failure: str = "no deployment"
    passed_over: PassedOver | None = None
    at_doors: bool = False

    def pass_over(self, lane: Lane, reason: str, failure: str) -> None:
        """The next deployment is asked instead; the ledger's row says so."""
        self.failure = failure
        self.passed_over = PassedOver(lane.name, reason)

    def is_last(self, lane: Lane) -> bool:
        """Whether no other deployment is left to ask after this one."""
        others = (other for other in self.way.lanes if other is not lane)
        return lane is self.way.lanes[-1] or all(self.tries[other.name].over for other in others)

    async def enter_doors(self) -> None:
        if not self.at_doors:
            await self.doors.acquire()
            self.at_doors = True

    def leave_doors(self) -> None:
        if self.at_doors:
            self.at_doors = False
            self.doors.release()


class Calls:
    """Asks deployments until one answers, for one job and one event loop."""

    def __init__(self, plan: Plan, attempts: Attempts, lanes: Lanes, giving_up: GivingUp) -> None:
        self._plan = plan
        self._giving_up = giving_up
        self._attempts = attempts
        self._rng = random.Random()  # noqa: S311 - spreads retries, keeps no secret
        # Rows choose a deployment late: who already stood in line at one would not hear that a better one is back.
        slots = {tier: sum(lane.deployment.concurrency for lane in found) for tier, found in lanes.items()}
        self._doors = {tier: asyncio.Semaphore(2 * count) for tier, count in slots.items()}

    async def reply(self, way: Way, funds: BatchFunds, ends: float | None) -> Reply:
        """The answer of the first deployment on the way that gives one.

        ``ends`` is when, by the loop's clock, the row's batch must be done.
        """
        share = max(self._attempts.bound(way.ask, lane) for lane in way.lanes)
        route = self._plan.route
        walk = _Walk(way, funds, self._doors[way.tier], share, ends, route.deadline.row, patience(route.retry))
        try:
            reply = await self._ask_all(walk)
        finally:
            walk.leave_doors()
        if walk.held:
            await funds.give_back(share)
        return replace(reply, cost_nano=walk.spent)

    async def _ask_all(self, walk: _Walk) -> Reply:
        """Ask one deployment after the other until one answers, the deadline has come, or none is left to ask.

        While all that are left rest, or answer with 429, the row waits until its patience is over.
        """
        way = walk.way
        try:
            while True:
                walk.passed_over = None  # each time, the first is asked first
                for lane, key in zip(way.lanes, way.keys, strict=True):
                    if walk.tries[lane.name].over:
                        continue
                    if (reply := await self._ask_lane(walk, lane, key)) is not None:
                        return reply
                if walk.patience <= 0 or all(walk.tries[lane.name].over for lane in way.lanes):
                    break
                walk.leave_doors()
                pause = _LOOK_AGAIN_SECONDS * self._rng.uniform(0.5, 1.5)
                walk.patience -= pause
                await in_time(asyncio.sleep(pause), walk.ends)
        except TimeoutError:
            walk.failure = f"deadline: no answer in the time that the route allows; before that: {walk.failure}"
        if (given_up := self._giving_up.job_error(way.lanes)) is not None:
            raise given_up
        return Reply(None, way.tier, way.lanes[-1], failure=walk.failure, status="error")

    async def _ask_lane(self, walk: _Walk, lane: Lane, key: bytes) -> Reply | None:
        """The deployment's answer or its final refusal; ``None`` where the next one is to be asked."""
        tier, tries = walk.way.tier, walk.tries[lane.name]
        tries.limited = 0
        while True:
            if not walk.held and (short := await in_time(walk.funds.room(walk.share), walk.ends)):
                reason = f"over_budget: no room left in budget {short}"
                over = Reply(None, tier, lane, failure=reason, status="over_budget")
                return replace(over, short_nano=walk.share)
            walk.held = True
            try:
                outcome = await self._attempt(walk, lane, key)
            except DeploymentGivenUp as given_up:
                tries.over = True
                walk.pass_over(lane, "given_up", f"given_up: {given_up}")
                return None
            except DeploymentResting as resting:
                walk.pass_over(lane, _OPEN, f"{_OPEN}: {resting}")
                return None
            except DeploymentStopped as stopped:
                tries.over = True
                walk.pass_over(lane, "deployment_stopped", f"deployment_stopped: {stopped}")
                return None
            except (PromptError, PrivacyError) as error:  # of its attachments
                kind = "prompt" if isinstance(error, PromptError) else "privacy"
                return Reply(None, tier, lane, failure=f"{kind}: {error}", status="error", permanent=True)
            if outcome.stored is not None:
                return Reply(outcome.stored, tier, lane)
            assert outcome.error is not None
            if isinstance(outcome.error, ParameterRefused):  # once per parameter; the hold is kept
                continue
            tries.count(outcome.error)
            decision = self._decide(outcome.error, walk, lane)
            walk.failure = _failure(outcome.error, lane, walk.ends)
            if decision == "give up" and not self._giving_up.given_up(lane.name):
                return Reply(None, tier, lane, failure=walk.failure, status="error", permanent=True, refused=True)
            if not isinstance(decision, Again):
                tries.over = decision != "later"
                walk.pass_over(lane, outcome.error.kind, walk.failure)
                return None
            if not uses_attempt(outcome.error):
                walk.patience -= decision.seconds
            await lane.gate.pause(decision.seconds)

    async def _attempt(self, walk: _Walk, lane: Lane, key: bytes) -> Outcome:
        await in_time(walk.enter_doors(), walk.ends)
        if walk.ends is not None and asyncio.get_running_loop().time() >= walk.ends:
            raise TimeoutError
        outcome, walk.ends = await self._attempts.make(
            walk.way.ask,
            walk.way.tier,
            lane,
            key,
            hold_id=walk.funds.hold_id,
            share=walk.share,
            ends=walk.ends,
            row_seconds=walk.row_seconds,
            seconds=walk.tries[lane.name].timeout(lane.deployment),
            passed_over=walk.passed_over,
            on_turn=walk.leave_doors,
        )
        walk.row_seconds = None
        walk.spent += outcome.cost_nano
        walk.held = outcome.still_held
        return outcome

    def _decide(self, error: VendorError, walk: _Walk, lane: Lane) -> Decision:
        last = walk.is_last(lane)
        return decide(
            error,
            walk.tries[lane.name],
            retry=self._plan.route.retry,
            deployment=lane.deployment,
            rng=self._rng,
            patience=walk.patience,
            last=last,
            seconds_left=_seconds_left(walk.ends),
            # Last deployment of the tier: the retry budget does not apply, only the circuit breaker.
            may_retry=(lambda: True) if last else lane.gate.may_retry,
        )


def _seconds_left(ends: float | None) -> float | None:
    return None if ends is None else ends - asyncio.get_running_loop().time()


def _failure(error: VendorError, lane: Lane, ends: float | None) -> str:
    """What the row says if this was its last request."""
    left = _seconds_left(ends)
    if error.kind != "timeout" or error.http_status is not None or (left is not None and left <= 0):
        return f"{error.kind}: {error}"
    return f"{error.kind}: {error}; raise deployments.{lane.name}.timeout or lower max_tokens"
