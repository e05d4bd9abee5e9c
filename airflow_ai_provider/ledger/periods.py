"""Which period a moment belongs to. Pure: time is passed in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from airflow_ai_provider.ledger.money import nano_from_usd
from airflow_ai_provider.policy import Budget


@dataclass(frozen=True, slots=True)
class BudgetPeriod:
    """One budget in one period: a row of ``llm_budgets``."""

    budget_id: str
    """``<scope>/<period>@<start>``: unique per budget and period."""
    name: str
    period: str
    period_start: str
    """ISO date in the budget's time zone, the run for a run's budget, ``total`` for ever."""
    limit_nano: int


def budget_period(budget: Budget, *, now: datetime, dag_id: str, run_id: str) -> BudgetPeriod:
    """The period of ``budget`` that ``now`` (aware) falls in."""
    start = _start(budget.period, now.astimezone(ZoneInfo(budget.timezone)), f"{dag_id}/{run_id}")
    zone = "" if budget.timezone == "UTC" else f"[{budget.timezone}]"
    return BudgetPeriod(
        budget_id=f"{budget.name}{zone}@{start}",
        name=budget.name,
        period=budget.period,
        period_start=start,
        limit_nano=nano_from_usd(budget.limit_usd),
    )


def _start(period: str, local: datetime, run: str) -> str:
    match period:
        case "day":
            return local.date().isoformat()
        case "week":
            return (local.date() - timedelta(days=local.weekday())).isoformat()
        case "month":
            return local.date().replace(day=1).isoformat()
        case "run":
            return run
        case _:
            return "total"
