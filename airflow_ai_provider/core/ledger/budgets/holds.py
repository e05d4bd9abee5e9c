"""Holds: room taken in every budget that applies, before a call is made.

A hold is taken, extended, renewed and closed inside the caller's transaction. Budgets are locked in the order of
their ids, so that two processes cannot block each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from airflow_ai_provider.core.errors import LedgerError
from airflow_ai_provider.core.ledger.budgets.limits import BudgetPeriod, LimitChange, note_policy_limit
from airflow_ai_provider.core.ledger.budgets.thresholds import note_thresholds
from airflow_ai_provider.core.ledger.database import insert_ignore
from airflow_ai_provider.core.ledger.schema import llm_budget_sets, llm_budgets, llm_holds, llm_open_attempts

LIVE_FOR = timedelta(seconds=60)
"""A hold not renewed for so long belongs to a process that is gone: it still counts, but rows do not wait for it."""
RENEW_EVERY = timedelta(seconds=15)
_TASK_INSTANCE = ("dag_id", "run_id", "task_id", "map_index")


@dataclass(frozen=True, slots=True)
class TaskRef:
    """The task instance that holds, as the ledger names it."""

    team_id: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request for room came to. All amounts in nano-dollars."""

    granted: int
    """How many of the amounts asked for, from the first on, are held now."""
    room: int
    """What is free now, in the tightest budget."""
    ceiling: int
    """What would be free if every hold were released, the ones just taken included: a larger amount will never fit."""
    live_holds: bool
    """Some live hold could still release room."""
    short_of: str
    """Name of the tightest budget."""
    limit_changes: tuple[LimitChange, ...] = ()
    """What the policy says now and did not say before."""


def ensure_budgets(conn: Connection, periods: Sequence[BudgetPeriod], now: datetime) -> list[LimitChange]:
    """Make the rows of these periods, and let limit and thresholds be what is in force.

    Returns the limits by which the policy has changed since it was last seen.
    """
    columns = (llm_budgets.c.budget_id, llm_budgets.c.limit_nano, llm_budgets.c.limit_source, llm_budgets.c.thresholds)
    query = select(*columns).where(llm_budgets.c.budget_id.in_([p.budget_id for p in periods]))
    known = {row.budget_id: tuple(row[1:]) for row in conn.execute(query)}
    changes: list[LimitChange | None] = []
    for period in sorted(periods, key=lambda p: p.budget_id):
        said = {
            "limit_nano": period.limit_nano,
            "limit_source": period.source,
            "thresholds": json.dumps(list(period.thresholds)),
        }
        if period.budget_id not in known:
            made = conn.execute(
                insert_ignore(conn, llm_budgets), {**_period_columns(period), **said, "updated_at": now}
            )
        elif known[period.budget_id] != tuple(said.values()):
            changed = update(llm_budgets).where(llm_budgets.c.budget_id == period.budget_id)
            made = conn.execute(changed.values(**said, updated_at=now))
        else:
            continue
        if made.rowcount:
            changes.append(note_policy_limit(conn, period, now))
    return [change for change in changes if change is not None]


def take_hold(
    conn: Connection,
    *,
    hold_id: str,
    owner: str,
    task: TaskRef,
    periods: Sequence[BudgetPeriod],
    amounts: Sequence[int],
    now: datetime,
    extends: bool = False,
) -> Grant:
    """Hold as many of ``amounts`` as fit every budget, in their order; the hold is made or grows by their sum.

    Raises ``LedgerError`` where no budget applies, where a newer try of the task instance holds room, and where the
    hold ``extends`` one that is gone: made anew it would let shares be sent that were released.
    """
    if not periods:
        raise LedgerError(f"no budget applies to team {task.team_id!r} any more: no limit, no call; set one again")
    refuse_taken_over(conn, owner, task)
    changes = ensure_budgets(conn, periods, now)
    ids = sorted(period.budget_id for period in periods)
    rows = _lock(conn, ids)
    room = min(row.limit_nano - row.spent_nano - row.held_nano for row in rows)
    granted, total = _fit(amounts, room)
    if granted:
        _move(conn, dict.fromkeys(ids, total), {}, now)
        if not _grow(conn, hold_id, total, now):
            if extends:
                raise LedgerError("this try was fenced off: its room was released as that of a task that is over")
            _make(conn, hold_id, owner, task, ids, total, now)
    tightest = min(rows, key=lambda row: row.limit_nano - row.spent_nano - row.held_nano)
    return Grant(
        granted,
        room=room - total,
        ceiling=min(row.limit_nano - row.spent_nano for row in rows),
        live_holds=granted > 0 or _live_holds(conn, ids, now),
        short_of=tightest.name,
        limit_changes=tuple(changes),
    )


