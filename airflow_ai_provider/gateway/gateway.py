"""The one path: prepare → reuse? → hold → pace → call → settle → check → restore.

Each row walks it as one coroutine; what the rows of a batch ask of the response store, the budgets and the ledger
travels in groups. Two rules carry the rest: nothing is sent before its attempt is durable in the ledger, and a slot is
given up only when the answer is safe in the response store, so that a crash loses at most the calls in flight.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal

from airflow_ai_provider.errors import DeploymentStopped, PrivacyError, PromptError, RoutingError, VendorError
from airflow_ai_provider.gateway.answer import Answer, RowStatus
from airflow_ai_provider.gateway.checks import AnswerChecks
from airflow_ai_provider.gateway.funds import BatchFunds
from airflow_ai_provider.gateway.identity import arm_scope, attempt_id, request_id, reuse_scope, run_tag
from airflow_ai_provider.gateway.job import Caller, Row
from airflow_ai_provider.gateway.lanes import Lane, schema_bytes
from airflow_ai_provider.gateway.prepare import Prepared, Preparer
from airflow_ai_provider.gateway.providers.base import ModelReply, ModelRequest
from airflow_ai_provider.gateway.recorder import Recorder
from airflow_ai_provider.gateway.retry import Again, Decision, decide
from airflow_ai_provider.gateway.reuse import ResponseStore, Stored
from airflow_ai_provider.gateway.routing import Router
from airflow_ai_provider.ledger.attempts import OpenAttempt, Request, Settled
from airflow_ai_provider.ledger.holds import TaskRef
from airflow_ai_provider.ledger.journal import Journal
from airflow_ai_provider.ledger.limits import LimitChange
from airflow_ai_provider.ledger.money import Usage
from airflow_ai_provider.ledger.notices import Notice
from airflow_ai_provider.policy import TIERS, Budget, Route, Tier

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is the same for every row of a job."""

    caller: Caller
    task: TaskRef
    team: str
    route_name: str
    route: Route
    budgets: Sequence[Budget]
    output_schema: Mapping[str, object] | None
    owner: str
    """Names this process in the ledger."""
    read_at: datetime
    """When the policy, and with it ``budgets``, was read."""


@dataclass(frozen=True, slots=True)
class _Reply:
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


