"""Thresholds of budgets: noted in the transaction that crosses them, and sent by the process that claims the note.

A note is made once for each budget, period and percent, and claimed once, over all processes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, or_, select, update

from airflow_ai_provider.core.ledger.database import insert_ignore
from airflow_ai_provider.core.ledger.schema import llm_budget_notices, llm_budgets


@dataclass(frozen=True, slots=True)
class Notice:
    """A budget of which ``percent`` of the limit is spent. Amounts in nano-dollars, as they are when it is told."""

    budget_id: str
    name: str
    period: str
    period_start: str
    percent: int
    limit_nano: int
    spent_nano: int
    crossed_at: datetime


def crossed(thresholds: tuple[int, ...], *, noticed: int, spent_nano: int, limit_nano: int) -> list[int]:
    """The thresholds (percent) that ``spent`` has reached and that lie above what was ``noticed`` before."""
    return [percent for percent in thresholds if percent > noticed and spent_nano * 100 >= percent * limit_nano]


def note_thresholds(conn: Connection, budget: Any, now: datetime) -> None:
    """Note what the budget has crossed; ``budget`` is its row after the spending, locked by this transaction."""
    found = crossed(
        tuple(json.loads(budget.thresholds)),
        noticed=budget.noticed_percent,
        spent_nano=budget.spent_nano,
        limit_nano=budget.limit_nano,
    )
    if not found:
        return
    notes = [{"budget_id": budget.budget_id, "percent": percent, "crossed_at": now} for percent in found]
    conn.execute(insert_ignore(conn, llm_budget_notices), notes)
    conn.execute(
        update(llm_budgets).where(llm_budgets.c.budget_id == budget.budget_id).values(noticed_percent=max(found))
    )


def claim_notices(conn: Connection, now: datetime, *, replay: bool = False) -> list[Notice]:
    """Take every note that has not been sent yet; the caller is the one who tells it.

    On a ``replay``, after a commit whose reply was lost, those that were taken at the same ``now`` are taken again.
    """
    untold = llm_budget_notices.c.notified_at.is_(None)
    claimed = conn.execute(
        update(llm_budget_notices)
        .where(or_(untold, llm_budget_notices.c.notified_at == now) if replay else untold)
        .values(notified_at=now)
        .returning(llm_budget_notices.c.budget_id, llm_budget_notices.c.percent, llm_budget_notices.c.crossed_at)
    ).all()
    if not claimed:
        return []
    query = select(llm_budgets).where(llm_budgets.c.budget_id.in_({note.budget_id for note in claimed}))
    budgets = {row["budget_id"]: row for row in conn.execute(query).mappings()}
    return [
        Notice(
            budget_id=note.budget_id,
            name=budget["name"],
            period=budget["period"],
            period_start=budget["period_start"],
            percent=note.percent,
            limit_nano=budget["limit_nano"],
            spent_nano=budget["spent_nano"],
            crossed_at=note.crossed_at,
        )
        for note in sorted(claimed, key=lambda note: (note.budget_id, note.percent))
        if (budget := budgets.get(note.budget_id))
    ]
