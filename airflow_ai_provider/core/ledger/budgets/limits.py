"""Budget periods and limits, from the policy and as people set them.

Which period a moment belongs to. Pure: time is passed in.

Limits of budgets: what the policy says, what people set since, and who did so and why.

``llm_budget_limits`` only grows. The newest entry from the command line goes before the policy, until one without a
limit gives the budget back to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, func, insert, or_, select, update

from airflow_ai_provider.core.errors import LedgerError
from airflow_ai_provider.core.ledger.call_costs import nano_from_usd, usd_from_nano
from airflow_ai_provider.core.ledger.schema import llm_budget_limits, llm_budgets
from airflow_ai_provider.core.policy import Budget
from airflow_ai_provider.core.policy.loading import PolicyFile, shown_path


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
    """Percent of the limit at which a notice is sent."""
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


POLICY, CLI = "policy", "cli"
_LONGEST_BY, _LONGEST_REASON = 200, 500
"""Characters of their columns."""


@dataclass(frozen=True, slots=True)
class LimitChange:
    """A limit that became another. Amounts in nano-dollars; ``None`` is no limit of that source."""

    name: str
    period: str
    old_nano: int | None
    """The same source's limit before."""
    new_nano: int | None
    stated_in: PolicyFile | None = None
    """The policy file that says it; ``None`` where it was set by hand."""


def budgets_in_force(
    conn: Connection,
    of_policy: Sequence[Budget],
    read_at: datetime | None = None,
    stated_in: Callable[[Budget], PolicyFile | None] = lambda _: None,
) -> list[tuple[Budget, str]]:
    """The policy's budgets with the limits that were set since, and those that were only set; each with its source.

    ``read_at`` is when the policy was read: where another process has read another limit in the same file later, that
    one holds, or a long run and those begun after a change would set the limit back and forth. What a file at another
    path says changes nothing; ``stated_in`` gives the file of a budget.
    """
    given = {row["name"]: row for row in _set_limits(conn)}
    later = _policy_limits(conn, read_at) if read_at else {}
    known: list[tuple[Budget, str]] = []
    for budget in of_policy:
        row = given.pop(budget.name, None)
        limit = row["limit_nano"] if row else _later_limit(later, budget.name, stated_in(budget))
        changed = budget if limit is None else budget.model_copy(update={"limit_usd": usd_from_nano(limit)})
        known.append((changed, CLI if row else POLICY))
    return known + [(_budget(row), CLI) for row in given.values()]


def planned_change(conn: Connection, budget: Budget, *, clear: bool, by: str, reason: str) -> LimitChange:
    """What ``set_limit`` would do.

    Raises ``LedgerError`` without a name or a reason, where one is too long, and where there is nothing to clear.
    """
    if not by.strip() or not reason.strip():
        raise LedgerError("--by and --reason must not be empty")
    if len(by) > _LONGEST_BY or len(reason) > _LONGEST_REASON:
        raise LedgerError(
            f"the history keeps a name of at most {_LONGEST_BY} characters, a reason of {_LONGEST_REASON}"
        )
    before = next((row["limit_nano"] for row in _set_limits(conn) if row["name"] == budget.name), None)
    if clear and before is None:
        raise LedgerError(f"budget {budget.name}: no limit was set by hand; the policy's holds")
    return LimitChange(budget.name, budget.period, before, None if clear else nano_from_usd(budget.limit_usd))


def set_limit(conn: Connection, budget: Budget, *, clear: bool, by: str, reason: str, now: datetime) -> LimitChange:
    """Let ``budget.limit_usd`` hold from the next hold on, or with ``clear`` what the policy says.

    Raises ``LedgerError`` as ``planned_change`` does.
    """
    change = planned_change(conn, budget, clear=clear, by=by, reason=reason)
    limit = change.new_nano
    _write_down(conn, budget, limit, source=CLI, by=by, reason=reason, now=now)
    if limit is not None:  # the policy's limit comes back with the next hold, from a process that has read the policy
        conn.execute(
            update(llm_budgets)
            .where(llm_budgets.c.name == budget.name, or_(llm_budgets.c.ends_at.is_(None), llm_budgets.c.ends_at > now))
            .values(limit_nano=limit, limit_source=CLI, updated_at=now)
        )
    return change


