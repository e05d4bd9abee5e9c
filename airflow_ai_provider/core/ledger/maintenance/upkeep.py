"""Retention of requests, and repair of the daily rollup.

Upkeep of ``llm_requests``: months made ahead, months past their retention dropped.

Months go oldest first, and none after one that has to stay: from the first row that is kept, every row is kept. The
rollup ``llm_cost_daily`` keeps what dropped months have cost. Adjustments go with the month they were made in, which is
never before that of their request. Review items go with the month they were closed in; an open one stays, and holds up
no month: it says itself all that a person needs.

Whether ``llm_cost_daily`` is what ``llm_requests`` and ``llm_adjustments`` add up to, and putting it right.

The rollup is written in the transactions that write the rows, so that a difference has another cause: a
restored backup, a hand on the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import takewhile
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Table,
    and_,
    case,
    delete,
    distinct,
    exists,
    func,
    insert,
    literal,
    select,
    text,
)

from airflow_ai_provider.core.errors import LedgerError
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.maintenance.partitions import (
    MONTHS_AHEAD,
    detach_pending,
    first_kept,
    leftover_months,
    make_months,
    midnight,
    missing_months,
    month_name,
    months_before,
    months_from,
    months_there,
    next_month,
)
from airflow_ai_provider.core.ledger.schema import (
    llm_adjustments,
    llm_budgets,
    llm_cost_daily,
    llm_open_attempts,
    llm_requests,
    review_items,
)

_DAY = timedelta(days=1)
Progress = Callable[[int, int], None]
"""Told how many of how many steps are done."""


@dataclass(frozen=True, slots=True)
class OldMonth:
    """A month past its retention."""

    first: datetime
    rows: int
    """As the rollup counts them."""
    needed: str = ""
    """Why its rows are still needed; empty where they are not."""

    @property
    def name(self) -> str:
        return f"{self.first:%Y-%m}"


@dataclass(frozen=True, slots=True)
class Maintenance:
    """What was done, or would be."""

    made: tuple[str, ...]
    """Months for which a partition was made, as ``2025-01``."""
    dropped: tuple[OldMonth, ...]
    kept: tuple[OldMonth, ...]
    """Months past their retention that stay, because they or an older one are needed."""


def maintain(
    ledger: Ledger,
    *,
    now: datetime,
    keep_months: int | None,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> Maintenance:
    """Make months ahead and drop those more than ``keep_months`` months before the present one (``None``: keep all).

    A month stays while a budget that it counts for is open, attempts that were opened in it are not settled, or it
    has ``unknown`` rows that no invoice has resolved; ``force`` drops it all the same. What was interrupted is ended
    by the next run. Raises ``LedgerError`` where ``keep_months`` is below 1.
    """
    if keep_months is not None and keep_months < 1:
        raise LedgerError(f"keep_months {keep_months}: expected 1 or more, the full months kept before the present one")
    ahead = list(months_from(now, MONTHS_AHEAD + 1))
    with ledger.read() as conn:
        made = missing_months(conn, ahead)
        old = [] if keep_months is None else list(_old_months(conn, now, months_before(now, keep_months)))
        leftover = [] if keep_months is None else leftover_months(conn)
    dropped = old if force else list(takewhile(lambda month: not month.needed, old))
    if not dry_run:
        with ledger.write() as conn:
            make_months(conn, ahead)
        _drop(ledger, [*leftover, *(month.first for month in dropped)], progress)
    names = tuple(f"{month:%Y-%m}" for month in made)
    return Maintenance(names, tuple(dropped), tuple(old[len(dropped) :]))


def _old_months(conn: Connection, now: datetime, keep_from: datetime) -> Iterator[OldMonth]:
    for month in months_there(conn):
        if month < keep_from:
            days = llm_cost_daily.c.day >= month.date(), llm_cost_daily.c.day < next_month(month).date()
            rows = conn.execute(select(func.sum(llm_cost_daily.c.requests)).where(*days)).scalar()
            yield OldMonth(month, int(rows or 0), _need(conn, month, now))


def _need(conn: Connection, month: datetime, now: datetime) -> str:
    """Why the rows of a month are still needed, in words."""
    after = next_month(month)
    budget = conn.execute(
        select(llm_budgets.c.budget_id).where(llm_budgets.c.starts_at < after, llm_budgets.c.ends_at > now).limit(1)
    ).scalar()
    if budget:
        return f"budget {budget} is still open"
    opened = _count(conn, llm_open_attempts, *_within(llm_open_attempts.c.opened_at, month, after))
    if opened:
        return f"{opened} attempts opened in it are not settled"
    resolved = exists().where(llm_adjustments.c.attempt_id == llm_requests.c.attempt_id)
    within = _within(llm_requests.c.created_at, month, after)
    unknown = _count(conn, llm_requests, llm_requests.c.status == "unknown", ~resolved, *within)
    return f"{unknown} unknown amounts are not reconciled" if unknown else ""


def _drop(ledger: Ledger, months: list[datetime], progress: Progress) -> None:
    for number, month in enumerate(months, 1):
        if ledger.sqlite:
            _delete_days(ledger, month)
        else:
            _drop_partition(ledger, month)
        progress(number, len(months))


def _delete_days(ledger: Ledger, month: datetime) -> None:
    """Day by day, so that a writer waits for one day's rows at most and no day is ever half there."""
    day = month
    while day < next_month(month):
        with ledger.write() as conn:
            for moment in (llm_requests.c.created_at, llm_adjustments.c.adjusted_at):
                conn.execute(delete(moment.table).where(*_within(moment, day, day + _DAY)))
            _drop_reviews(conn, day + _DAY)
        day += _DAY


def _drop_partition(ledger: Ledger, month: datetime) -> None:
    """Detach first: dropping an attached partition would hold up every query on the table."""
    name = month_name(month)
    with ledger.statements() as conn:
        if detach_pending(conn, month):
            conn.execute(text(f"ALTER TABLE llm_requests DETACH PARTITION {name} FINALIZE"))
        elif month in months_there(conn):
            conn.execute(text(f"ALTER TABLE llm_requests DETACH PARTITION {name} CONCURRENTLY"))
    with ledger.write() as conn:
        conn.execute(text(f"DROP TABLE {name}"))
        conn.execute(delete(llm_adjustments).where(*_within(llm_adjustments.c.adjusted_at, month, next_month(month))))
        _drop_reviews(conn, next_month(month))


def _drop_reviews(conn: Connection, before: datetime) -> None:
    closed = review_items.c.status != "open"
    conn.execute(delete(review_items).where(closed, review_items.c.updated_at < before))


def _within(column: Column[Any], start: datetime, end: datetime) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return column >= start, column < end


def _count(conn: Connection, table: Table, *conditions: ColumnElement[bool]) -> int:
    return conn.execute(select(func.count()).select_from(table).where(*conditions)).scalar_one()


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
