"""Answer every row of a source: the gateway as a job of the runner, and what it is opened with."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection

from airflow_ai_provider.core.audit.sealing.recover import last_seen, recover_open, remember
from airflow_ai_provider.core.audit.trail.trail import Trail
from airflow_ai_provider.core.cache import ResponseStore
from airflow_ai_provider.core.identity import owner_id, request_id, token_scope
from airflow_ai_provider.core.installation import Installation, opened
from airflow_ai_provider.core.job import Caller, MapJob, MapSummary
from airflow_ai_provider.core.jobs.answers import AnswerTally, to_table
from airflow_ai_provider.core.jobs.runner import Batch, BatchJob, Part, run_to_sink
from airflow_ai_provider.core.jobs.validate import JobPlan, plan_job
from airflow_ai_provider.core.ledger.attempts.attempts import Settled, recover
from airflow_ai_provider.core.ledger.attempts.group_commit import Journal
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef
from airflow_ai_provider.core.ledger.budgets.limits import budgets_in_force
from airflow_ai_provider.core.ledger.budgets.thresholds import Notice
from airflow_ai_provider.core.ledger.call_costs import usd_from_nano
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.installation_checks import require_pinned
from airflow_ai_provider.core.ledger.reviews import any_open
from airflow_ai_provider.core.pipeline.answer import FINAL
from airflow_ai_provider.core.pipeline.audit_log import HASH_KEY_PURPOSE, AuditLog
from airflow_ai_provider.core.pipeline.batch import Pipeline
from airflow_ai_provider.core.pipeline.deployments import OpenTiers, batches_at_once, open_deployments
from airflow_ai_provider.core.pipeline.failure_limits import GivingUp
from airflow_ai_provider.core.pipeline.job_context import JobContext
from airflow_ai_provider.core.pipeline.loop_thread import LoopThread
from airflow_ai_provider.core.pipeline.prepare import Preparer, open_masker
from airflow_ai_provider.core.pipeline.review_queue import ReviewPlace, Reviews
from airflow_ai_provider.core.policy import Budget
from airflow_ai_provider.core.policy.loading import LoadedPolicy, shown_path
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.core.ratelimit import CircuitChanged
from airflow_ai_provider.core.routing.router import Router
from airflow_ai_provider.core.settings import Settings


def run_map(
    job: MapJob,
    caller: Caller,
    where: Settings | Installation,
    *,
    log: logging.Logger,
    on_notice: Callable[[Notice], None] | None = None,
    wanted: Callable[[], bool] | None = None,
) -> MapSummary:
    """Answer every row of a job's shard and write the parts; blocks until done.

    Whatever a signal handler raises meanwhile stops the job in order: nothing more is sent, and what is out is settled.
    So does ``wanted``, asked every second, once it returns ``False``. ``on_notice`` is told of every threshold of a
    budget that this process is the first to notice. Raises errors of ``airflow_ai_provider.errors``; a bad row is no
    error but a row with a status.
    """
    with opened(where) as installation:
        loaded = installation.policy  # what is wrong with it is said before anything is opened
        ledger = installation.ledger
        in_force = ledger.run(lambda conn, _again: _in_force(conn, loaded), read=True)
        plan = plan_job(job, caller, installation, in_force)
        log.info("%s", _parts_line(installation, plan, job))
        # What was there before the job outlives it: the collector need not walk Airflow's heap for every batch.
        gc.freeze()
        try:
            task = TaskRef(job.team, caller.dag_id, caller.run_id, caller.task_id, caller.map_index, caller.try_number)
            parts = _Parts(job, caller, installation, plan, ledger, log, on_notice, task, owner_id(ledger.now()))
            summary: MapSummary = LoopThread(partial(_run, parts), wanted).run()
            return summary
        finally:
            gc.unfreeze()


def _in_force(conn: Connection, loaded: LoadedPolicy) -> list[Budget]:
    """The budgets that hold now. Raises ``PolicyError`` where the ledger is pinned to another policy."""
    require_pinned(conn, loaded.file, always=loaded.policy.ledger.pinned)
    return [budget for budget, _ in budgets_in_force(conn, loaded.policy.budgets)]


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a job is run with."""

    job: MapJob
    caller: Caller
    installation: Installation
    plan: JobPlan
    ledger: Ledger
    log: logging.Logger
    on_notice: Callable[[Notice], None] | None
    task: TaskRef
    owner: str
    """Names this process in the ledger."""

    @property
    def instance(self) -> str:
        """Names the task instance, whichever try this is: what a dead try had taken of others, this one has at once."""
        return request_id(self.caller, "", "task")


async def _run(parts: _Parts, stop: asyncio.Event) -> MapSummary:
    job, plan = parts.job, parts.plan
    sink = parts.installation.sink(job.sink, plan.fingerprint, job.shard)
    sink.begin()
    async with _open_gateway(parts) as opened:
        tally, rows = opened.recovered, plan.inspection.rows
        work = _Map(job.key, opened.gateway)
        seconds = await run_to_sink(
            plan.feed, work, sink, tally, stop, log=parts.log, rows=rows, at_once=opened.at_once
        )
        opened.summary = _summary(job, plan, tally, seconds)
        return opened.summary


