"""Upkeep of ``llm_requests``: months made ahead, months past their retention dropped.

Months go oldest first, and none after one that has to stay: from the first row that is kept, every row is kept. The
rollup ``llm_cost_daily`` keeps what dropped months have cost. Adjustments go with the month they were made in, which is
never before that of their request. Review items go with the month they were closed in; an open one stays, and holds up
no month: it says itself all that a person needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Table, delete, exists, func, select, text

from airflow_ai_provider.errors import LedgerError
from airflow_ai_provider.ledger.database import Ledger
from airflow_ai_provider.ledger.partitions import (
    MONTHS_AHEAD,
    detach_pending,
    leftover_months,
    make_months,
    missing_months,
    month_name,
    months_before,
    months_from,
    months_there,
    next_month,
)
from airflow_ai_provider.ledger.schema import (
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
