"""What analysts ask first: costs by any grouping and period, budgets and where they are heading.

The daily rollup answers where it can, in milliseconds whatever the ledger holds. Only a grouping that it does not
have (hour, task, run, route, tier, deployment), or a period that begins within a day, reads the requests themselves.
Both give the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Date, and_, case, cast, func, literal, select, type_coerce

from airflow_ai_provider.core.errors import LedgerError
from airflow_ai_provider.core.ledger.call_costs import usd_from_nano
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.maintenance.partitions import first_kept, midnight
from airflow_ai_provider.core.ledger.schema import llm_adjustments, llm_budgets, llm_cost_daily, llm_requests

_COUNTS = ("requests", "reused", "errors", "unknown", "input_tokens", "output_tokens")
_NANO = ("cost_nano", "saved_nano", "baseline_nano")
_DAY = timedelta(days=1)
_SHORTEST_FORECAST = Decimal("0.01")
"""Share of a period that must have passed before a forecast says anything."""

Expression = Callable[[Any, bool], ColumnElement[Any]]


def _day(moment: Any, sqlite: bool) -> ColumnElement[Any]:
    """The UTC day of a moment."""
    return type_coerce(func.date(moment), Date) if sqlite else cast(func.timezone("UTC", moment), Date)


def _hour(moment: Any, sqlite: bool) -> ColumnElement[Any]:
    if sqlite:
        return func.strftime("%Y-%m-%d %H:00", moment)
    return func.to_char(func.timezone("UTC", moment), "YYYY-MM-DD HH24:00")


def _week(day: Any, sqlite: bool) -> ColumnElement[Any]:
    """The Monday of a day's week."""
    if sqlite:
        return type_coerce(func.date(day, "weekday 0", "-6 days"), Date)
    return cast(func.date_trunc("week", day), Date)


def _month(day: Any, sqlite: bool) -> ColumnElement[Any]:
    return func.strftime("%Y-%m", day) if sqlite else func.to_char(day, "YYYY-MM")


def _provider(model: Any, sqlite: bool) -> ColumnElement[Any]:
    return func.substr(model, 1, func.instr(model, "/") - 1) if sqlite else func.split_part(model, "/", 1)


def _itself(column: Any, sqlite: bool) -> ColumnElement[Any]:
    return column  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Grouping:
    """How a grouping is read from the rollup, and from requests: a column, and what is made of it."""

    daily: str | None
    """Column of ``llm_cost_daily``; ``None`` where it does not know."""
    request: str
    make: Expression = _itself

    def of_day(self, sqlite: bool) -> ColumnElement[Any]:
        assert self.daily is not None
        return self.make(llm_cost_daily.c[self.daily], sqlite)

    def of_request(self, sqlite: bool) -> ColumnElement[Any]:
        column = llm_requests.c[self.request]
        return self.make(_day(column, sqlite) if self.daily == "day" else column, sqlite)


GROUPINGS = {
    "hour": Grouping(None, "created_at", _hour),
    "day": Grouping("day", "created_at"),
    "week": Grouping("day", "created_at", _week),
    "month": Grouping("day", "created_at", _month),
    "team": Grouping("team_id", "team_id"),
    "dag": Grouping("dag_id", "dag_id"),
    "task": Grouping(None, "task_id"),
    "run": Grouping(None, "run_id"),
    "model": Grouping("model", "model"),
    "provider": Grouping("model", "model", _provider),
    "route": Grouping(None, "route"),
    "tier": Grouping(None, "tier"),
    "deployment": Grouping(None, "deployment"),
}


def cost_report(
    ledger: Ledger,
    *,
    by: Sequence[str] = ("day", "team"),
    since: date | datetime | None = None,
    until: date | None = None,
) -> list[dict[str, Any]]:
    """Sums per group, days (UTC) ``since`` to ``until`` inclusive; money as ``Decimal`` USD.

    A ``datetime`` (aware) for ``since`` counts from that moment on. ``routing_saved_usd`` is ``baseline_usd`` less
    ``cost_usd``: what the highest tier would have cost, less what was spent.

    Raises ``LedgerError`` for a grouping that there is not.
    """
    if unknown := [name for name in by if name not in GROUPINGS]:
        raise LedgerError(f"cannot group by {', '.join(unknown)}; expected some of {', '.join(GROUPINGS)}")
    found = [GROUPINGS[name] for name in by]
    moment = isinstance(since, datetime)
    with ledger.read() as conn:
        if moment or any(grouping.daily is None for grouping in found):
            start = since if isinstance(since, datetime) else midnight(since) if since else None
            query = _from_requests(found, by, start, midnight(until + _DAY) if until else None, ledger.sqlite)
        else:
            query = _from_rollup(found, by, since, until, ledger.sqlite)
        return [_in_usd(dict(row)) for row in conn.execute(query).mappings() if row["requests"] is not None]