class _Map(BatchJob):
    """Has the gateway answer a batch."""

    def __init__(self, key: str, gateway: Pipeline) -> None:
        self._key = key
        self._gateway = gateway

    async def process(self, batch: Batch) -> Part:
        answers = await self._gateway.answer(batch.rows.to_pylist(), batch.keys)
        final = all(answer.status in FINAL for answer in answers)
        table = to_table(batch.rows, batch.keys, self._key, answers)
        return Part(table, AnswerTally.of(answers).to_summary(), final)

    def resumed(self, batch: Batch, counts: Mapping[str, Any]) -> None:
        if counts["ok"]:
            self._gateway.had_good_rows()

    async def stop(self, grace_seconds: float) -> None:
        await self._gateway.stop(grace_seconds)

    async def finish(self) -> None:
        await self._gateway.finish()


@dataclass(slots=True)
class _Opened:
    """A running job."""

    gateway: Pipeline
    at_once: int
    """Batches under way at the same time."""
    recovered: AnswerTally
    """What a dead predecessor's calls were captured at."""
    summary: MapSummary | None = None


@asynccontextmanager
async def _open_gateway(parts: _Parts) -> AsyncIterator[_Opened]:
    """Open what the gateway needs, in the order of what each needs; close all of it, whatever happens."""
    job, settings, plan = parts.job, parts.installation.settings, parts.plan
    keyring = parts.installation.keyring()
    with parts.installation.trail(parts.caller, job.team) as trail:
        recorder = AuditLog(trail, hash_key=keyring.derive(HASH_KEY_PURPOSE), hash_key_id=keyring.active, job=job)
        tiers = _open_tiers(parts, recorder)
        recorder.task_started(plan.loaded, shard=str(job.shard))
        _record_policy_change(trail, settings, plan.loaded.file.digest)
        for recovery in recover_open(settings.audit_spool(), parts.ledger.now()):
            trail.emit("segment.recovered", "unknown", **recovery.fields())
        recovered = _settle_predecessor(parts, recorder)
        error_type: str | None = None
        opened: _Opened | None = None
        try:
            async with AsyncExitStack() as closing:
                gateway = _pipeline(parts, keyring, recorder, tiers, closing)
                opened = _Opened(gateway, batches_at_once(tiers, job.batch_rows), recovered)
                yield opened
        except BaseException as error:
            error_type = type(error).__name__
            raise
        finally:
            recorder.task_finished(opened.summary if opened else None, error_type)


def _open_tiers(parts: _Parts, recorder: AuditLog) -> OpenTiers:
    job, plan = parts.job, parts.plan
    return open_deployments(
        plan.policy,
        plan.route,
        parts.installation.settings,
        team=job.team,
        worker=parts.instance,
        on_circuit=partial(_note_circuit, parts.log, recorder),
        terms=plan.terms,
        output_schema=job.output_schema,
        prompt_version=plan.renderer.version,
        tools=job.tools,
        tool_choice=job.tool_choice,
    )


def _pipeline(
    parts: _Parts, keyring: Keyring, recorder: AuditLog, tiers: OpenTiers, closing: AsyncExitStack
) -> Pipeline:
    """Open the pipeline and its parts, which ``closing`` closes: the journal first, which still has rows to write."""
    job, plan, task = parts.job, parts.plan, parts.task
    router = Router(job.route, plan.route, tiers)
    for deployment in {each.name: each for tier in tiers.values() for each in tier}.values():
        closing.push_async_callback(deployment.gate.close)
        closing.push_async_callback(deployment.provider.close)
    store = ResponseStore(parts.installation.responses(), keyring, task=parts.instance)
    closing.push_async_callback(store.close)
    waiting = parts.ledger.run(lambda conn, _again: any_open(conn, task), read=True)
    on_given_up = partial(_note_given_up, parts.log, recorder)
    giving_up = GivingUp(tiers, give_up_after=job.give_up_after, on_given_up=on_given_up)
    journal = Journal(parts.ledger, parts.owner)
    closing.push_async_callback(journal.close)
    return Pipeline(
        JobContext(
            caller=parts.caller,
            task=task,
            team=job.team,
            route_name=job.route,
            route=plan.route,
            budgets=plan.budgets,
            read_at=parts.ledger.of_host(plan.loaded.read_at),
            stated_in=plan.loaded.stated_in,
            output_schema=job.output_schema,
            tools=job.tools,
            tool_choice=job.tool_choice,
            owner=parts.owner,
        ),
        preparer=_preparer(parts, keyring, router),
        router=router,
        tiers=tiers,
        checks=plan.checks,
        store=store,
        journal=journal,
        audit_log=recorder,
        reviews=Reviews(
            journal, recorder, ReviewPlace(task, job.route, job.sink), any_open=waiting, suspected=giving_up.suspected
        ),
        giving_up=giving_up,
        on_notice=partial(_tell, parts.log, parts.on_notice),
    )


