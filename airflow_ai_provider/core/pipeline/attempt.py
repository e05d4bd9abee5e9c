"""One HTTP request to one deployment: admit → open → send → store → settle.

Two rules carry the rest: nothing is sent before its attempt is durable in the ledger, and a permit is given back only
when the answer is safe in the response store, so that a crash loses at most the calls in flight.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_ai_provider.core.cache import ResponseStore, Stored
from airflow_ai_provider.core.errors import (
    DeploymentResting,
    JobStopped,
    VendorError,
    VendorPermanentError,
    VendorTransientError,
)
from airflow_ai_provider.core.job import Message
from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, Settled
from airflow_ai_provider.core.ledger.attempts.group_commit import Journal
from airflow_ai_provider.core.pipeline.audit_log import AuditLog
from airflow_ai_provider.core.pipeline.deployments import OpenDeployment, OpenTiers
from airflow_ai_provider.core.pipeline.failure_limits import GivingUp
from airflow_ai_provider.core.pipeline.in_flight import InFlight, in_time
from airflow_ai_provider.core.pipeline.job_context import JobContext
from airflow_ai_provider.core.pipeline.row import RowState
from airflow_ai_provider.core.pipeline.settlement import Settlement
from airflow_ai_provider.core.prompts.text import tokens_of
from airflow_ai_provider.core.providers.base import Claims, ModelReply, ModelRequest
from airflow_ai_provider.core.ratelimit import Pass
from airflow_ai_provider.core.routing.router import attachment_tokens

log = logging.getLogger(__name__)

Row = RowState[OpenDeployment]


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """What one HTTP request came to: an answer or an error."""

    stored: Stored | None
    error: VendorError | None
    cost_nano: int
    still_held: bool = False
    """The attempt cost nothing; its share of the hold may serve the next one."""


class Attempts:
    """Makes single attempts, for one job and one event loop."""

    def __init__(
        self,
        context: JobContext,
        tiers: OpenTiers,
        settlement: Settlement,
        store: ResponseStore,
        journal: Journal,
        audit_log: AuditLog,
        in_flight: InFlight,
        giving_up: GivingUp,
    ) -> None:
        self._context = context
        self._settlement = settlement
        self._store = store
        self._journal = journal
        self._audit_log = audit_log
        self._in_flight = in_flight
        self._giving_up = giving_up
        self._noted: set[tuple[str, str]] = set()
        # A row chooses its deployment late: one that was queued at a deployment could not switch to a better one.
        slots = {tier: sum(each.deployment.concurrency for each in found) for tier, found in tiers.items()}
        self._queues = {tier: asyncio.Semaphore(2 * count) for tier, count in slots.items()}

    async def admit(self, row: Row) -> Pass:
        """Return a permit for one request to the row's deployment.

        Raises ``DeploymentResting`` while the deployment takes no requests, and ``TimeoutError`` at the row's deadline.
        """
        if not row.queued:
            await in_time(self._queues[row.tier].acquire(), row.deadline)
            row.queued = True
        if row.deadline is not None and asyncio.get_running_loop().time() >= row.deadline:
            raise TimeoutError
        request, deployment = row.request_as_asked, row.deployment
        expected = tokens_of(request.text, request.size) + attachment_tokens(deployment.deployment, request.needs)
        entering = deployment.gate.enter(input_tokens=expected, output_tokens=deployment.terms.max_tokens)
        permit = await in_time(entering, row.deadline)
        self.leave_queue(row)
        return permit

    def leave_queue(self, row: Row) -> None:
        """Give up the row's place in the queue of its tier, if it has one."""
        if row.queued:
            row.queued = False
            self._queues[row.tier].release()

    async def open(self, row: Row) -> tuple[OpenAttempt, Sequence[Message]]:
        """Write the attempt to the ledger and wait until it may leave. Returns it and the messages to send.

        Raises ``DeploymentResting``, ``DeploymentStopped``, ``JobStopped`` or ``TimeoutError`` if nothing may be sent,
        and ``PromptError`` or ``PrivacyError`` if an attachment cannot be read; the permit is given back, and the
        row's share of the hold is untouched.
        """
        permit = row.permit
        assert permit is not None
        with self._in_flight.sending():
            try:
                self._in_flight.check()
                attempt = self._settlement.opened(row, self._journal.now())
                messages = await row.request_as_asked.wire_messages()
                self._in_flight.check()
                self._audit_log.ensure_durable()
                await self._journal.open(attempt)
            except BaseException:
                permit.unused()
                permit.leave()
                raise
            if unsent := await self._departed(permit, row.deadline):
                permit.unused()
                permit.leave()
                stopped = VendorTransientError(f"{row.deployment.name}: stopped before it was sent", kind="stopped")
                await self._settle(row, self._settlement.failed(attempt, stopped, self._journal.now(), 0), None)
                raise unsent
        return attempt, messages

    async def send(self, row: Row) -> AttemptResult:
        """Send an open attempt; return once its answer is stored and it is settled."""
        permit, started = row.permit, time.monotonic()
        assert permit is not None
        with self._in_flight.sending():
            try:
                result, settled = await self._send(row, permit, started)
            finally:
                permit.leave()
            await self._settle(row, settled, result.stored.text if result.stored else None)
        return result

    async def _departed(self, permit: Pass, deadline: float | None) -> BaseException | None:
        """Wait until an open attempt may leave; returns why it may not."""
        try:
            await permit.depart()
        except (DeploymentResting, asyncio.CancelledError) as reason:
            return reason
        if self._in_flight.stopping:
            return JobStopped()
        if deadline is not None and asyncio.get_running_loop().time() >= deadline:
            return TimeoutError()
        return None

    async def _send(self, row: Row, permit: Pass, started: float) -> tuple[AttemptResult, Settled]:
        """The answer, safe in the response store, or the error; and what the ledger is to say of it."""
        deployment, attempt = row.deployment, row.attempt
        assert attempt is not None
        request = self._model_request(row, attempt)
        try:
            reply = await _complete(deployment, request)
        except VendorError as error:
            permit.failed(error, time.monotonic() - started)
            self._giving_up.failed(deployment.name, error)
            settled = self._settlement.failed(attempt, error, self._journal.now(), _milliseconds(started))
            return AttemptResult(None, error, settled.cost_nano, still_held=settled.keeps_hold), settled
        except asyncio.CancelledError:
            cut = VendorTransientError(f"{deployment.name}: stopped before it answered", kind="stopped", billed=True)
            settled = self._settlement.failed(attempt, cut, self._journal.now(), _milliseconds(started))
            await self._settle(row, settled, None)
            raise
        # At once: after the wait for the store, later failures would already have been reported.
        permit.answered(usage=reply.usage, limits=reply.limits, seconds=time.monotonic() - started)
        self._giving_up.answered(deployment.name)
        # A loop that was held up sees an answer late; the vendor had no more than the time-out to make it.
        latency = min(_milliseconds(started), math.ceil(request.timeout * 1000))
        charge = self._settlement.charge(attempt, deployment, reply, latency)
        if charge.cost_nano > attempt.bound_nano:
            self._note_overcharge(deployment.name, attempt)
        self._note(deployment, reply.claims, charge.notes)
        settled = self._settlement.answered(row, reply, charge, self._journal.now(), latency)
        stored = self._settlement.stored(row, reply, settled, int(time.time()))
        assert row.routed is not None
        await self._store.keep(row.routed.keys[row.position], stored, ttl=self._context.route.reuse.ttl)
        return AttemptResult(stored, None, settled.cost_nano), settled

    def _model_request(self, row: Row, attempt: OpenAttempt) -> ModelRequest:
        deployment = row.deployment
        timeout: float = row.tries_of(deployment.name).timeout(deployment.deployment)
        if row.deadline is not None:
            timeout = max(0.001, min(timeout, row.deadline - asyncio.get_running_loop().time()))
        return ModelRequest(
            attempt_id=attempt.attempt_id,
            messages=row.messages,
            max_tokens=deployment.terms.max_tokens,
            output_schema=self._context.output_schema,
            timeout=float(timeout),
            params=deployment.terms.params,
            tools=self._context.tools,
            tool_choice=self._context.tool_choice,
        )

    async def _settle(self, row: Row, settled: Settled, text: str | None) -> None:
        """The event first: what the ledger says was paid is in the trail, also when the process dies in between."""
        self._audit_log.call(settled, prompt=row.request_as_asked.evidence, answer=text)
        await self._audit_log.flush_in_time()  # nothing waits for this: the permit is free and the answer is safe
        await self._journal.settle([settled])

    def _note_overcharge(self, deployment: str, attempt: OpenAttempt) -> None:
        log.error(
            "%s charged more than its upper bound for attempt %s; it is stopped until it is resumed "
            "(airflow ai deployments resume)",
            deployment,
            attempt.attempt_id,
        )
        self._audit_log.deployment_stopped(deployment)

    def _note(self, deployment: OpenDeployment, claims: Claims, notes: Sequence[str]) -> None:
        """Log and audit, once per deployment and job, what answers claim that was not asked for."""
        name = deployment.name
        for note in notes:
            if (name, note) in self._noted:
                continue
            self._noted.add((name, note))
            said = {"model": claims.model, "service_tier": claims.service_tier, "cost": "more than its tokens cost"}[
                note
            ]
            log.warning(
                "%s: an answer says %s %s, not what was asked for; such calls are charged at the higher figure, or at "
                "their whole hold where none is known",
                name,
                note.replace("_", " "),
                said,
            )
            self._audit_log.answer_differs(name, reason=note, model=deployment.model, response_model=claims.model)


async def _complete(deployment: OpenDeployment, request: ModelRequest) -> ModelReply:
    """Ask the vendor. Raises ``VendorError``, also for an error that the adapter does not know.

    The vendor may have answered then, so the attempt counts as charged, and the row is not asked for again. The error's
    own text may quote the row: the log gets its type and place.
    """
    try:
        return await deployment.provider.complete(request)
    except VendorError:
        raise
    except Exception as error:  # noqa: BLE001 - it costs its row, not the batch
        kind, place = type(error).__name__, traceback.extract_tb(error.__traceback__)[-1]
        log.error("%s: unexpected %s at %s:%s; please report it", deployment.name, kind, place.filename, place.lineno)
        message = f"{deployment.name}: {kind}, which the adapter does not know; its place is in the task's log"
        raise VendorPermanentError(message, kind="unexpected", billed=True) from None


def _milliseconds(started: float) -> int:
    """Rounded up: a price per second is charged on it."""
    return math.ceil((time.monotonic() - started) * 1000)
