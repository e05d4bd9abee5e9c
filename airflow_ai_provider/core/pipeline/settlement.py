"""What the ledger and the response store keep of a row: its request, its attempts, its answer. Pure values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from airflow_ai_provider.core.cache import Stored
from airflow_ai_provider.core.errors import VendorError
from airflow_ai_provider.core.identity import attempt_id, run_tag
from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, Request, Settled
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.pipeline.charging import Charge, charge_of
from airflow_ai_provider.core.pipeline.deployments import OpenDeployment, OpenTiers, PricedDeployment, schema_bytes
from airflow_ai_provider.core.pipeline.job_context import JobContext
from airflow_ai_provider.core.pipeline.row import AnyRow
from airflow_ai_provider.core.pipeline.transitions import kind_of
from airflow_ai_provider.core.policy import TIERS
from airflow_ai_provider.core.prompts.messages import tools_bytes
from airflow_ai_provider.core.providers.base import ModelReply
from airflow_ai_provider.core.providers.finish_reasons import EMPTY, is_blank, reason_against

_NOTHING_USED = Usage(0, 0)


class Settlement:
    """Writes the records of one job."""

    def __init__(self, context: JobContext, tiers: OpenTiers) -> None:
        self._context = context
        self._run = run_tag(context.caller)
        self._baseline = tiers[max(tiers, key=TIERS.index)][0].facts.rate
        self._schema_bytes = schema_bytes(context.output_schema) + tools_bytes(context.tools)

    def share(self, row: AnyRow) -> int:
        """Return the most that one attempt of a row can cost at any deployment of its tier, in nano-dollars."""
        assert row.routed is not None
        request, schema = row.routed.request, self._schema_bytes
        deployments: Sequence[PricedDeployment] = row.routed.deployments
        return max(each.bound(request.needs, schema=schema, messages=len(request.messages)) for each in deployments)

    def opened(self, row: AnyRow, now: datetime) -> OpenAttempt:
        """Return the attempt that is about to be made."""
        assert row.hold is not None
        request = self._request(row, row.deployment)
        if row.passed_over is not None:
            passed = row.passed_over
            request = replace(request, fallback_from=passed.deployment, fallback_reason=passed.reason)
        return OpenAttempt(attempt_id(now), row.hold.hold_id, row.share_nano, now, request)

    def reused(self, row: AnyRow, now: datetime) -> Settled:
        """Return the record of a row that was answered from the response store."""
        assert row.answered is not None
        request = self._request(row, row.answered.deployment)
        saved = row.answered.stored.cost_nano
        return Settled(attempt_id(now), now, request, "reused", _NOTHING_USED, saved_nano=saved)

    def failed(self, attempt: OpenAttempt, error: VendorError, now: datetime, latency_ms: int) -> Settled:
        """Return the record of a failed attempt.

        A definite refusal costs nothing, and its share stays held for the next attempt. If the vendor may have charged,
        the whole share is captured as unknown.
        """
        return Settled(
            attempt.attempt_id,
            now,
            attempt.request,
            "unknown" if error.billed else "error",
            None if error.billed else _NOTHING_USED,
            cost_nano=attempt.bound_nano if error.billed else 0,
            latency_ms=latency_ms,
            error_type=error.kind,
            keeps_hold=not error.billed,
        )

    def charge(self, attempt: OpenAttempt, deployment: OpenDeployment, reply: ModelReply, latency_ms: int) -> Charge:
        """Return what an answer is charged: priced by the latency in the row, so that the row alone tells its cost."""
        seconds = Decimal(latency_ms) / 1000
        return charge_of(reply, deployment.facts, deployment.deployment, bound_nano=attempt.bound_nano, seconds=seconds)

    def answered(self, row: AnyRow, reply: ModelReply, charge: Charge, now: datetime, latency_ms: int) -> Settled:
        """Return the record of an answer. ``error_type`` says why it is bad, or why its cost is not known.

        A row counts once in the baseline: with the highest tier alone it would not have been asked twice.
        """
        attempt, usage = row.attempt, charge.usage
        assert attempt is not None
        baseline = 0
        if usage and row.tier == row.request.tier:
            baseline = self._baseline.cost(replace(usage, other=()), Decimal(latency_ms) / 1000)
        return Settled(
            attempt.attempt_id,
            now,
            replace(attempt.request, price_version=charge.price_version),
            "unknown" if charge.unknown else "ok",
            usage,
            cost_nano=charge.cost_nano,
            latency_ms=latency_ms,
            error_type=charge.unknown or _fault_of(reply),
            baseline_nano=baseline,
            vendor_request_id=reply.vendor_id,
        )

    def stored(self, row: AnyRow, reply: ModelReply, settled: Settled, created_at: int) -> Stored:
        """Return an answer as the response store keeps it; ``created_at`` is in Unix seconds."""
        usage, mask = settled.usage or _NOTHING_USED, row.request.mask
        rejected_as_empty = _fault_of(reply) == EMPTY and EMPTY in self._context.route.escalate.on
        return Stored(
            text=reply.text,
            deployment=row.deployment.name,
            finish_reason=EMPTY if rejected_as_empty else reply.finish_reason,
            input_tokens=usage.input,
            output_tokens=usage.output,
            cost_nano=settled.cost_nano,
            run=self._run,
            created_at=created_at,
            cached_input_tokens=usage.cached_input,
            team=self._context.team,
            tokens=tuple(mask.tokens) if mask else (),
            scope=mask.scope if mask else "",
            tool_calls=tuple(reply.tool_calls),
        )

    def _request(self, row: AnyRow, deployment: PricedDeployment) -> Request:
        assert row.routed is not None
        request = row.routed.request
        return Request(
            request_id=row.request_id,
            task=self._context.task,
            row_key=request.row_key.replace("\0", "\ufffd"),  # PostgreSQL keeps no NUL
            route=self._context.route_name,
            tier=row.tier,
            deployment=deployment.name,
            model=deployment.model,
            provider=deployment.deployment.provider,
            price_version=deployment.facts.rate.version,
            prompt_bytes=request.size + self._schema_bytes,
            routed_by=request.routed_by,
        )


def _fault_of(reply: ModelReply) -> str | None:
    """Why an answer is bad whatever the job checks; ``None`` for a whole one."""
    blank = is_blank(reply.text) and not reply.tool_calls
    if reason := reason_against(reply.finish_reason, has_text=not blank):
        return kind_of(reason)
    return EMPTY if blank else None
