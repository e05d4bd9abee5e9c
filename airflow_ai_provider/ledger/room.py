"""How much room budgets have now. Reads only: a period that nobody has spent in has all of its limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from airflow_ai_provider.ledger.periods import BudgetPeriod, budget_period
from airflow_ai_provider.ledger.schema import llm_budgets
from airflow_ai_provider.policy import Budget


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose calls: what decides which budgets apply, and which run's."""

    team: str
    dag_id: str
    run_id: str
    route: str


@dataclass(frozen=True, slots=True)
class Room:
    """One budget in the present period. Amounts in nano-dollars."""

    name: str
    period_start: str
    limit_nano: int
    spent_nano: int
    held_nano: int

    @property
    def free_nano(self) -> int:
        return self.limit_nano - self.spent_nano - self.held_nano


def rooms(conn: Connection, of_policy: Sequence[Budget], scope: Scope, now: datetime) -> list[Room]:
    """Every budget that applies to a scope, with what it has left."""
    periods = [
        budget_period(budget, now=now, dag_id=scope.dag_id, run_id=scope.run_id)
        for budget in of_policy
        if budget.applies(team=scope.team, dag=scope.dag_id, route=scope.route)
    ]
    query = select(llm_budgets).where(llm_budgets.c.budget_id.in_([period.budget_id for period in periods]))
    known = {row["budget_id"]: row for row in conn.execute(query).mappings()}
    return [_room(period, known.get(period.budget_id)) for period in periods]


def _room(period: BudgetPeriod, row: object) -> Room:
    spent, held = (row["spent_nano"], row["held_nano"]) if row else (0, 0)  # type: ignore[index]
    return Room(period.name, period.period_start, period.limit_nano, spent, held)