def most_expensive(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The ``count`` groups of a report that cost most, the highest first."""
    return sorted(rows, key=lambda row: -row["cost_usd"])[:count]


def rows_since(ledger: Ledger, by: Sequence[str]) -> date | None:
    """The first day that a report with these groupings can cover, where retention has dropped earlier ones."""
    if all(GROUPINGS[name].daily for name in by):
        return None
    with ledger.read() as conn:
        kept = first_kept(conn)
        first = conn.execute(select(func.min(llm_cost_daily.c.day))).scalar()
    return kept.date() if kept and first and first < kept.date() else None


def _from_rollup(found: list[Grouping], by: Sequence[str], since: Any, until: date | None, sqlite: bool) -> Any:
    groups = [grouping.of_day(sqlite).label(name) for name, grouping in zip(by, found, strict=True)]
    sums = [func.sum(llm_cost_daily.c[name]).label(name) for name in (*_COUNTS, *_NANO)]
    query = select(*groups, *sums).group_by(*groups).order_by(*groups)
    if since:
        query = query.where(llm_cost_daily.c.day >= since)
    if until:
        query = query.where(llm_cost_daily.c.day <= until)
    return query


def _from_requests(
    found: list[Grouping], by: Sequence[str], start: datetime | None, end: datetime | None, sqlite: bool
) -> Any:
    """Rows and, beside them, the adjustments of each attempt."""
    r, a = llm_requests.c, llm_adjustments.c
    tokens = ("input_tokens", "output_tokens")
    changes = (func.sum(a[name]).label(name) for name in ("delta_nano", *tokens))
    adjusted = select(a.attempt_id, *changes).where(*_between(a.created_at, start, end)).group_by(a.attempt_id)
    deltas = adjusted.subquery("deltas")
    d = deltas.c
    sums = {
        "requests": func.count(),
        **{name: _count(r.status == status) for name, status in (("reused", "reused"), ("errors", "error"))},
        "unknown": _count(and_(r.status == "unknown", d.attempt_id.is_(None))),
        **{name: _total(r[name]) + _total(d[name]) for name in tokens},
        "cost_nano": _total(r.cost_nano) + _total(d.delta_nano),
        "saved_nano": _total(r.saved_nano),
        "baseline_nano": _total(r.baseline_nano),
    }
    groups = [grouping.of_request(sqlite).label(name) for name, grouping in zip(by, found, strict=True)]
    return (
        select(*groups, *(expression.label(name) for name, expression in sums.items()))
        .select_from(llm_requests.join(deltas, d.attempt_id == r.attempt_id, isouter=True))
        .where(*_between(r.created_at, start, end))
        .group_by(*groups)
        .order_by(*groups)
    )


def _between(column: Any, start: datetime | None, end: datetime | None) -> list[ColumnElement[bool]]:
    after = [column >= start.astimezone(UTC)] if start else []
    return [*after, column < end] if end else after


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((condition, 1), else_=0))


def _total(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(column), literal(0))


def _in_usd(row: dict[str, Any]) -> dict[str, Any]:
    row = {name: int(value) if name in (*_COUNTS, *_NANO) else value for name, value in row.items()}
    cost, baseline = row.pop("cost_nano"), row.pop("baseline_nano")
    row["cost_usd"] = usd_from_nano(cost)
    row["saved_usd"] = usd_from_nano(row.pop("saved_nano"))
    row["baseline_usd"] = usd_from_nano(baseline)
    row["routing_saved_usd"] = usd_from_nano(baseline - cost if baseline else 0)
    return row


def total(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sums of a report's figures over all its groups."""
    names = [name for name in (rows[0] if rows else ()) if name not in GROUPINGS]
    return {name: sum((row[name] for row in rows), rows[0][name] * 0) for name in names}


def budget_report(ledger: Ledger, *, now: datetime | None = None) -> list[dict[str, Any]]:
    """Every budget with its limit and what is spent and held, in USD.

    With ``now`` (aware) only those whose period is not over, with ``forecast_usd`` at its end beside them, ``None``
    where there is no end or it is too early to say.
    """
    query = select(llm_budgets).order_by(llm_budgets.c.name, llm_budgets.c.period_start)
    if now:
        query = query.where(_open(now))
    with ledger.read() as conn:
        rows = conn.execute(query).mappings().all()
    return [_budget(row, now) for row in rows]


def _open(now: datetime) -> ColumnElement[bool]:
    """Periods with an end that is to come, and totals, which have none. A run's budget is over with its run."""
    b = llm_budgets.c
    return (b.ends_at > now.astimezone(UTC)) | (b.period == "total")


def _budget(row: Any, now: datetime | None) -> dict[str, Any]:
    told = {
        "budget": row["name"],
        "period": row["period_start"],
        "limit_usd": usd_from_nano(row["limit_nano"]),
        "spent": usd_from_nano(row["spent_nano"]),
        "held": usd_from_nano(row["held_nano"]),
        "left_usd": usd_from_nano(row["limit_nano"] - row["spent_nano"] - row["held_nano"]),
        "source": row["limit_source"],
    }
    if now:
        end = forecast(row["spent_nano"], _aware(row["starts_at"]), _aware(row["ends_at"]), now)
        told["forecast_usd"] = None if end is None else usd_from_nano(end)
    return told


def forecast(spent: int, starts: datetime | None, ends: datetime | None, now: datetime) -> int | None:
    """What will be spent by the end of a period if it goes on as it did so far; ``None`` where that cannot be said."""
    if starts is None or ends is None or not starts < now < ends:
        return None
    passed = Decimal((now - starts) // timedelta(seconds=1)) / ((ends - starts) // timedelta(seconds=1))
    return int(spent / passed) if passed >= _SHORTEST_FORECAST else None


def _aware(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment
