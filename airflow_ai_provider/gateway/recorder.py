"""What the audit trail hears of a job: who asks, each batch before its calls, each call after it. Never content."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from airflow_ai_provider.audit.hashes import content_hash
from airflow_ai_provider.audit.trail import Trail
from airflow_ai_provider.gateway.job import Caller, MapJob, MapSummary
from airflow_ai_provider.ledger.attempts import Settled


class Recorder:
    """Writes the events of one job to this process' trail."""

    def __init__(self, trail: Trail, *, hash_key: bytes, caller: Caller, job: MapJob) -> None:
        self._trail = trail
        self._hash_key = hash_key
        self._route = job.route
        self._batches = 0
        self._who: dict[str, Any] = {
            "user": caller.user or None,
            "dag_id": caller.dag_id,
            "run_id": caller.run_id,
            "task_id": caller.task_id,
            "map_index": caller.map_index,
            "try_number": caller.try_number,
            "team": job.team,
        }

    def task_started(self, *, policy_digest: str, shard: str) -> None:
        self._trail.emit("policy.loaded", policy_hash=policy_digest, policy_version=1, **self._who)
        self._trail.emit("task.started", route=self._route, shard=shard, policy_hash=policy_digest, **self._who)

    async def batch_started(self, rows: int) -> int:
        """Durable on return: no call of a batch leaves before the trail knows of it. Returns the batch's number."""
        self._batches += 1
        self._trail.emit("batch.started", batch=self._batches, rows=rows, route=self._route, team=self._who["team"])
        await self.flush()
        return self._batches

    def call(self, settled: Settled, *, prompt: str | None, answer: str | None) -> None:
        """One attempt at a vendor."""
        request, usage = settled.request, settled.usage
        self._trail.emit(
            "llm.call",
            settled.status,
            request_id=request.request_id,
            attempt_id=settled.attempt_id,
            tier=request.tier,
            deployment=request.deployment,
            model=request.model,
            input_tokens=usage.input if usage else None,
            output_tokens=usage.output if usage else None,
            cost_nano=settled.cost_nano,
            latency_ms=settled.latency_ms,
            error_type=settled.error_type,
            prompt_hash=content_hash(self._hash_key, prompt) if prompt is not None else None,
            answer_hash=content_hash(self._hash_key, answer) if answer is not None else None,
        )

    def batch_reused(self, batch: int, request_ids: Sequence[str], saved_nano: int) -> None:
        """What a batch was answered from the response store: one event, with a keyed hash over the request ids.

        Nothing left the house for these rows; the ledger has a row for each, and the hash tells whether it still has.
        """
        self._trail.emit(
            "batch.reused",
            "reused",
            batch=batch,
            rows=len(request_ids),
            reused_hash=content_hash(self._hash_key, "\n".join(sorted(request_ids))),
            saved_nano=saved_nano,
            route=self._route,
            team=self._who["team"],
        )

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
        outcome = "error" if error_type else "ok"
        self._trail.emit("task.finished", outcome, route=self._route, error_type=error_type, **counts, **self._who)

    async def flush(self) -> None:
        await asyncio.to_thread(self._trail.flush)
