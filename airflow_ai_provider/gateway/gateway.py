"""The one path: prepare → reuse? → hold → pace → call → settle → check → restore.

Each row walks it as one coroutine; what the rows of a batch ask of the response store, the budgets and the ledger
travels in groups. Two rules carry the rest: nothing is sent before its attempt is durable in the ledger, and a slot is
given up only when the answer is safe in the response store, so that a crash loses at most the calls in flight.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from airflow_ai_provider.errors import PrivacyError, PromptError, VendorError
from airflow_ai_provider.gateway.answer import Answer, RowStatus
from airflow_ai_provider.gateway.checks import AnswerChecks
from airflow_ai_provider.gateway.funds import BatchFunds
from airflow_ai_provider.gateway.identity import attempt_id, request_id, reuse_scope, run_tag
from airflow_ai_provider.gateway.job import Caller, Row
from airflow_ai_provider.gateway.lanes import Lane
from airflow_ai_provider.gateway.prepare import Prepared, Preparer
from airflow_ai_provider.gateway.providers.base import ModelReply, ModelRequest
from airflow_ai_provider.gateway.recorder import Recorder
from airflow_ai_provider.gateway.retry import Again, Decision, decide
from airflow_ai_provider.gateway.reuse import ResponseStore, Stored
from airflow_ai_provider.ledger.attempts import OpenAttempt, Request, Settled
from airflow_ai_provider.ledger.holds import TaskRef
from airflow_ai_provider.ledger.journal import Journal
from airflow_ai_provider.ledger.money import Usage
from airflow_ai_provider.policy import TIERS, Budget, Route, Tier

_SCHEMA_OVERHEAD = 512
"""Tokens a vendor may add for a schema; Anthropic documents up to 346 for the tool it becomes there."""
log = logging.getLogger(__name__)

_BYTES_PER_TOKEN = 8
"""No tokenizer in use packs more text than this into a token on average: what is over it cannot fit a context."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is the same for every row of a job."""

    caller: Caller
    task: TaskRef
    team: str
    route_name: str
    route: Route
    budgets: Sequence[Budget]
    max_tokens: int
    output_schema: Mapping[str, object] | None
    owner: str
    """Names this process in the ledger."""


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


