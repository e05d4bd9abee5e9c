"""One HTTP request to one deployment: pace → open → send → store → settle.

Two rules carry the rest: nothing is sent before its attempt is durable in the ledger, and a slot is given up only when
the answer is safe in the response store, so that a crash loses at most the calls in flight.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import TypeVar

from airflow_ai_provider.errors import DeploymentResting, JobStopped, VendorError, VendorTransientError
from airflow_ai_provider.gateway.charging import charge_of
from airflow_ai_provider.gateway.endings import EMPTY, is_blank, reason_against
from airflow_ai_provider.gateway.escalation import kind_of
from airflow_ai_provider.gateway.giving_up import GivingUp
from airflow_ai_provider.gateway.identity import attempt_id
from airflow_ai_provider.gateway.job import Caller, Message
from airflow_ai_provider.gateway.lanes import Lane, Lanes, schema_bytes
from airflow_ai_provider.gateway.prepare import Prepared
from airflow_ai_provider.gateway.providers.base import Claims, ModelReply, ModelRequest
from airflow_ai_provider.gateway.recorder import Recorder
from airflow_ai_provider.gateway.reuse import ResponseStore, Stored
from airflow_ai_provider.gateway.routing import attachment_tokens
from airflow_ai_provider.gateway.stopping import Walks
from airflow_ai_provider.gateway.tokens import tokens_of
from airflow_ai_provider.gateway.tools import tools_bytes
from airflow_ai_provider.gateway.traffic import Pass
from airflow_ai_provider.ledger.attempts import OpenAttempt, Request, Settled
from airflow_ai_provider.ledger.holds import TaskRef
from airflow_ai_provider.ledger.journal import Journal
from airflow_ai_provider.ledger.money import Usage
from airflow_ai_provider.policy import TIERS, Budget, Route, Tier
from airflow_ai_provider.policy.loading import PolicyFile

log = logging.getLogger(__name__)

T = TypeVar("T")


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
    tools: Sequence[Mapping[str, object]]
    tool_choice: str | Mapping[str, object] | None
    owner: str
    """Names this process in the ledger."""
    read_at: datetime
    """When the policy, and with it ``budgets``, was read."""
    stated_in: Callable[[Budget], PolicyFile | None]
    """Gives the policy file that says a budget."""
    run: str
    """Tag of the run, which finds again whatever it has paid for."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A row's request, and its name in the ledger."""

    prepared: Prepared
    name: str


