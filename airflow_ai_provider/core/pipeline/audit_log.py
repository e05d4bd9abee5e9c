"""What the audit trail hears of a job: who asks, each batch before its calls, each call after it. Never content."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from airflow_ai_provider.core.audit.trail.events import MultisetHash, content_hash
from airflow_ai_provider.core.audit.trail.trail import Trail
from airflow_ai_provider.core.job import Caller, MapJob, MapSummary
from airflow_ai_provider.core.ledger.attempts.attempts import Settled
from airflow_ai_provider.core.ledger.attempts.group_commit import Batcher
from airflow_ai_provider.core.ledger.budgets.limits import LimitChange
from airflow_ai_provider.core.ledger.budgets.thresholds import Notice
from airflow_ai_provider.core.ledger.reviews import ReviewItem
from airflow_ai_provider.core.policy.loading import LoadedPolicy, shown_path

HASH_KEY_PURPOSE: Final = "audit-hashes"
"""What the keyring's key for content hashes is derived for."""
_GATHER_SECONDS = 0.01
"""How long the end of a call may wait for others, to share a wait for the disk and a transaction with them."""


def context_of(caller: Caller, team: str | None = None) -> dict[str, Any]:
    """Who and where, for every event that is written on behalf of a caller: a task instance, or a person alone."""
    task = asdict(caller) if caller.dag_id else {}
    said = {"user": caller.user or None, "account": caller.account or None}
    return {**task, **said, "team": team, "host": socket.gethostname()}


def call_fields(settled: Settled) -> dict[str, Any]:
    """What an ``llm.call`` event says of an attempt, but for hashes of content."""
    request, usage = settled.request, settled.usage
    return {
        "request_id": request.request_id,
        "attempt_id": settled.attempt_id,
        "route": request.route,
        "tier": request.tier,
        "deployment": request.deployment,
        "model": request.model,
        "provider": request.provider,
        "input_tokens": usage.input if usage else None,
        "output_tokens": usage.output if usage else None,
        "cost_nano": settled.cost_nano,
        "latency_ms": settled.latency_ms,
        "error_type": settled.error_type,
        "routed_by": request.routed_by,
        "fallback_from": request.fallback_from,
        "fallback_reason": request.fallback_reason,
    }


