"""Values for ledger tests."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from airflow_ai_provider.ledger.attempts import OpenAttempt, Request, Settled
from airflow_ai_provider.ledger.database import Ledger
from airflow_ai_provider.ledger.holds import TaskRef
from airflow_ai_provider.ledger.money import Usage
from airflow_ai_provider.ledger.periods import BudgetPeriod
from airflow_ai_provider.ledger.schema import llm_budgets

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