def held_now(conn: Connection, hold_id: str, *, ended_in: Iterable[str] = ()) -> int | None:
    """What a hold amounts to; ``None`` where there is none.

    Waits until what is under way in the budgets of ``ended_in`` has ended: a commit whose reply was lost may be.
    """
    if ids := sorted(ended_in):
        _lock(conn, ids)
    return conn.execute(select(llm_holds.c.amount_nano).where(llm_holds.c.hold_id == hold_id)).scalar()


def release(conn: Connection, held: dict[str, int], spent: dict[str, int], now: datetime) -> dict[str, str]:
    """Take amounts off holds, by hold id, and charge what was spent to the same budgets. Closes no hold.

    Returns the name of each hold's set of budgets (``llm_budget_sets``).
    """
    if not held:
        return {}
    columns = (llm_holds.c.hold_id, llm_holds.c.budget_ids, llm_holds.c.budget_set)
    holds = conn.execute(select(*columns).where(llm_holds.c.hold_id.in_(list(held)))).all()
    freed: dict[str, int] = {}
    charged: dict[str, int] = {}
    for hold in holds:
        for budget_id in json.loads(hold.budget_ids):
            freed[budget_id] = freed.get(budget_id, 0) - held[hold.hold_id]
            charged[budget_id] = charged.get(budget_id, 0) + spent.get(hold.hold_id, 0)
    conn.execute(
        update(llm_holds)
        .where(llm_holds.c.hold_id == bindparam("h"))
        .values(amount_nano=llm_holds.c.amount_nano - bindparam("amount"), renewed_at=now),
        [{"h": hold_id, "amount": held[hold_id]} for hold_id in sorted(hold.hold_id for hold in holds)],
    )
    _move(conn, freed, charged, now)
    return {hold.hold_id: hold.budget_set for hold in holds}


def charge(conn: Connection, spent: dict[str, int], now: datetime) -> None:
    """Add to what was spent, by budget id; below zero where an invoice says less than was captured."""
    _move(conn, {}, spent, now)


def close_holds(conn: Connection, hold_ids: Sequence[str], now: datetime) -> None:
    """Release what is left of these holds and remove them. A hold with an attempt still open stays as it is."""
    unsettled = exists().where(llm_open_attempts.c.hold_id == llm_holds.c.hold_id)
    rows = conn.execute(
        delete(llm_holds)
        .where(llm_holds.c.hold_id.in_(list(hold_ids)), ~unsettled)
        .returning(llm_holds.c.budget_ids, llm_holds.c.amount_nano)
    ).all()
    freed: dict[str, int] = {}
    for row in rows:
        for budget_id in json.loads(row.budget_ids):
            freed[budget_id] = freed.get(budget_id, 0) - row.amount_nano
    _move(conn, freed, {}, now)


def renew_holds(conn: Connection, owner: str, now: datetime) -> None:
    """Say that the owner is alive."""
    conn.execute(update(llm_holds).where(llm_holds.c.owner == owner).values(renewed_at=now))


def usable_holds(conn: Connection, hold_ids: Sequence[str]) -> set[str]:
    """Those of ``hold_ids`` that are there and of no task instance for which a newer try holds room.

    They are locked against being closed until the transaction ends, and not against being charged meanwhile.
    """
    return set(conn.execute(_usable(), {"ids": list(hold_ids)}).scalars())


@lru_cache(maxsize=1)
def _usable() -> Select[Any]:
    """Made once: to build it takes longer than to run it."""
    mine, other = llm_holds.alias("mine"), llm_holds.alias("other")
    same = [mine.c[name] == other.c[name] for name in _TASK_INSTANCE]
    taken_over = exists().where(*same, _is_newer(other.c, mine.c.try_number, mine.c.owner)).correlate(mine)
    return (
        select(mine.c.hold_id)
        .where(mine.c.hold_id.in_(bindparam("ids", expanding=True)), ~taken_over)
        .with_for_update(read=True, key_share=True, of=mine)
    )


def refuse_taken_over(conn: Connection, owner: str, task: TaskRef) -> None:
    """Raise ``LedgerError`` where a newer try of the task holds."""
    newer = exists().where(same_task(task), _is_newer(llm_holds.c, task.try_number, owner))
    if conn.execute(select(newer)).scalar():
        raise LedgerError("this try was fenced off: a newer try of the task has taken over; nothing more is sent")