def _preparer(parts: _Parts, keyring: Keyring, router: Router) -> Preparer:
    job, plan = parts.job, parts.plan
    scope = token_scope(plan.route, job.team, parts.caller)
    return Preparer(
        plan.renderer,
        plan.route,
        open_masker(plan.policy, plan.route, keyring, team=job.team, scope=scope),
        router,
        plan.terms,
        json=job.output_schema is not None,
        tools=bool(job.tools),
        storage_options=parts.installation.settings.storage_options,
    )


def _record_policy_change(trail: Trail, settings: Settings, digest: str) -> None:
    """One event, on this host, when a policy file is not what it was when a task last read it."""
    notes = settings.home / "audit" / "policies"
    known = last_seen(notes, str(settings.policy_path))
    if known != digest:
        if known is not None:
            path = shown_path(settings.policy_path)
            trail.emit("policy.changed", policy_hash=digest, old_policy_hash=known, policy_path=path)
            trail.flush()
        remember(notes, str(settings.policy_path), digest)


def _settle_predecessor(parts: _Parts, recorder: AuditLog) -> AnswerTally:
    """Capture what a dead try of this task left open, before anything new is sent.

    As everywhere, the events are durable before the ledger's transaction is.
    """
    told: dict[str, Settled] = {}

    def settle_what_is_open(conn: Connection, _again: bool) -> None:
        for item in recover(conn, parts.task, parts.owner, parts.ledger.now()):
            if item.attempt_id not in told:
                recorder.call(item, prompt=None, answer=None)
                told[item.attempt_id] = item
        recorder.flush_now()

    parts.ledger.run(settle_what_is_open)
    if told:
        parts.log.warning("an earlier try died with %d calls in flight; they are in the ledger as unknown", len(told))
    return AnswerTally(cost_nano=sum(item.cost_nano for item in told.values()))


def _tell(log: logging.Logger, on_notice: Callable[[Notice], None] | None, notice: Notice) -> None:
    """Report a crossed threshold in the log and to the callbacks; an error of theirs does not fail the job."""
    spent, limit = usd_from_nano(notice.spent_nano), usd_from_nano(notice.limit_nano)
    log.warning("budget %s: %d%% spent, $%.4f of $%.4f", notice.budget_id, notice.percent, spent, limit)
    if on_notice is not None:
        try:
            on_notice(notice)
        except Exception as error:  # noqa: BLE001 - user's code
            log.error("telling of a budget's threshold failed: %s", type(error).__name__)


def _note_circuit(log: logging.Logger, recorder: AuditLog, changed: CircuitChanged) -> None:
    """Each process says in its log that a deployment rests, or is back; whose calls found out says it in the trail."""
    match changed.state:
        case "open":
            log.warning("deployment %s rests: %s", changed.deployment, changed.reason)
        case "closed":
            log.info("deployment %s is back: %s", changed.deployment, changed.reason)
    if changed.here and changed.state != "half_open":
        recorder.circuit_changed(changed.deployment, opened=changed.state == "open", reason=changed.reason)


def _note_given_up(log: logging.Logger, recorder: AuditLog, deployment: str, message: str, others: bool) -> None:
    """In the log where rows go on to other deployments: otherwise the task ends with the message."""
    if others:
        log.warning("%s; its rows go to other deployments", message)
    recorder.circuit_changed(deployment, opened=True, reason="given_up")


def _summary(job: MapJob, plan: JobPlan, tally: AnswerTally, seconds: float) -> MapSummary:
    return MapSummary(
        sink=job.sink,
        rows=tally.rows,
        ok=tally.ok,
        reused=tally.reused,
        rejected=tally.rejected,
        over_budget=tally.over_budget,
        error=tally.error,
        skipped=tally.skipped,
        input_tokens=tally.input_tokens,
        output_tokens=tally.output_tokens,
        cached_input_tokens=tally.cached_input_tokens,
        cost_usd=f"{usd_from_nano(tally.cost_nano):.9f}",
        saved_usd=f"{usd_from_nano(tally.saved_nano):.9f}",
        seconds=seconds,
        errors=dict(tally.errors),
        short_usd=f"{usd_from_nano(tally.short_nano):.9f}",
        over_budget_then=plan.route.over_budget,
    )


def _parts_line(installation: Installation, plan: JobPlan, job: MapJob) -> str:
    """Which parts this task uses, embedded or real; without secrets."""
    settings = installation.settings
    models = sorted({plan.policy.deployments[name].model for name in plan.route.deployments})
    parts = {
        "ledger": installation.ledger.place,
        "response store": "Redis" if settings.cache_url else f"SQLite {settings.home / 'responses.db'}",
        "audit": settings.archive_uri or str(settings.home / "audit"),
        "models": ", ".join(models),
        "masking": plan.route.masking,
        "reuse": plan.route.reuse.scope,
        "rows": f"{plan.inspection.rows:,} (shard {job.shard})",
    }
    return " · ".join(f"{name}: {value}" for name, value in parts.items())
