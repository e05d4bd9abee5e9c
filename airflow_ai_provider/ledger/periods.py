"""Which period a moment belongs to. Pure: time is passed in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from airflow_ai_provider.ledger.money import nano_from_usd
from airflow_ai_provider.policy import Budget
from airflow_ai_provider.policy.loading import PolicyFile


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
    starts_at: datetime | None = None
    """First moment of the period (UTC); ``None`` for a run and for ever."""
    ends_at: datetime | None = None
    """First moment after it."""
    thresholds: tuple[int, ...] = ()
    """Percent of the limit at which somebody is told."""
    source: str = "policy"
    """Who says the limit: ``policy`` or ``cli``."""
    budget: Budget | None = None
    """What it is a period of; its limit is noted in the history where the policy says it."""
    stated_in: PolicyFile | None = None
    """The file that says the limit."""


def budget_period(
    budget: Budget,
    *,
    now: datetime,
    dag_id: str,
    run_id: str,
    source: str = "policy",
    stated_in: PolicyFile | None = None,
) -> BudgetPeriod:
    """The period of ``budget`` that ``now`` (aware) falls in."""
    zone = ZoneInfo(budget.timezone)
    first = _first_day(budget.period, now.astimezone(zone).date())
    start = first.isoformat() if first else (f"{dag_id}/{run_id}" if budget.period == "run" else "total")
    return BudgetPeriod(
        budget_id=f"{budget.name}@{start}",
        name=budget.name,
        period=budget.period,
        period_start=start,
        limit_nano=nano_from_usd(budget.limit_usd),
        starts_at=_midnight(first, zone) if first else None,
        ends_at=_midnight(_next_first_day(budget.period, first), zone) if first else None,
        thresholds=tuple(sorted(set(budget.thresholds))),
        source=source,
        budget=budget,
        stated_in=stated_in,
    )


def _first_day(period: str, today: date) -> date | None:
    match period:
        case "day":
            return today
        case "week":
            return today - timedelta(days=today.weekday())
        case "month":
            return today.replace(day=1)
        case _:
            return None


def _next_first_day(period: str, first: date) -> date:
    match period:
        case "day":
            return first + timedelta(days=1)
        case "week":
            return first + timedelta(days=7)
        case _:
            return (first + timedelta(days=31)).replace(day=1)


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    """When a day begins there, in UTC; days are 23 or 25 hours long where clocks change."""
    return datetime.combine(day, time(), zone).astimezone(UTC)