class AuditLog:
    """Writes the events of one job to this process' trail, whose context says who asks. For one event loop."""

    def __init__(self, trail: Trail, *, hash_key: bytes, hash_key_id: str, job: MapJob) -> None:
        self._trail = trail
        self._hash_key = hash_key
        self._hash_key_id = hash_key_id
        self._route = job.route
        self._batches = 0
        self._reused = _Reused(MultisetHash(hash_key))
        self._flushes: Batcher[None, None] = Batcher(self._flush_group)
        self._unhurried: Batcher[None, None] = Batcher(self._flush_group, gather_seconds=_GATHER_SECONDS)

    def task_started(self, loaded: LoadedPolicy, *, shard: str) -> None:
        """The governing policy and, where there is one, the DAG's file that narrows it."""
        files = {"policy_hash": loaded.file.digest, "policy_path": shown_path(loaded.file.path)}
        if loaded.dag_file is not None:
            files |= {"dag_policy_hash": loaded.dag_file.digest, "dag_policy_path": shown_path(loaded.dag_file.path)}
        self._trail.emit("policy.loaded", policy_version=1, **files)
        self._trail.emit("task.started", route=self._route, shard=shard, policy_hash=loaded.file.digest)

    async def batch_started(self, rows: int) -> int:
        """Durable on return: no call of a batch leaves before the trail knows of it. Returns the batch's number.

        Raises ``AuditError`` where the spool is full or the disk refuses.
        """
        self._trail.ensure_room()
        self._batches += 1
        self._trail.emit("batch.started", batch=self._batches, rows=rows, route=self._route)
        await self.flush()
        return self._batches

    def ensure_durable(self) -> None:
        """Raises ``AuditError`` while the disk refuses what was emitted: no further call may leave."""
        self._trail.ensure_durable()

    def call(self, settled: Settled, *, prompt: str | None, answer: str | None) -> None:
        """One attempt at a vendor."""
        self._trail.emit(
            "llm.call",
            settled.status,
            **call_fields(settled),
            prompt_hash=content_hash(self._hash_key, prompt) if prompt is not None else None,
            answer_hash=content_hash(self._hash_key, answer) if answer is not None else None,
            hash_key_id=self._hash_key_id,
        )

    def reused(self, request_id: str, saved_nano: int) -> None:
        """A row was answered from the response store; it is part of the next ``batch.reused``."""
        self._reused.add(request_id, saved_nano)

    def batch_reused(self) -> None:
        """What was answered from the response store since the last time: one event for all of it.

        Nothing was sent for these rows; the ledger has a row for each, and the hash, whose sum over a try is
        that of the ledger's rows, tells whether it still has.
        """
        reused, self._reused = self._reused, _Reused(MultisetHash(self._hash_key))
        if reused.rows:
            self._trail.emit(
                "batch.reused",
                "reused",
                batch=self._batches,
                rows=reused.rows,
                reused_hash=reused.hash.hexdigest(),
                hash_key_id=self._hash_key_id,
                saved_nano=reused.saved_nano,
                route=self._route,
            )

    def limit_changed(self, change: LimitChange) -> None:
        """A policy file sets another limit than it did before."""
        file = change.stated_in
        self._trail.emit(
            "budget.changed",
            budget=change.name,
            period=change.period,
            limit_nano=change.new_nano,
            old_limit_nano=change.old_nano,
            reason="policy.yaml",
            policy_hash=file.digest if file else None,
            policy_path=shown_path(file.path) if file else None,
        )

    def threshold_crossed(self, notice: Notice) -> None:
        """Record that a threshold of a budget was crossed; at 100% nothing more is sent."""
        spent = {"budget": notice.name, "limit_nano": notice.limit_nano, "spent_nano": notice.spent_nano}
        self._trail.emit("budget.threshold", percent=notice.percent, period=notice.period, **spent)
        if notice.percent >= 100:
            self._trail.emit("budget.stopped", period=notice.period, **spent)

    def deployment_stopped(self, deployment: str) -> None:
        """A deployment charged more than its upper bound; nothing more is sent to it."""
        self._trail.emit("deployment.stopped", deployment=deployment, reason="over its bound")

    def answer_differs(self, deployment: str, *, reason: str, model: str, response_model: str | None) -> None:
        """An answer states another model, service tier or cost than was asked for. ``reason`` names which."""
        self._trail.emit(
            "answer.differs", deployment=deployment, reason=reason, model=model, response_model=response_model
        )

    def circuit_changed(self, deployment: str, *, opened: bool, reason: str) -> None:
        """A deployment is given a rest, or is called again. ``reason`` is a short name, such as ``server_error``."""
        if opened:
            self._trail.emit("circuit.opened", deployment=deployment, reason=reason)
        else:
            self._trail.emit("circuit.closed", deployment=deployment, reason=reason)

    def reviews_opened(self, items: Iterable[ReviewItem]) -> None:
        """Rows wait for a person. Which check or error it was is said, never in whose words."""
        for item in items:
            self._trail.emit(
                "review.requested",
                review=item.item_id,
                request_id=item.request_id,
                route=item.route,
                tier=item.tier,
                deployment=item.deployment,
                model=item.model,
                reason=item.reason_kind,
            )

    def reviews_answered(self, items: Iterable[tuple[str, str]]) -> None:
        """Rows wait no more: this try has answered them. Items and their requests."""
        for item_id, request_id in items:
            self._trail.emit("review.answered", review=item_id, request_id=request_id, route=self._route)

    def task_finished(self, summary: MapSummary | None, error_type: str | None) -> None:
        counts = {}
        if summary is not None:
            counts = {
                "rows": summary.rows,
                "rows_ok": summary.ok,
                "rows_reused": summary.reused,
                "rows_rejected": summary.rejected,
                "rows_over_budget": summary.over_budget,
                "rows_error": summary.error,
                "rows_skipped": summary.skipped,
                "duration_ms": round(summary.seconds * 1000),
            }
        self.batch_reused()
        outcome = "error" if error_type else "ok"
        self._trail.emit("task.finished", outcome, route=self._route, error_type=error_type, **counts)

    async def flush(self) -> None:
        """Durable on return; callers at the same moment share one wait for the disk."""
        await self._flushes.ask(None)

    async def flush_in_time(self) -> None:
        """The same for callers that are not urgent: waits a little for others to share with."""
        await self._unhurried.ask(None)

    def flush_now(self) -> None:
        """The same, for a caller that is not on the event loop or may hold it up."""
        self._trail.flush()

    async def _flush_group(self, asked: list[None]) -> Sequence[None]:
        await asyncio.to_thread(self._trail.flush)
        return asked


@dataclass(slots=True)
class _Reused:
    """Rows answered from the response store and not yet in an event."""

    hash: MultisetHash
    rows: int = 0
    saved_nano: int = 0

    def add(self, request_id: str, saved_nano: int) -> None:
        self.hash.add(request_id)
        self.rows += 1
        self.saved_nano += saved_nano