class Gateway:
    """Answers batches of rows for one job. For one event loop."""

    def __init__(
        self,
        plan: Plan,
        *,
        preparer: Preparer,
        router: Router,
        lanes: Mapping[Tier, Sequence[Lane]],
        checks: AnswerChecks,
        store: ResponseStore,
        journal: Journal,
        recorder: Recorder,
        on_notice: Callable[[Notice], None] = lambda _: None,
    ) -> None:
        self._plan = plan
        self._preparer = preparer
        self._router = router
        self._lanes = lanes
        self._by_tier = {tier: {lane.name: lane for lane in found} for tier, found in lanes.items()}
        self._by_name = {lane.name: lane for tier in lanes.values() for lane in tier}
        self._baseline = lanes[max(lanes, key=TIERS.index)][0].facts.rate
        self._checks = checks
        self._store = store
        self._journal = journal
        self._recorder = recorder
        self._on_notice = on_notice
        self._run = run_tag(plan.caller)
        self._schema_bytes = schema_bytes(plan.output_schema)
        self._line = asyncio.Lock()
        self._in_flight: dict[bytes, asyncio.Future[Stored | None]] = {}
        self._rng = random.Random()  # noqa: S311 - spreads retries, keeps no secret

    async def answer(self, rows: Sequence[Row], row_keys: Sequence[str]) -> list[Answer]:
        """Answers in the order of the rows. A bad row is an answer with status ``error``.

        Raises ``LedgerUnavailable``, ``LedgerError`` or ``AuditError`` where no call may be made at all; every call
        that was under way then is finished and settled first.
        """
        funds = BatchFunds(
            self._journal,
            owner=self._plan.owner,
            task=self._plan.task,
            budgets=self._plan.budgets,
            read_at=self._plan.read_at,
            caller=self._plan.caller,
            route=self._plan.route_name,
            line=self._line,
        )
        await self._recorder.batch_started(len(rows))
        try:
            walks = (self._walk(row, key, funds) for row, key in zip(rows, row_keys, strict=True))
            outcomes = await asyncio.gather(*walks, return_exceptions=True)
        finally:
            notices = await asyncio.shield(funds.close())
            self._tell(funds.limit_changes, notices)
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        self._recorder.batch_reused()
        await self._recorder.flush()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return answers

    def _tell(self, changes: Sequence[LimitChange], notices: Sequence[Notice]) -> None:
        for change in changes:
            self._recorder.limit_changed(change)
        for notice in notices:
            self._recorder.threshold_crossed(notice)
            self._on_notice(notice)

    async def _walk(self, row: Row, row_key: str, funds: BatchFunds) -> Answer:
        """One row along the whole path."""
        name = request_id(self._plan.caller, row_key, self._plan.route_name)
        try:
            prepared = self._preparer.prepare(row, row_key)
        except (PromptError, PrivacyError) as error:
            kind = "prompt" if isinstance(error, PromptError) else "privacy"
            return Answer("error", name, error=f"{kind}: {error}")
        reply = await self._affordable(prepared, name, funds)
        problem = self._problem(prepared, reply)
        spent, upper = reply.cost_nano, self._plan.route.escalate.to
        if problem and upper is not None and TIERS.index(upper) > TIERS.index(reply.tier):
            reply = await self._reply(prepared, upper, name, funds)
            spent += reply.cost_nano
            problem = self._problem(prepared, reply)
        return self._answer(prepared, reply, name, problem, spent)

    async def _affordable(self, prepared: Prepared, name: str, funds: BatchFunds) -> _Reply:
        """The answer of the row's tier or, where that has no room and the route says so, of the next cheaper one."""
        tier: Tier | None = prepared.tier
        spent = 0
        while True:
            assert tier is not None
            reply = await self._reply(prepared, tier, name, funds)
            spent += reply.cost_nano
            below = self._plan.route.tier_below(tier)
            if reply.status != "over_budget" or self._plan.route.over_budget != "cheaper" or below is None:
                return replace(reply, cost_nano=spent)
            tier = below

    def _problem(self, prepared: Prepared, reply: _Reply) -> str | None:
        if reply.stored is None:
            return None
        try:
            return self._checks.problem(reply.stored.text, prepared.text, prepared.report)
        except PrivacyError as failure:
            return f"restore: {failure}"

    def _answer(self, prepared: Prepared, reply: _Reply, name: str, problem: str | None, spent: int) -> Answer:
        stored, status, error, text = reply.stored, reply.status, reply.failure, None
        if stored is not None:
            status, error = ("rejected", problem) if problem else ("ok", None)
            try:
                text = prepared.restored(stored.text)
            except PrivacyError as failure:
                status, error = "error", f"privacy: {failure}"
        return Answer(
            status,
            name,
            text=text,
            error=error,
            tier=reply.tier,
            deployment=reply.lane.name,
            model=reply.lane.deployment.model,
            reused=reply.reused,
            usage=Usage(stored.input_tokens, stored.output_tokens) if stored and not reply.reused else None,
            cost_nano=spent,
            saved_nano=stored.cost_nano if stored and reply.reused else 0,
            short_nano=reply.short_nano,
        )

    async def _reply(self, prepared: Prepared, tier: Tier, name: str, funds: BatchFunds) -> _Reply:
        """A tier's answer: from whoever is asking the same, from the store, or by calling."""
        prepared = prepared.at(tier)
        try:
            order = self._router.order(tier, prepared.needs, prepared.row_key)
        except RoutingError as error:
            failure = f"{error.reason}: {error}"
            return _Reply(None, tier, self._lanes[tier][0], failure=failure, status="error")
        lanes = [self._by_tier[tier][name] for name in order]
        scope = reuse_scope(self._plan.route, self._plan.team, self._plan.caller, prepared.row_key)
        arms = self._router.stands_for(tier, order)
        keys = [
            lane.key.of(scope if arm is None else arm_scope(scope, arm), prepared.messages)
            for lane, arm in zip(lanes, arms, strict=True)
        ]
        while (asked := self._in_flight.get(keys[0])) is not None:
            if (stored := await asyncio.shield(asked)) is not None:
                return await self._reused(prepared, tier, name, stored)
        mine = self._in_flight[keys[0]] = asyncio.get_running_loop().create_future()
        answer: Stored | None = None
        try:
            reuse = self._plan.route.reuse
            ttl = reuse.ttl if reuse.scope != "off" else 0
            answer = await self._store.find(keys, run=self._run, ttl=ttl)
            if answer is not None:
                return await self._reused(prepared, tier, name, answer)
            reply = await self._call(prepared, tier, name, funds, lanes, keys)
            answer = reply.stored
            return reply
        except BaseException as error:
            funds.stop_waiting(error)
            raise
        finally:
            del self._in_flight[keys[0]]
            mine.set_result(answer)

    async def _reused(self, prepared: Prepared, tier: Tier, name: str, stored: Stored) -> _Reply:
        lane = self._by_name.get(stored.deployment, self._lanes[tier][0])
        settled = Settled(
            attempt_id(),
            datetime.now(UTC),
            self._request(prepared, tier, name, lane),
            "reused",
            Usage(0, 0),
            saved_nano=stored.cost_nano,
        )
        await self._journal.settle([settled])
        self._recorder.reused(name, stored.cost_nano)
        return _Reply(stored, tier, lane, reused=True)

    async def _call(
        self,
        prepared: Prepared,
        tier: Tier,
        name: str,
        funds: BatchFunds,
        lanes: Sequence[Lane],
        keys: Sequence[bytes],
    ) -> _Reply:
        """Lane after lane, attempt after attempt, until one answers or none is left."""
        share = max(self._bound(prepared, lane) for lane in lanes)
        held, spent, failure = False, 0, "no deployment"
        for lane, key in zip(lanes, keys, strict=True):
            attempt = 0
            while True:
                if not held and (short := await funds.room(share)):
                    reason = f"over_budget: no room left in budget {short}"
                    over = _Reply(None, tier, lane, cost_nano=spent, failure=reason, status="over_budget")
                    return replace(over, short_nano=share)
                attempt += 1
                held = True
                try:
                    outcome = await self._attempt(prepared, tier, name, lane, key, funds.hold_id, share, attempt)
                except DeploymentStopped as stopped:
                    failure = f"deployment_stopped: {stopped}"
                    break  # its share serves the next deployment
                spent, held = spent + outcome.cost_nano, outcome.still_held
                if outcome.stored is not None:
                    return _Reply(outcome.stored, tier, lane, cost_nano=spent)
                assert outcome.error is not None
                failure = f"{outcome.error.kind}: {outcome.error}"
                if outcome.decision == "give up":
                    return _Reply(None, tier, lane, cost_nano=spent, failure=failure, status="error")
                if not isinstance(outcome.decision, Again):
                    break
                await asyncio.sleep(outcome.decision.seconds)
        if held:
            await funds.give_back(share)
        return _Reply(None, tier, lanes[-1], cost_nano=spent, failure=failure, status="error")

    def _bound(self, prepared: Prepared, lane: Lane) -> int:
        return lane.bound(prepared.needs, schema=self._schema_bytes, messages=len(prepared.messages))

    async def _attempt(
        self, prepared: Prepared, tier: Tier, name: str, lane: Lane, key: bytes, hold_id: str, share: int, number: int
    ) -> _Attempted:
        """One HTTP request, the lane's ``number``-th for the row: open, send, store, settle."""
        request = self._request(prepared, tier, name, lane)
        expected = prepared.size // 4 + lane.terms.max_tokens
        async with lane.pacer.slots:
            await lane.pacer.wait(expected)
            attempt = OpenAttempt(attempt_id(), hold_id, share, datetime.now(UTC), request)
            self._recorder.ensure_durable()
            await self._journal.open(attempt)
            started = time.monotonic()
            try:
                reply = await lane.provider.complete(self._model_request(attempt.attempt_id, prepared, lane))
            except VendorError as error:
                if error.retry_after:
                    lane.pacer.cool_down(error.retry_after)
                decision = decide(error, attempt=number, retry=self._plan.route.retry, rng=self._rng)
                settled = self._failed(attempt, error, started, goes_on=isinstance(decision, Again))
                outcome = _Attempted(None, error, settled.cost_nano, decision, settled.keeps_hold)
            else:
                settled = self._succeeded(attempt, lane, reply, started, escalated=tier != prepared.tier)
                if reply.usage:
                    lane.pacer.used(expected=expected, actual=reply.usage.input + reply.usage.output)
                stored = self._stored(reply, lane, settled.cost_nano)
                await self._store.keep(key, stored, ttl=self._plan.route.reuse.ttl)
                outcome = _Attempted(stored, None, settled.cost_nano)
        await self._settle(settled, prepared, outcome.stored.text if outcome.stored else None)
        return outcome

    def _model_request(self, attempt: str, prepared: Prepared, lane: Lane) -> ModelRequest:
        return ModelRequest(
            attempt_id=attempt,
            messages=prepared.messages,
            max_tokens=lane.terms.max_tokens,
            output_schema=self._plan.output_schema,
            timeout=lane.deployment.timeout,
        )

    def _succeeded(
        self, attempt: OpenAttempt, lane: Lane, reply: ModelReply, started: float, *, escalated: bool
    ) -> Settled:
        """The vendor's figure at the lane's price; without a figure the whole hold, until it is known.

        A row counts once in the baseline: with the highest tier alone it would not have been asked twice.
        """
        latency = _milliseconds(started)
        seconds = Decimal(latency) / 1000  # as the row has it, so that the row alone tells what it cost
        cost = lane.facts.rate.cost(reply.usage, seconds) if reply.usage else attempt.bound_nano
        if cost > attempt.bound_nano:
            log.error(
                "%s charged more than its upper bound for attempt %s; it is stopped until somebody resumes it",
                lane.name,
                attempt.attempt_id,
            )
            self._recorder.deployment_stopped(lane.name)
        return Settled(
            attempt.attempt_id,
            datetime.now(UTC),
            attempt.request,
            "ok" if reply.usage else "unknown",
            reply.usage,
            cost_nano=cost,
            latency_ms=latency,
            error_type=None if reply.usage else "no_usage",
            baseline_nano=self._baseline.cost(reply.usage, seconds) if reply.usage and not escalated else 0,
            vendor_request_id=reply.vendor_id,
        )

    def _failed(self, attempt: OpenAttempt, error: VendorError, started: float, *, goes_on: bool) -> Settled:
        """A definite refusal costs nothing. Its share stays held for the next attempt or, without one, is released:
        other rows may be waiting for the room."""
        return Settled(
            attempt.attempt_id,
            datetime.now(UTC),
            attempt.request,
            "unknown" if error.billed else "error",
            None if error.billed else Usage(0, 0),
            cost_nano=attempt.bound_nano if error.billed else 0,
            latency_ms=_milliseconds(started),
            error_type=error.kind,
            keeps_hold=goes_on and not error.billed,
        )

    def _stored(self, reply: ModelReply, lane: Lane, cost_nano: int) -> Stored:
        usage = reply.usage or Usage(0, 0)
        return Stored(
            text=reply.text,
            deployment=lane.name,
            finish_reason=reply.finish_reason,
            input_tokens=usage.input,
            output_tokens=usage.output,
            cost_nano=cost_nano,
            run=self._run,
            created_at=int(time.time()),
        )

    async def _settle(self, settled: Settled, prepared: Prepared, text: str | None) -> None:
        """The event first: what the ledger says was paid is in the trail, also when the process dies in between."""
        self._recorder.call(settled, prompt=prepared.text, answer=text)
        await self._recorder.flush()
        await self._journal.settle([settled])

    def _request(self, prepared: Prepared, tier: Tier, name: str, lane: Lane) -> Request:
        return Request(
            request_id=name,
            task=self._plan.task,
            row_key=prepared.row_key.replace("\0", "\ufffd"),  # PostgreSQL keeps no NUL
            route=self._plan.route_name,
            tier=tier,
            deployment=lane.name,
            model=lane.deployment.model,
            provider=lane.deployment.provider,
            price_version=lane.facts.rate.version,
            prompt_bytes=prepared.size + self._schema_bytes,
        )


@dataclass(frozen=True, slots=True)
class _Attempted:
    """What one HTTP request came to."""

    stored: Stored | None
    error: VendorError | None
    cost_nano: int
    decision: Decision | None = None
    """What follows an error."""
    still_held: bool = False
    """The attempt's share of the hold serves the next one."""


def _milliseconds(started: float) -> int:
    """Rounded up: a price per second is charged on it."""
    return math.ceil((time.monotonic() - started) * 1000)
