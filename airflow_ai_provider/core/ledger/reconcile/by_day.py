"""An invoice of sums against the ledger, by day and model. Nothing can be changed by it: it names no request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Date, and_, case, cast, func, or_, select

from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.model_names import ModelNames
from airflow_ai_provider.core.ledger.reconcile.invoices import Invoice
from airflow_ai_provider.core.ledger.reconcile.report import ALL_MODELS, DayModel, Figures, Finding, ReconcileReport
from airflow_ai_provider.core.ledger.schema import llm_adjustments, llm_requests

_Invoiced = dict[tuple[date, str], Figures]
"""By day and model as the vendor spells it; the empty model is every model."""


def compare_sums(
    ledger: Ledger,
    invoice: Invoice,
    report: ReconcileReport,
    *,
    deployments: Sequence[str] | None,
    progress: Callable[[str, int], None],
) -> None:
    """Where the invoice has a line without a model, all models of a day are compared as one.

    Models that the invoice does not have are left out, unless the deployments it is for are named. Costs are equal
    within a nano-dollar a call: the ledger rounds each up, the vendor their sum.
    """
    invoiced = _invoiced(invoice, report, progress)
    if not invoiced:
        return
    with ledger.read() as conn:
        rows = conn.execute(_by_day_and_model(conn, min(invoiced)[0], max(invoiced)[0], invoice, deployments)).all()
    by_model = all(model for _, model in invoiced)
    names = ModelNames(row.model for row in rows)
    sides: dict[tuple[date, str], _Sides] = {}
    for (day, model), said in invoiced.items():
        label = names.of_invoice(model) if by_model else ALL_MODELS
        side = sides.setdefault((day, label), _Sides())
        side.invoice.add(said.requests, said.input_tokens, said.output_tokens, said.cost)
    for row in rows:
        key = (_as_date(row.day), names.of_ledger(row.model) if by_model else ALL_MODELS)
        if key in sides or deployments:
            side = sides.setdefault(key, _Sides())
            side.ledger.add(int(row.requests), int(row.input), int(row.output), int(row.cost))
            side.unknown += int(row.unknown)
    for (day, model), side in sorted(sides.items()):
        _judge(DayModel(day, model, side.ledger, side.invoice, side.unknown, side.ledger.requests or 0), report)


@dataclass(slots=True)
class _Sides:
    ledger: Figures = field(default_factory=Figures)
    invoice: Figures = field(default_factory=Figures)
    unknown: int = 0


def _judge(day: DayModel, report: ReconcileReport) -> None:
    report.days.append(day)
    if differing := day.differing():
        why = f"; {day.unknown} calls are unknown and count with their upper bound" if day.unknown else ""
        detail = f"{', '.join(name.replace('_', ' ') for name in differing)} differ{why}"
        place = f"{day.day} {day.model}"
        report.findings.add(Finding("day_differs", place, detail, day.ledger.cost_nano, day.invoice.cost_nano))


def _invoiced(
    invoice: Invoice, report: ReconcileReport, progress: Callable[[str, int], None]
) -> dict[tuple[date, str], Figures]:
    found: dict[tuple[date, str], Figures] = {}
    for line in invoice.lines:
        report.lines += 1
        figures = found.setdefault((line.day, line.model or ""), Figures())
        figures.add(line.requests, line.input_tokens, line.output_tokens, line.cost)
        progress("read", report.lines)
    return found


def _by_day_and_model(
    conn: Connection, first: date, last: date, invoice: Invoice, deployments: Sequence[str] | None
) -> Any:
    """The ledger's sums, adjustments included. Calls that cost nothing and were not answered are not counted."""
    start, end = datetime.combine(first, time(0), UTC), datetime.combine(last, time(0), UTC) + timedelta(days=1)
    adjusted = (
        select(
            llm_adjustments.c.attempt_id,
            func.count().label("adjustments"),
            *(
                func.sum(llm_adjustments.c[name]).label(name)
                for name in ("delta_nano", "input_tokens", "output_tokens")
            ),
        )
        .where(llm_adjustments.c.created_at >= start, llm_adjustments.c.created_at < end)
        .group_by(llm_adjustments.c.attempt_id)
        .subquery("adjusted")
    )

    def now(name: str, moved: str) -> ColumnElement[int]:
        return func.coalesce(llm_requests.c[name], 0) + func.coalesce(adjusted.c[moved], 0)

    cost = now("cost_nano", "delta_nano")
    unresolved = and_(llm_requests.c.status == "unknown", adjusted.c.adjustments.is_(None))
    counts = or_(llm_requests.c.status == "ok", unresolved, cost > 0)
    day = _utc_day(conn).label("day")
    query = (
        select(
            day,
            llm_requests.c.model,
            func.sum(case((counts, 1), else_=0)).label("requests"),
            func.sum(case((unresolved, 1), else_=0)).label("unknown"),
            func.sum(cast(now("input_tokens", "input_tokens"), BigInteger)).label("input"),
            func.sum(cast(now("output_tokens", "output_tokens"), BigInteger)).label("output"),
            func.sum(cast(cost, BigInteger)).label("cost"),
        )
        .outerjoin(adjusted, adjusted.c.attempt_id == llm_requests.c.attempt_id)
        .where(
            llm_requests.c.created_at >= start,
            llm_requests.c.created_at < end,
            llm_requests.c.status != "reused",
        )
        .group_by(day, llm_requests.c.model)
    )
    if deployments:
        query = query.where(llm_requests.c.deployment.in_(list(deployments)))
    elif invoice.provider:
        query = query.where(llm_requests.c.provider == invoice.provider)
    return query


def _utc_day(conn: Connection) -> ColumnElement[Any]:
    if conn.dialect.name == "postgresql":
        return cast(func.timezone("UTC", llm_requests.c.created_at), Date)
    return func.date(llm_requests.c.created_at)


def _as_date(day: date | str) -> date:
    return date.fromisoformat(day) if isinstance(day, str) else day