@dataclass(frozen=True, slots=True)
class PassedOver:
    """The deployment that was preferred to the one that is asked, and why it is not asked."""

    deployment: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one HTTP request came to."""

    stored: Stored | None
    error: VendorError | None
    cost_nano: int
    still_held: bool = False
    """The attempt cost nothing; its share of the hold may serve the next one."""


class Attempts:
    """Makes single attempts, for one job and one event loop."""

    def __init__(
        self,
        plan: Plan,
        lanes: Lanes,
        store: ResponseStore,
        journal: Journal,
        recorder: Recorder,
        walks: Walks,
        giving_up: GivingUp,
    ) -> None:
        self._plan = plan
        self._baseline = lanes[max(lanes, key=TIERS.index)][0].facts.rate
        self._store = store
        self._journal = journal
        self._recorder = recorder
        self._walks = walks
        self._giving_up = giving_up
        self._noted: set[tuple[str, str]] = set()
        self._schema_bytes = schema_bytes(plan.output_schema) + tools_bytes(plan.tools)

    def bound(self, ask: Ask, lane: Lane) -> int:
        """The most that asking a lane can cost, in nano-dollars."""
        return lane.bound(ask.prepared.needs, schema=self._schema_bytes, messages=len(ask.prepared.messages))

    async def make(
        self,
        ask: Ask,
        tier: Tier,
        lane: Lane,
        key: bytes,
        *,
        hold_id: str,
        share: int,
        ends: float | None,
        row_seconds: float | None,
        seconds: int,
        passed_over: PassedOver | None,
        on_turn: Callable[[], None],
    ) -> tuple[Outcome, float | None]:
        """One request. ``share`` of the hold is its own; it is used up unless the outcome says ``still_held``.

        ``ends`` is when the row is given up; ``row_seconds`` brings that nearer, to so long after the request leaves.
        ``seconds`` is how long the answer may take. ``on_turn`` is called once the request may leave. Returns
        what came of it, and when the row is given up now.

        Raises ``DeploymentResting``, ``DeploymentStopped``, ``JobStopped`` or ``TimeoutError`` where nothing was sent;
        then the share is untouched; so with ``PromptError`` and ``PrivacyError``, where an attachment cannot be read.
        """
        prepared = ask.prepared
        expected = tokens_of(prepared.text, prepared.size) + attachment_tokens(lane.deployment, prepared.needs)
        entering = lane.gate.enter(input_tokens=expected, output_tokens=lane.terms.max_tokens)
        turn = await in_time(entering, ends)
        on_turn()
        if row_seconds is not None:
            ends = min(asyncio.get_running_loop().time() + row_seconds, ends or math.inf)
        with self._walks.sending():
            try:
                self._walks.check()
                request = self.request(ask, tier, lane, passed_over)
                opened_at = self._journal.now()
                attempt = OpenAttempt(attempt_id(opened_at), hold_id, share, opened_at, request)
                messages = await prepared.wire_messages()
                self._walks.check()
                self._recorder.ensure_durable()
                await self._journal.open(attempt)
            except BaseException:
                turn.unused()
                turn.leave()
                raise
            if unsent := await self._departed(turn, ends):
                turn.unused()
                turn.leave()
                stopped = VendorTransientError(f"{lane.name}: stopped before it was sent", kind="stopped")
                await self._settle(self._failed(attempt, stopped, time.monotonic()), prepared, None)
                raise unsent
            started = time.monotonic()
            try:
                sent = self._model_request(attempt.attempt_id, messages, lane, seconds, ends)
                outcome, settled = await self._send(turn, ask, tier, lane, sent, key, attempt, started)
            finally:
                turn.leave()
            await self._settle(settled, prepared, outcome.stored.text if outcome.stored else None)
        return outcome, ends

    async def _departed(self, turn: Pass, ends: float | None) -> BaseException | None:
        """Wait until an open attempt may leave; returns why it may not."""
        try:
            await turn.depart()
        except (DeploymentResting, asyncio.CancelledError) as reason:
            return reason
        if self._walks.stopping:
            return JobStopped()
        if ends is not None and asyncio.get_running_loop().time() >= ends:
            return TimeoutError()
        return None

    async def _send(
        self,
        turn: Pass,
        ask: Ask,
        tier: Tier,
        lane: Lane,
        sent: ModelRequest,
        key: bytes,
        attempt: OpenAttempt,
        started: float,
    ) -> tuple[Outcome, Settled]:
        """The answer, safe in the response store; or the error. Returns what the ledger is to say of it."""
        try:
            reply = await lane.provider.complete(sent)
        except VendorError as error:
            turn.failed(error, time.monotonic() - started)
            self._giving_up.failed(lane.name, error)
            settled = self._failed(attempt, error, started)
            return Outcome(None, error, settled.cost_nano, still_held=settled.keeps_hold), settled
        except asyncio.CancelledError:
            cut = VendorTransientError(f"{lane.name}: stopped before it answered", kind="stopped", billed=True)
            await self._settle(self._failed(attempt, cut, started), ask.prepared, None)
            raise
        # At once: news of an answer that waits for the store would come after failures that were later.
        turn.answered(usage=reply.usage, limits=reply.limits, seconds=time.monotonic() - started)
        self._giving_up.answered(lane.name)
        # A loop that was held up sees an answer late; the vendor had no more than the time-out to make it.
        latency = min(_milliseconds(started), math.ceil(sent.timeout * 1000))
        settled = self._succeeded(attempt, lane, reply, latency, escalated=tier != ask.prepared.tier)
        stored = self._stored(reply, ask.prepared, lane, settled)
        await self._store.keep(key, stored, ttl=self._plan.route.reuse.ttl)
        return Outcome(stored, None, settled.cost_nano), settled

    def _model_request(
        self, attempt: str, messages: Sequence[Message], lane: Lane, timeout: float, ends: float | None
    ) -> ModelRequest:
        if ends is not None:
            timeout = max(0.001, min(timeout, ends - asyncio.get_running_loop().time()))
        return ModelRequest(
            attempt_id=attempt,
            messages=messages,
            max_tokens=lane.terms.max_tokens,
            output_schema=self._plan.output_schema,
            timeout=float(timeout),
            params=lane.terms.params,
            tools=self._plan.tools,
            tool_choice=self._plan.tool_choice,
        )

    def _succeeded(
        self, attempt: OpenAttempt, lane: Lane, reply: ModelReply, latency: int, *, escalated: bool
    ) -> Settled:
        """What the ledger says of an answer. ``error_type`` says why it is no good, or why its cost is not known.

        A row counts once in the baseline: with the highest tier alone it would not have been asked twice.
        """
        seconds = Decimal(latency) / 1000  # as the row has it, so that the row alone tells what it cost
        charge = charge_of(reply, lane.facts, lane.deployment, bound_nano=attempt.bound_nano, seconds=seconds)
        if charge.cost_nano > attempt.bound_nano:
            log.error(
                "%s charged more than its upper bound for attempt %s; it is stopped until it is resumed "
                "(airflow ai deployments resume)",
                lane.name,
                attempt.attempt_id,
            )
            self._recorder.deployment_stopped(lane.name)
        self._note(lane, reply.claims, charge.notes)
        usage = charge.usage
        return Settled(
            attempt.attempt_id,
            self._journal.now(),
            replace(attempt.request, price_version=charge.price_version),
            "unknown" if charge.unknown else "ok",
            usage,
            cost_nano=charge.cost_nano,
            latency_ms=latency,
            error_type=charge.unknown or _fault_of(reply),
            baseline_nano=self._baseline.cost(replace(usage, other=()), seconds) if usage and not escalated else 0,
            vendor_request_id=reply.vendor_id,
        )

    def _note(self, lane: Lane, claims: Claims, notes: Sequence[str]) -> None:
        """Tell the log and the trail, once for each deployment and job, what answers have that was not asked for."""
        for note in notes:
            if (lane.name, note) in self._noted:
                continue
            self._noted.add((lane.name, note))
            said = {"model": claims.model, "service_tier": claims.service_tier, "cost": "more than its tokens cost"}[
                note
            ]
            log.warning(
                "%s: an answer says %s %s, not what was asked for; such calls are charged at the higher figure, or at "
                "their whole hold where none is known",
                lane.name,
                note.replace("_", " "),
                said,
            )
            self._recorder.answer_differs(
                lane.name, reason=note, model=lane.deployment.model, response_model=claims.model
            )

    def _failed(self, attempt: OpenAttempt, error: VendorError, started: float) -> Settled:
        """A definite refusal costs nothing, and its share stays held for the next attempt."""
        return Settled(
            attempt.attempt_id,
            self._journal.now(),
            attempt.request,
            "unknown" if error.billed else "error",
            None if error.billed else Usage(0, 0),
            cost_nano=attempt.bound_nano if error.billed else 0,
            latency_ms=_milliseconds(started),
            error_type=error.kind,
            keeps_hold=not error.billed,
        )

    def _stored(self, reply: ModelReply, prepared: Prepared, lane: Lane, settled: Settled) -> Stored:
        usage = settled.usage or Usage(0, 0)
        rejected_as_empty = _fault_of(reply) == EMPTY and EMPTY in self._plan.route.escalate.on
        return Stored(
            text=reply.text,
            deployment=lane.name,
            finish_reason=EMPTY if rejected_as_empty else reply.finish_reason,
            input_tokens=usage.input,
            output_tokens=usage.output,
            cost_nano=settled.cost_nano,
            run=self._plan.run,
            created_at=int(time.time()),
            cached_input_tokens=usage.cached_input,
            team=self._plan.team,
            tokens=tuple(prepared.mask.tokens) if prepared.mask else (),
            scope=prepared.mask.scope if prepared.mask else "",
            tool_calls=tuple(reply.tool_calls),
        )

    async def _settle(self, settled: Settled, prepared: Prepared, text: str | None) -> None:
        """The event first: what the ledger says was paid is in the trail, also when the process dies in between."""
        self._recorder.call(settled, prompt=prepared.evidence, answer=text)
        await self._recorder.flush_in_time()  # nobody waits for this: the slot is free and the answer is safe
        await self._journal.settle([settled])

    def request(self, ask: Ask, tier: Tier, lane: Lane, passed_over: PassedOver | None = None) -> Request:
        """What the ledger says of a row's request to a lane."""
        prepared = ask.prepared
        return Request(
            request_id=ask.name,
            task=self._plan.task,
            row_key=prepared.row_key.replace("\0", "\ufffd"),  # PostgreSQL keeps no NUL
            route=self._plan.route_name,
            tier=tier,
            deployment=lane.name,
            model=lane.deployment.model,
            provider=lane.deployment.provider,
            price_version=lane.facts.rate.version,
            prompt_bytes=prepared.size + self._schema_bytes,
            routed_by=prepared.routed_by,
            fallback_from=passed_over.deployment if passed_over else None,
            fallback_reason=passed_over.reason if passed_over else None,
        )


def _fault_of(reply: ModelReply) -> str | None:
    """Why an answer is no good, whatever the job's checks make of it; ``None`` for a whole one."""
    blank = is_blank(reply.text) and not reply.tool_calls
    if reason := reason_against(reply.finish_reason, has_text=not blank):
        return kind_of(reason)
    return EMPTY if blank else None


async def in_time(waiting: Awaitable[T], ends: float | None) -> T:
    """What is waited for. Raises ``TimeoutError`` where it ``ends``, by the loop's clock, without."""
    if ends is None:
        return await waiting
    async with asyncio.timeout_at(ends):
        return await waiting


def _milliseconds(started: float) -> int:
    """Rounded up: a price per second is charged on it."""
    return math.ceil((time.monotonic() - started) * 1000)