def note_policy_limit(conn: Connection, period: BudgetPeriod, now: datetime) -> LimitChange | None:
    """Write down what the policy says of a budget, if it said something else before."""
    if period.budget is None or period.source != POLICY:
        return None
    last = conn.execute(
        select(llm_budget_limits.c.limit_nano)
        .where(llm_budget_limits.c.name == period.name, llm_budget_limits.c.source == POLICY)
        .order_by(llm_budget_limits.c.change_id.desc())
        .limit(1)
    ).scalar()
    if last == period.limit_nano:
        return None
    said = {"source": POLICY, "by": "policy", "reason": "policy.yaml"}
    _write_down(conn, period.budget, period.limit_nano, now=now, stated_in=period.stated_in, **said)
    return LimitChange(period.name, period.period, last, period.limit_nano, period.stated_in)


def limit_history(conn: Connection, name: str | None = None) -> list[dict[str, Any]]:
    """Every change, newest first; amounts in nano-dollars."""
    query = select(llm_budget_limits).order_by(llm_budget_limits.c.change_id.desc())
    if name is not None:
        query = query.where(llm_budget_limits.c.name == name)
    return [dict(row) for row in conn.execute(query).mappings()]


def _set_limits(conn: Connection) -> list[Any]:
    """The newest entry of the command line for each budget, where it sets a limit."""
    newest = (
        select(func.max(llm_budget_limits.c.change_id))
        .where(llm_budget_limits.c.source == CLI)
        .group_by(llm_budget_limits.c.name)
    )
    query = (
        select(llm_budget_limits)
        .where(llm_budget_limits.c.change_id.in_(newest), llm_budget_limits.c.limit_nano.is_not(None))
        .order_by(llm_budget_limits.c.name)
    )
    return list(conn.execute(query).mappings())


def _policy_limits(conn: Connection, after: datetime) -> dict[tuple[str, str | None], int]:
    """Limits that a policy file was seen to say after a moment, the newest of each budget and file."""
    columns = (llm_budget_limits.c.name, llm_budget_limits.c.policy_path, llm_budget_limits.c.limit_nano)
    query = select(*columns).where(llm_budget_limits.c.source == POLICY, llm_budget_limits.c.set_at > after)
    newest = conn.execute(query.order_by(llm_budget_limits.c.change_id))
    return {(row.name, row.policy_path): row.limit_nano for row in newest}


def _later_limit(later: Mapping[tuple[str, str | None], int], name: str, file: PolicyFile | None) -> int | None:
    return later.get((name, shown_path(file.path) if file else None))


def _budget(row: Any) -> Budget:
    return Budget(
        limit_usd=usd_from_nano(row["limit_nano"]),
        period=row["period"],
        team=row["team_id"],
        dag=row["dag_id"],
        route=row["route"],
        timezone=row["timezone"],
    )


def _write_down(
    conn: Connection,
    budget: Budget,
    limit: int | None,
    *,
    source: str,
    by: str,
    reason: str,
    now: datetime,
    stated_in: PolicyFile | None = None,
) -> None:
    conn.execute(
        insert(llm_budget_limits),
        {
            "name": budget.name,
            "team_id": budget.team,
            "dag_id": budget.dag,
            "route": budget.route,
            "period": budget.period,
            "timezone": budget.timezone,
            "limit_nano": limit,
            "source": source,
            "set_by": by,
            "reason": reason,
            "set_at": now,
            "policy_path": shown_path(stated_in.path) if stated_in else None,
            "policy_hash": stated_in.digest if stated_in else None,
        },
    )
