"""What is left of budgets now. Reads only: a period without spending has all of its limit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from airflow_ai_provider.core.errors import LedgerError
from airflow_ai_provider.core.ledger.budgets.limits import BudgetPeriod, budget_period, budgets_in_force
from airflow_ai_provider.core.ledger.call_costs import usd_from_nano
from airflow_ai_provider.core.ledger.schema import llm_budgets
from airflow_ai_provider.core.policy import Budget


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
        budget_period(budget, now=now, dag_id=scope.dag_id, run_id=scope.run_id, source=source)
        for budget, source in budgets_in_force(conn, of_policy)
        if budget.applies(team=scope.team, dag=scope.dag_id, route=scope.route)
    ]
    query = select(llm_budgets).where(llm_budgets.c.budget_id.in_([period.budget_id for period in periods]))
    known = {row["budget_id"]: row for row in conn.execute(query).mappings()}
    return [_room(period, known.get(period.budget_id)) for period in periods]


def _room(period: BudgetPeriod, row: object) -> Room:
    spent, held = (row["spent_nano"], row["held_nano"]) if row else (0, 0)  # type: ignore[index]
    return Room(period.name, period.period_start, period.limit_nano, spent, held)


def tightest(found: Iterable[Room]) -> Room:
    """The budget with the least room."""
    return min(found, key=lambda room: room.free_nano)


def has_room(found: Sequence[Room], wanted_nano: int) -> bool:
    """Whether a sum fits every budget. Raises ``LedgerError`` where it is more than a whole limit."""
    for room in found:
        if wanted_nano > room.limit_nano:
            raise LedgerError(
                f"budget {room.name}: its limit is ${usd_from_nano(room.limit_nano):f}; room for "
                f"${usd_from_nano(wanted_nano):f} will never be there"
            )
    return all(room.free_nano >= wanted_nano for room in found)


def worth_going_on(found: Sequence[Room], wanted_nano: int, least_nano: int) -> bool:
    """Whether work that wants so much should go on: all of it fits, or a tenth of each limit is free to do a part.

    ``least_nano`` is what one row of it wants. Raises ``LedgerError`` where not even that will ever fit.
    """
    has_room(found, least_nano)
    return all(room.free_nano >= min(wanted_nano, max(room.limit_nano // 10, least_nano)) for room in found)
