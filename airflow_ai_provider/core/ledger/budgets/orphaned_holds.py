"""Holds of tasks that are over and will not come back: found by the state of the task, not by time alone.

A live process renews its holds; one that is silent may be dead or only stuck. Whether its task still runs is known to
the scheduler, so the caller says it. What a dead process left open is captured as ``unknown``, at its whole hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from airflow_ai_provider.core.ledger.attempts.attempts import Settled, settle, unknown_attempts
from airflow_ai_provider.core.ledger.budgets.holds import LIVE_FOR, TaskRef, close_holds
from airflow_ai_provider.core.ledger.schema import llm_holds

STILL_RUNNING = frozenset({"running", "restarting"})
"""States of Airflow in which a task's process may be alive."""
UNKNOWN_AFTER = timedelta(hours=1)
"""Silence after which a holder that no scheduler knows, such as a notebook, counts as gone."""
_TASK = ("team_id", "dag_id", "run_id", "task_id", "map_index", "try_number")


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds room and has not been heard of for a while."""

    owner: str
    task: TaskRef
    held_nano: int
    silent_since: datetime


def silent_holders(conn: Connection, now: datetime) -> list[Holder]:
    """Processes that have not renewed their holds for ``LIVE_FOR``, the longest silent first."""
    columns = [llm_holds.c[name] for name in ("owner", *_TASK)]
    heard = func.max(llm_holds.c.renewed_at).label("heard")
    query = (
        select(*columns, func.sum(llm_holds.c.amount_nano).label("held"), heard)
        .group_by(*columns)
        .having(heard < now - LIVE_FOR)
        .order_by(heard)
    )
    return [
        Holder(
            owner=row["owner"],
            task=TaskRef(**{name: row[name] for name in _TASK}),
            held_nano=int(row["held"]),
            silent_since=row["heard"].replace(tzinfo=now.tzinfo) if row["heard"].tzinfo is None else row["heard"],
        )
        for row in conn.execute(query).mappings()
    ]


def is_over(holder: Holder, state: str | None, *, known: bool, now: datetime) -> bool:
    """Whether a silent holder will not come back, by its task's ``state``; ``known`` is whether there is such a task.

    A state of ``None`` of a known task is one that was cleared: its next try is to come, this one is over.
    """
    if not known:
        return now - holder.silent_since >= UNKNOWN_AFTER
    return state not in STILL_RUNNING


def sweep(conn: Connection, owners: Sequence[str], now: datetime) -> tuple[int, list[Settled]]:
    """Settle what these processes left open and release their holds.

    A process that has been heard of again in between is left alone; one that wakes up later is fenced off. Returns how
    many holds are gone, and the attempts that were captured.
    """
    query = select(llm_holds.c.hold_id).where(llm_holds.c.owner.in_(owners), llm_holds.c.renewed_at < now - LIVE_FOR)
    hold_ids = list(conn.execute(query.with_for_update()).scalars())
    if not hold_ids:
        return 0, []
    settled = unknown_attempts(conn, hold_ids, now)
    settle(conn, settled, now)
    close_holds(conn, hold_ids, now)
    return len(hold_ids), settled
