"""What analysts ask first, answered from the daily rollup."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from sqlalchemy import func, select

from airflow_ai_provider.errors import LedgerError
from airflow_ai_provider.ledger.database import Ledger
from airflow_ai_provider.ledger.money import usd_from_nano
from airflow_ai_provider.ledger.schema import llm_budgets, llm_cost_daily

GROUPINGS = {
    "day": llm_cost_daily.c.day,
    "team": llm_cost_daily.c.team_id,
    "dag": llm_cost_daily.c.dag_id,
    "model": llm_cost_daily.c.model,
}
_SUMS = ("requests", "reused", "errors", "unknown", "input_tokens", "output_tokens", "cost_nano", "saved_nano")


def cost_report(
    ledger: Ledger, *, by: Sequence[str] = ("day", "team"), since: date | None = None, until: date | None = None
) -> list[dict[str, Any]]:
    """Sums per group, days (UTC) ``since`` to ``until`` inclusive; money as ``Decimal`` USD.

    Raises ``LedgerError`` for a grouping that there is not.
    """
    if unknown := [name for name in by if name not in GROUPINGS]:
        raise LedgerError(f"cannot group by {', '.join(unknown)}; expected some of {', '.join(GROUPINGS)}")
    groups = [GROUPINGS[name].label(name) for name in by]
    sums = [func.sum(llm_cost_daily.c[name]).label(name) for name in _SUMS]
    query = select(*groups, *sums).group_by(*groups).order_by(*groups)
    if since:
        query = query.where(llm_cost_daily.c.day >= since)
    if until:
        query = query.where(llm_cost_daily.c.day <= until)
    with ledger.read() as conn:
        return [_in_usd(dict(row)) for row in conn.execute(query).mappings() if row["requests"] is not None]


def budget_report(ledger: Ledger) -> list[dict[str, Any]]:
    """Every budget with its limit and what is spent and held, in USD."""
    query = select(llm_budgets).order_by(llm_budgets.c.name, llm_budgets.c.period_start)
    with ledger.read() as conn:
        rows = conn.execute(query).mappings().all()
    return [
        {
            "budget": row["name"],
            "period": row["period_start"],
            "limit_usd": usd_from_nano(row["limit_nano"]),
            "spent": usd_from_nano(row["spent_nano"]),
            "held": usd_from_nano(row["held_nano"]),
        }
        for row in rows
    ]


def _in_usd(row: dict[str, Any]) -> dict[str, Any]:
    row = {name: int(value) if name in _SUMS else value for name, value in row.items()}
    row["cost_usd"] = usd_from_nano(row.pop("cost_nano"))
    row["saved_usd"] = usd_from_nano(row.pop("saved_nano"))
    return row