class Gateway:
    """Answers batches of rows for one job. For one event loop."""

    def __init__(
        self,
        plan: Plan,
        *,
        preparer: Preparer,
        lanes: Mapping[Tier, Sequence[Lane]],
        checks: AnswerChecks,
        store: ResponseStore,
        journal: Journal,
        recorder: Recorder,
    ) -> None:
        self._plan = plan
        self._preparer = preparer
        self._lanes = lanes
        self._by_name = {lane.name: lane for tier in lanes.values() for lane in tier}
        self._checks = checks
        self._store = store
        self._journal = journal
        self._recorder = recorder
        self._run = run_tag(plan.caller)
        schema = plan.output_schema
        self._schema_bytes = len(orjson.dumps(schema)) + _SCHEMA_OVERHEAD if schema else 0
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
            caller=self._plan.caller,
        )
        batch = await self._recorder.batch_started(len(rows))
        try:
            walks = (self._walk(row, key, funds) for row, key in zip(rows, row_keys, strict=True))
            outcomes = await asyncio.gather(*walks, return_exceptions=True)
        finally:
            await asyncio.shield(funds.close())
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        if reused := [answer for answer in answers if answer.reused]:
            saved = sum(answer.saved_nano for answer in reused)
            self._recorder.batch_reused(batch, [answer.request_id for answer in reused], saved)
        await self._recorder.flush()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return answers

    async def _walk(self, row: Row, row_key: str, funds: BatchFunds) -> Answer:
        """One row along the whole path."""
        name = request_id(self._plan.caller, row_key, self._plan.route_name)
        try:
            prepared = self._preparer.prepare(row, row_key)
        except (PromptError, PrivacyError) as error:
            kind = "prompt" if isinstance(error, PromptError) else "privacy"
            return Answer("error", name, error=f"{kind}: {error}")
        reply = await self._reply(prepared, prepared.tier, name, funds)
        problem = self._problem(prepared, reply)
        spent, upper = reply.cost_nano, self._plan.route.escalate.to
        if problem and upper is not None and TIERS.index(upper) > TIERS.index(prepared.tier):
            reply = await self._reply(prepared, upper, name, funds)
            spent += reply.cost_nano
            problem = self._problem(prepared, reply)
        return self._answer(prepared, reply, name, problem, spent)

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
        )

    async def _reply(self, prepared: Prepared, tier: Tier, name: str, funds: BatchFunds) -> _Reply:
        """A tier's answer: from whoever is asking the same, from the store, or by calling."""
        lanes = self._lanes[tier]
        scope = reuse_scope(self._plan.route, self._plan.team, self._plan.caller, prepared.row_key)
        keys = [lane.key.of(scope, prepared.messages) for lane in lanes]
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
            reply = await self._call(prepared, tier, name, funds, keys)
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
        return _Reply(stored, tier, lane, reused=True)

    async def _call(
        self, prepared: Prepared, tier: Tier, name: str, funds: BatchFunds, keys: Sequence[bytes]
    ) -> _Reply:
        """Lane after lane, attempt after attempt, until one answers or none is left."""
        lanes = self._lanes[tier]
        share = max(self._bound(prepared, lane) for lane in lanes)
        held, spent, failure = False, 0, "no deployment"
        for lane, key in zip(lanes, keys, strict=True):
            if (limit := lane.facts.context_tokens) and prepared.size / _BYTES_PER_TOKEN > limit:
                failure = f"context_window: the row needs more than the {limit} tokens that {lane.name} takes"
                continue
            attempt = 0
            while True:
                if not held and (short := await funds.room(share)):
                    reason = f"over_budget: no room left in budget {short}"
                    return _Reply(None, tier, lane, cost_nano=spent, failure=reason, status="over_budget")
                attempt += 1
                outcome = await self._attempt(prepared, tier, name, lane, key, funds.hold_id, share, attempt)
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
        return _Reply(None, tier, lanes[-1], cost_nano=spent, failure=failure, status="error")

    def _bound(self, prepared: Prepared, lane: Lane) -> int:
        return lane.facts.rate.bound(
            input_bytes=prepared.size + self._schema_bytes,  # a token is a byte at least
            messages=len(prepared.messages),
            max_tokens=self._plan.max_tokens,
        )

    async def _attempt(
        self, prepared: Prepared, tier: Tier, name: str, lane: Lane, key: bytes, hold_id: str, share: int, number: int
    ) -> _Attempted:
        """One HTTP request, the lane's ``number``-th for the row: open, send, store, settle."""
        request = self._request(prepared, tier, name, lane)
        expected = prepared.size // 4 + self._plan.max_tokens
        async with lane.pacer.slots:
            await lane.pacer.wait(expected)
            attempt = OpenAttempt(attempt_id(), hold_id, share, datetime.now(UTC), request)
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
                settled = self._succeeded(attempt, lane, reply, started)
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
            max_tokens=self._plan.max_tokens,
            output_schema=self._plan.output_schema,
            timeout=lane.deployment.timeout,
        )

    def _succeeded(self, attempt: OpenAttempt, lane: Lane, reply: ModelReply, started: float) -> Settled:
        """The vendor's figure at the lane's price; without a figure the whole hold, until it is known."""
        cost = lane.facts.rate.cost(reply.usage) if reply.usage else attempt.bound_nano
        if cost > attempt.bound_nano:
            log.error("%s charged more than its upper bound for attempt %s", lane.name, attempt.attempt_id)
        return Settled(
            attempt.attempt_id,
            datetime.now(UTC),
            attempt.request,
            "ok" if reply.usage else "unknown",
            reply.usage,
            cost_nano=cost,
            latency_ms=_milliseconds(started),
            error_type=None if reply.usage else "no_usage",
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
        self._recorder.call(settled, prompt=prepared.text, answer=text)
        await self._journal.settle([settled])

    def _request(self, prepared: Prepared, tier: Tier, name: str, lane: Lane) -> Request:
        return Request(
            request_id=name,
            task=self._plan.task,
            row_key=prepared.row_key,
            route=self._plan.route_name,
            tier=tier,
            deployment=lane.name,
            model=lane.deployment.model,
            provider=lane.deployment.provider,
            price_version=lane.facts.rate.version,
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
    return round((time.monotonic() - started) * 1000)
