"""Values for ledger tests."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select, update

from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, Request, Settled, open_attempts, settle
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef, close_holds, take_hold
from airflow_ai_provider.core.ledger.budgets.limits import BudgetPeriod
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.schema import llm_adjustments, llm_budgets, llm_cost_daily

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
TASK = TaskRef("support", "dag", "run", "answer", -1, 1)


def period(limit: int, name: str = "team=support/day") -> BudgetPeriod:
    return BudgetPeriod(f"{name}@2026-03-04", name, "day", "2026-03-04", limit)


def request(row_key: str = "r1", task: TaskRef = TASK) -> Request:
    return Request(
        uuid.uuid4().hex, task, row_key, "support", "simple", "small", "openai/gpt-4o-mini", "openai", "test-1"
    )


def attempt(hold_id: str, bound: int, row_key: str = "r1", task: TaskRef = TASK) -> OpenAttempt:
    return OpenAttempt(uuid.uuid4().hex, hold_id, bound, NOW, request(row_key, task))


def settled(opened: OpenAttempt, cost: int, **changes: Any) -> Settled:
    values: dict[str, Any] = {"status": "ok", "usage": Usage(10, 5), "cost_nano": cost, **changes}
    return Settled(opened.attempt_id, NOW, opened.request, **values)


def budget(ledger: Ledger, name: str = "team=support/day") -> tuple[int, int, int]:
    """(limit, spent, held) in nano-dollars."""
    columns = (llm_budgets.c.limit_nano, llm_budgets.c.spent_nano, llm_budgets.c.held_nano)
    with ledger.read() as conn:
        row = conn.execute(select(*columns).where(llm_budgets.c.name == name)).one()
    return (row.limit_nano, row.spent_nano, row.held_nano)


def written(ledger: Ledger, *items: Settled) -> list[Settled]:
    """Settle requests as a task would: hold, open, settle."""
    hold_id = uuid.uuid4().hex
    opened = [
        OpenAttempt(item.attempt_id, hold_id, item.cost_nano, item.created_at, item.request)
        for item in items
        if item.status != "reused"
    ]
    with ledger.write() as conn:
        if opened:
            amounts = [one.bound_nano for one in opened]
            task = items[0].request.task
            take_hold(conn, hold_id=hold_id, owner="me", task=task, periods=[period(10**15)], amounts=amounts, now=NOW)
            open_attempts(conn, opened)
        settle(conn, items, NOW)
        close_holds(conn, [hold_id], NOW)
    return list(items)


def item(moment: datetime, cost: int = 100, **changes: Any) -> Settled:
    """A settled request of its own at a moment."""
    values: dict[str, Any] = {"status": "ok", "usage": Usage(10, 5), "cost_nano": cost, **changes}
    asked = values.pop("request", None) or request(row_key=uuid.uuid4().hex[:8])
    return Settled(f"{int(moment.timestamp() * 1000):012x}{uuid.uuid4().hex[:20]}", moment, asked, **values)


def adjust(ledger: Ledger, item: Settled, delta: int, *, when: datetime = NOW, **changes: Any) -> None:
    """Write an adjustment of a request and bring the rollup up to date, as reconciliation does."""
    task, model = item.request.task, item.request.model
    day = item.created_at.date()
    values = {
        "attempt_id": item.attempt_id,
        "invoice": "i1",
        "created_at": item.created_at,
        "adjusted_at": when,
        "team_id": task.team_id,
        "dag_id": task.dag_id,
        "model": model,
        "status": "billed",
        "delta_nano": delta,
        "input_tokens": 0,
        **changes,
    }
    daily = llm_cost_daily.c
    with ledger.write() as conn:
        conn.execute(insert(llm_adjustments), values)
        conn.execute(
            update(llm_cost_daily)
            .where(daily.day == day, daily.team_id == task.team_id, daily.dag_id == task.dag_id, daily.model == model)
            .values(
                cost_nano=daily.cost_nano + delta,
                adjusted_nano=daily.adjusted_nano + delta,
                unknown=daily.unknown - int(item.status == "unknown"),
                input_tokens=daily.input_tokens + values["input_tokens"],
            )
        )