def _is_newer(columns: Any, try_number: Any, owner: Any) -> ColumnElement[bool]:
    """A later try or, of one number, the process that began later: names of owners sort by time."""
    later = and_(columns.try_number == try_number, columns.owner > owner)
    return or_(columns.try_number > try_number, later)


def same_task(task: TaskRef) -> ColumnElement[bool]:
    """Holds of the same task instance, whichever try."""
    return and_(*(llm_holds.c[name] == getattr(task, name) for name in _TASK_INSTANCE))


def _lock(conn: Connection, ids: Sequence[str]) -> Sequence[Any]:
    """Budgets as they are, until the transaction ends; ``ids`` are sorted."""
    columns = (llm_budgets.c[name] for name in ("budget_id", "name", "limit_nano", "spent_nano", "held_nano"))
    query = select(*columns).where(llm_budgets.c.budget_id.in_(ids)).order_by(llm_budgets.c.budget_id)
    return conn.execute(query.with_for_update()).all()


def _period_columns(period: BudgetPeriod) -> dict[str, Any]:
    names = ("budget_id", "name", "period", "period_start", "starts_at", "ends_at")
    return {name: getattr(period, name) for name in names}


def _fit(amounts: Sequence[int], room: int) -> tuple[int, int]:
    """How many amounts, from the first on, fit the room; and their sum."""
    total = 0
    for index, amount in enumerate(amounts):
        if total + amount > room:
            return index, total
        total += amount
    return len(amounts), total


def _grow(conn: Connection, hold_id: str, total: int, now: datetime) -> bool:
    """Whether the hold was there."""
    grown = conn.execute(
        update(llm_holds)
        .where(llm_holds.c.hold_id == hold_id)
        .values(amount_nano=llm_holds.c.amount_nano + total, renewed_at=now)
    )
    return bool(grown.rowcount)


def _make(
    conn: Connection, hold_id: str, owner: str, task: TaskRef, ids: Sequence[str], total: int, now: datetime
) -> None:
    listed = json.dumps(list(ids))
    budget_set = hashlib.sha256(listed.encode()).hexdigest()[:16]
    conn.execute(insert_ignore(conn, llm_budget_sets), {"budget_set": budget_set, "budget_ids": listed})
    conn.execute(
        insert(llm_holds),
        {
            "hold_id": hold_id,
            "owner": owner,
            "team_id": task.team_id,
            "dag_id": task.dag_id,
            "run_id": task.run_id,
            "task_id": task.task_id,
            "map_index": task.map_index,
            "try_number": task.try_number,
            "budget_ids": listed,
            "budget_set": budget_set,
            "amount_nano": total,
            "created_at": now,
            "renewed_at": now,
        },
    )


def _move(conn: Connection, held: dict[str, int], spent: dict[str, int], now: datetime) -> None:
    """Add to ``held`` and ``spent`` of budgets, in the order of their ids, and note the thresholds that are crossed."""
    for budget_id in sorted(held.keys() | spent.keys()):
        charged = spent.get(budget_id, 0)
        values = {"b": budget_id, "hold": held.get(budget_id, 0), "charge": charged, "now": now}
        moved = conn.execute(_moving(), values).one_or_none()
        if moved is not None and charged:
            note_thresholds(conn, moved, now)


@lru_cache(maxsize=1)
def _moving() -> ReturningUpdate[Any]:
    budgets = llm_budgets.c
    return (
        update(llm_budgets)
        .where(budgets.budget_id == bindparam("b"))
        .values(
            held_nano=budgets.held_nano + bindparam("hold"),
            spent_nano=budgets.spent_nano + bindparam("charge"),
            updated_at=bindparam("now"),
        )
        .returning(
            budgets.budget_id, budgets.limit_nano, budgets.spent_nano, budgets.thresholds, budgets.noticed_percent
        )
    )


def _live_holds(conn: Connection, budget_ids: Sequence[str], now: datetime) -> bool:
    """Whether any hold on these budgets belongs to a process that is alive."""
    rows = conn.execute(
        select(llm_holds.c.budget_ids).where(llm_holds.c.renewed_at > now - LIVE_FOR, llm_holds.c.amount_nano > 0)
    )
    wanted = set(budget_ids)
    return any(wanted.intersection(json.loads(ids)) for ids in rows.scalars())


def total_held(conn: Connection, budget_id: str) -> int:
    """What holds on a budget add up to; equals its ``held`` at every commit."""
    rows = conn.execute(select(llm_holds.c.budget_ids, llm_holds.c.amount_nano)).all()
    return sum(row.amount_nano for row in rows if budget_id in json.loads(row.budget_ids))


def count_holds(conn: Connection) -> int:
    return conn.execute(select(func.count()).select_from(llm_holds)).scalar_one()
