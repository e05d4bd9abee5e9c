"""Whether ``llm_cost_daily`` is what ``llm_requests`` and ``llm_adjustments`` add up to, and putting it right.

The rollup is written in the transactions that write the rows, so that a difference is the work of somebody else: a
restored backup, a hand on the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, case, delete, distinct, func, insert, literal, select, text

from airflow_ai_provider.ledger.database import Ledger
from airflow_ai_provider.ledger.partitions import first_kept, midnight
from airflow_ai_provider.ledger.schema import llm_adjustments, llm_cost_daily, llm_requests

KEY = ("team_id", "dag_id", "model")
_TOKENS = tuple(column.name for column in llm_cost_daily.columns if column.name.endswith("_tokens"))
_ADJUSTED_TOKENS = tuple(name for name in _TOKENS if name in llm_adjustments.c)
SUMS = (
    "requests",
    "reused",
    "errors",
    "unknown",
    *_TOKENS,
    "cost_nano",
    "saved_nano",
    "baseline_nano",
    "adjusted_nano",
)
_DAY = timedelta(days=1)
Sums = dict[tuple[str, str, str], dict[str, int]]
"""Sums of one day by team, DAG and model."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One figure of the rollup that is not what the rows add up to."""

    day: date
    team: str
    dag: str
    model: str
    column: str
    rollup: int
    rows: int


def days_to_check(conn: Connection, since: date | None, until: date) -> tuple[list[date], int]:
    """Days from ``since`` (``None``: the ledger's first) to ``until``, and how many of them have lost their rows.

    Days from before the first row that is kept cannot be checked: their rows were dropped by retention. Days before
    ``since`` that an invoice has adjusted on ``since`` or later are checked as well.
    """
    kept = first_kept(conn)
    first = conn.execute(select(func.min(llm_cost_daily.c.day))).scalar()
    starts = [day for day in (first, kept.date() if kept else None) if day]
    if not starts:
        return [], 0
    days = _days(max(since or min(starts), min(starts)), until)
    if since:
        days = sorted({*days, *_adjusted_days(conn, midnight(since))})
    there = [day for day in days if kept and day >= kept.date()]
    return there, len(days) - len(there)


def check_day(conn: Connection, day: date) -> list[Drift]:
    """What differs on one day, in the order of keys. ``conn`` must see one state of the ledger (``snapshot``)."""
    stored, added = _stored(conn, day), _added_up(conn, day)
    nothing = dict.fromkeys(SUMS, 0)
    return [
        Drift(day, *key, column, stored.get(key, nothing)[column], added.get(key, nothing)[column])
        for key in sorted(stored.keys() | added.keys())
        for column in SUMS
        if stored.get(key, nothing)[column] != added.get(key, nothing)[column]
    ]


def check_days(ledger: Ledger, days: list[date]) -> Iterator[list[Drift]]:
    """What differs, one list for each day. Each day is read in a transaction of its own."""
    for day in days:
        with ledger.snapshot() as conn:
            found = check_day(conn, day)
        yield found


def repair_day(ledger: Ledger, day: date) -> None:
    """Rewrite the rollup of a day from its rows, in one transaction; who settles meanwhile waits for it."""
    with ledger.write() as conn:
        if not ledger.sqlite:
            conn.execute(text("LOCK TABLE llm_cost_daily IN SHARE ROW EXCLUSIVE MODE"))
        rows = [{"day": day, **dict(zip(KEY, key, strict=True)), **sums} for key, sums in _added_up(conn, day).items()]
        conn.execute(delete(llm_cost_daily).where(llm_cost_daily.c.day == day))
        if rows:
            conn.execute(insert(llm_cost_daily), rows)


def _days(first: date, last: date) -> list[date]:
    return [first + _DAY * number for number in range((last - first).days + 1)]


def _adjusted_days(conn: Connection, since: datetime) -> set[date]:
    moments = select(llm_adjustments.c.created_at).distinct().where(llm_adjustments.c.adjusted_at >= since)
    return {moment.date() for moment in conn.execute(moments).scalars()}


def _stored(conn: Connection, day: date) -> Sums:
    columns = [llm_cost_daily.c[name] for name in (*KEY, *SUMS)]
    return _by_key(conn.execute(select(*columns).where(llm_cost_daily.c.day == day)).mappings())


def _added_up(conn: Connection, day: date) -> Sums:
    """What the rows of a day, and the adjustments of these rows, come to."""
    sums = _by_key(conn.execute(_request_sums(day)).mappings())
    for key, changes in _by_key(conn.execute(_adjustment_sums(day)).mappings()).items():
        total = sums.setdefault(key, dict.fromkeys(SUMS, 0))
        total["unknown"] -= changes["resolved"]
        total["cost_nano"] += changes["delta_nano"]
        total["adjusted_nano"] += changes["delta_nano"]
        for name in _ADJUSTED_TOKENS:
            total[name] += changes[name]
    return sums


def _request_sums(day: date) -> Any:
    r = llm_requests.c
    counts = {"reused": "reused", "errors": "error", "unknown": "unknown"}
    return (
        select(
            *(r[name] for name in KEY),
            func.count().label("requests"),
            *(func.sum(case((r.status == status, 1), else_=0)).label(name) for name, status in counts.items()),
            *(func.coalesce(func.sum(r[name]), 0).label(name) for name in _TOKENS),
            *(func.sum(r[name]).label(name) for name in ("cost_nano", "saved_nano", "baseline_nano")),
            literal(0).label("adjusted_nano"),
        )
        .where(r.created_at >= midnight(day), r.created_at < midnight(day + _DAY))
        .group_by(*(r[name] for name in KEY))
    )


def _adjustment_sums(day: date) -> Any:
    a, r = llm_adjustments.c, llm_requests.c
    start, end = midnight(day), midnight(day + _DAY)
    same = and_(a.attempt_id == r.attempt_id, r.created_at >= start, r.created_at < end)
    return (
        select(
            *(a[name] for name in KEY),
            func.count(distinct(case((r.status == "unknown", a.attempt_id)))).label("resolved"),
            func.sum(a.delta_nano).label("delta_nano"),
            *(func.sum(a[name]).label(name) for name in _ADJUSTED_TOKENS),
        )
        .select_from(llm_adjustments.join(llm_requests, same, isouter=True))
        .where(a.created_at >= start, a.created_at < end)
        .group_by(*(a[name] for name in KEY))
    )


def _by_key(rows: Any) -> Sums:
    return {
        (row["team_id"], row["dag_id"], row["model"]): {
            name: int(value) for name, value in row.items() if name not in KEY
        }
        for row in rows
    }
