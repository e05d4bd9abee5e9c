"""A commit whose reply is lost may have happened: whoever runs it again moves the money once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import Connection, select

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, Request, Settled
from airflow_ai_provider.core.ledger.attempts.group_commit import Journal
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef, total_held
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.schema import llm_budgets
from airflow_ai_provider.core.pipeline.budget_hold import BudgetHold
from airflow_ai_provider.core.policy import Budget
from airflow_ai_provider.errors import LedgerUnavailable

TASK = TaskRef("support", "dag", "run", "task", -1, 1)
REQUEST = Request("r", TASK, "k", "support", "simple", "small", "m", "p", "v")
LIMIT = 100
BUDGET = Budget(limit_usd=Decimal(LIMIT) / 10**9, period="total", team="support")


class Forgetful(Ledger):
    """Commits, and says of as many commits as it is told that it does not know."""

    lose = 0

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with super().write() as conn:
            yield conn
        if self.lose:
            self.lose -= 1
            raise LedgerUnavailable("the reply was lost")


class Bank:
    def __init__(self, ledger: Forgetful) -> None:
        self.ledger = ledger
        self.journal = Journal(ledger, "me")

    def batch(self) -> BudgetHold:
        caller = Caller("dag", "run", "task")
        budgets, line = (BUDGET,), asyncio.Lock()
        return BudgetHold(
            self.journal, owner="me", task=TASK, budgets=budgets, caller=caller, route="support", line=line
        )

    async def open(self, batch: BudgetHold, bound: int, name: str) -> OpenAttempt:
        attempt = OpenAttempt(name * 32, batch.hold_id, bound, datetime.now(UTC), REQUEST)
        await self.journal.open(attempt)
        return attempt

    async def settle(self, attempt: OpenAttempt, cost: int) -> None:
        usage = Usage(1, 1)
        await self.journal.settle(
            [Settled(attempt.attempt_id, datetime.now(UTC), REQUEST, "ok", usage, cost_nano=cost)]
        )

    def books(self) -> tuple[int, int]:
        """(spent, held)."""
        with self.ledger.read() as conn:
            row = conn.execute(select(llm_budgets)).one()
            assert row.held_nano == total_held(conn, row.budget_id)
        return row.spent_nano, row.held_nano


@pytest.fixture
async def bank(ledger_url: str) -> AsyncIterator[Bank]:
    with Forgetful.open(ledger_url) as ledger:
        made = Bank(ledger)
        yield made
        await made.journal.close()


async def test_a_share_is_given_back_once(bank: Bank) -> None:
    """Twice would free the room of the batch's call in flight, and let others spend it."""
    batch = bank.batch()
    assert await asyncio.gather(batch.reserve(50), batch.reserve(50)) == [None, None]
    in_flight = await bank.open(batch, 50, "a")
    bank.ledger.lose = 1
    await batch.give_back(50)
    assert bank.books() == (0, 50)
    await bank.settle(in_flight, 50)
    await batch.close()
    assert bank.books() == (50, 0)


async def test_room_is_held_once_so_that_nobody_waits_for_what_no_row_will_release(bank: Bank) -> None:
    batch = bank.batch()
    bank.ledger.lose = 1
    assert await batch.reserve(40) is None
    assert bank.books() == (0, 40)
    bank.ledger.lose = 2
    assert await batch.reserve(40) is None
    assert bank.books() == (0, 80)
    for name in "ab":
        await bank.settle(await bank.open(batch, 40, name), 40)
    async with asyncio.timeout(60):
        assert await batch.reserve(30) == "team=support/total"
    await batch.close()
    assert bank.books() == (80, 0)


async def test_a_threshold_is_told_though_the_reply_to_its_claim_was_lost(bank: Bank) -> None:
    batch = bank.batch()
    assert await batch.reserve(60) is None
    await bank.settle(await bank.open(batch, 60, "a"), 60)
    bank.ledger.lose = 1
    assert [notice.percent for notice in await batch.close()] == [50]
    later = bank.batch()
    assert await later.reserve(1) is None
    assert await later.close() == []
