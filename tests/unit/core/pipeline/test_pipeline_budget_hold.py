"""Room for a batch: over budget only when nothing in flight could still release what is missing."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, Request, Settled
from airflow_ai_provider.core.ledger.attempts.group_commit import Journal
from airflow_ai_provider.core.ledger.budgets.holds import LIVE_FOR, TaskRef, count_holds, take_hold, total_held
from airflow_ai_provider.core.ledger.budgets.limits import budget_period
from airflow_ai_provider.core.ledger.budgets.orphaned_holds import sweep
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.schema import llm_budgets
from airflow_ai_provider.core.pipeline import budget_hold
from airflow_ai_provider.core.pipeline.budget_hold import BudgetHold
from airflow_ai_provider.core.policy import Budget
from airflow_ai_provider.errors import LedgerError

CALLER = Caller("dag", "run", "task")
TASK = TaskRef("support", "dag", "run", "task", -1, 1)
OTHER_TASK = TaskRef("support", "dag", "run", "another", -1, 1)
LIMIT = 100
BUDGET = Budget(limit_usd=Decimal(LIMIT) / 10**9, period="total", team="support")
NAME = "team=support/total"


class Bank:
    """A ledger with a budget of 100 nano-dollars."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.journal = Journal(ledger, "me")

    def batch(self, *budgets: Budget, owner: str = "me", task: TaskRef = TASK) -> BudgetHold:
        return BudgetHold(
            self.journal,
            owner=owner,
            task=task,
            budgets=budgets or (BUDGET,),
            caller=CALLER,
            route="support",
            line=asyncio.Lock(),
        )

    async def spend(self, batch: BudgetHold, bound: int, cost: int) -> None:
        request = Request("r", TASK, "k", "support", "simple", "small", "m", "p", "v")
        attempt = OpenAttempt(uuid.uuid4().hex, batch.hold_id, bound, datetime.now(UTC), request)
        await self.journal.open(attempt)
        await self.journal.settle(
            [Settled(attempt.attempt_id, datetime.now(UTC), request, "ok", Usage(1, 1), cost_nano=cost)]
        )

    def books(self) -> tuple[int, int]:
        """(spent, held)."""
        with self.ledger.read() as conn:
            (row,) = conn.execute(llm_budgets.select()).all()
            assert row.held_nano == total_held(conn, row.budget_id)
        assert row.spent_nano + row.held_nano <= row.limit_nano
        return row.spent_nano, row.held_nano

    def hold_of_another_process(self, amount: int, *, renewed: datetime) -> None:
        period = budget_period(BUDGET, now=renewed, dag_id="dag", run_id="run")
        with self.ledger.write() as conn:
            take_hold(
                conn, hold_id="h", owner="other", task=OTHER_TASK, periods=[period], amounts=[amount], now=renewed
            )


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Bank]:
    with open_ledger(None, tmp_path) as ledger:
        made = Bank(ledger)
        yield made
        await made.journal.close()


@pytest.fixture
def looked_again(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What happens between two looks of those who wait for room, in place of the time that would pass."""
    happens: list[Callable[[], object]] = []

    async def passes(_seconds: float) -> None:
        assert happens, "waits for room that nothing will release"
        result = happens.pop(0)()
        if asyncio.iscoroutine(result):
            await result

    monkeypatch.setattr(budget_hold.asyncio, "sleep", passes)
    return happens


async def test_room_is_held_until_the_batch_is_closed(bank: Bank) -> None:
    batch = bank.batch()
    assert await batch.reserve(60) is None
    assert bank.books() == (0, 60)
    await bank.spend(batch, 60, 10)
    assert bank.books() == (10, 0)
    assert await batch.reserve(90) is None
    await batch.close()
    assert bank.books() == (10, 0)
    with bank.ledger.read() as conn:
        assert count_holds(conn) == 0


async def test_a_batch_that_asked_for_nothing_closes_without_a_trace(bank: Bank) -> None:
    await bank.batch().close()
    with bank.ledger.read() as conn:
        assert conn.execute(llm_budgets.select()).all() == []


async def test_rows_that_ask_together_are_held_in_one_transaction(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(*args: object, **values: object) -> object:
        nonlocal calls
        calls += 1
        return take_hold(*args, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(budget_hold, "take_hold", counted)
    batch = bank.batch()
    assert await asyncio.gather(*(batch.reserve(1) for _ in range(50))) == [None] * 50
    assert calls <= 2
    assert bank.books() == (0, 50)
    await batch.close()


async def test_more_than_the_limit_is_over_budget_at_once_and_names_the_budget(bank: Bank) -> None:
    batch = bank.batch()
    assert await batch.reserve(LIMIT + 1) == NAME
    await batch.close()


async def test_a_row_waits_while_its_own_batch_may_release_room(
    bank: Bank, looked_again: list[Callable[[], object]]
) -> None:
    batch = bank.batch()
    assert await batch.reserve(80) is None
    looked_again.append(lambda: bank.spend(batch, 80, 30))
    assert await batch.reserve(70) is None
    assert bank.books() == (30, 70)
    await batch.close()


async def test_a_row_is_over_budget_once_what_it_waited_for_was_spent(
    bank: Bank, looked_again: list[Callable[[], object]]
) -> None:
    batch = bank.batch()
    assert await batch.reserve(80) is None
    looked_again.append(lambda: bank.spend(batch, 80, 75))
    assert await batch.reserve(50) == NAME
    await batch.close()


async def test_a_row_waits_for_another_process_that_is_alive(
    bank: Bank, looked_again: list[Callable[[], object]]
) -> None:
    other = bank.batch(owner="other", task=OTHER_TASK)
    assert await other.reserve(80) is None
    looked_again.append(other.close)
    mine = bank.batch()
    assert await mine.reserve(50) is None
    await mine.close()


async def test_a_row_does_not_wait_for_a_process_that_is_gone(
    bank: Bank, looked_again: list[Callable[[], object]]
) -> None:
    bank.hold_of_another_process(80, renewed=datetime.now(UTC) - 2 * LIVE_FOR)
    batch = bank.batch()
    assert await batch.reserve(50) == NAME
    assert looked_again == []
    await batch.close()


async def test_a_row_too_large_for_the_budget_does_not_keep_smaller_ones_out(
    bank: Bank, looked_again: list[Callable[[], object]]
) -> None:
    batch = bank.batch()
    looked_again.append(lambda: None)
    assert await asyncio.gather(batch.reserve(LIMIT + 1), batch.reserve(20)) == [NAME, None]
    assert bank.books() == (0, 20)
    await batch.close()


async def test_rows_that_wait_get_room_in_the_order_they_came(
    bank: Bank, looked_again: list[Callable[[], object]]
) -> None:
    batch = bank.batch()
    assert await batch.reserve(70) is None
    looked_again += [lambda: bank.spend(batch, 70, 0), lambda: None]
    assert await asyncio.gather(batch.reserve(60), batch.reserve(20)) == [None, None]
    assert bank.books() == (0, 80)
    await batch.close()


async def test_the_tightest_of_several_budgets_is_named(bank: Bank) -> None:
    route = Budget(limit_usd=Decimal(10) / 10**9, period="total", route="support")
    batch = bank.batch(BUDGET, route)
    assert await batch.reserve(50) == "route=support/total"
    await batch.close()


async def test_nobody_waits_for_a_share_that_a_failed_row_of_the_batch_keeps(
    bank: Bank, looked_again: list[Callable[[], object]]
) -> None:
    """The share is released when the batch ends, and the batch ends when nobody waits."""
    batch = bank.batch()
    assert await batch.reserve(80) is None
    batch.stop_waiting(LedgerError("the disk is full"))
    with pytest.raises(LedgerError, match="the disk is full"):
        await batch.reserve(70)
    await batch.close()
    assert bank.books() == (0, 0)


async def test_a_batch_whose_hold_was_swept_away_takes_no_more_room(bank: Bank) -> None:
    """A hold made anew would let the shares that were swept away be sent after all, with no room behind them."""
    batch = bank.batch()
    assert await batch.reserve(60) is None
    with bank.ledger.write() as conn:
        assert sweep(conn, ["me"], datetime.now(UTC) + 2 * LIVE_FOR) == (1, [])
    with pytest.raises(LedgerError, match="fenced off"):
        await batch.reserve(40)
    with pytest.raises(LedgerError, match="fenced off"):
        await bank.spend(batch, 60, 60)
    await batch.close()
    assert bank.books() == (0, 0)


async def test_what_is_granted_to_a_row_that_has_gone_goes_back(bank: Bank) -> None:
    """A deadline ends the row's wait while its group is on its way to the ledger; others may have the room."""
    batch = bank.batch()
    gone = asyncio.create_task(batch.reserve(80))
    while not batch._taken:  # noqa: ASYNC110 - its group is under way then
        await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert await asyncio.wait_for(batch.reserve(60), 60) is None
    assert bank.books() == (0, 60)
    await batch.close()
    assert bank.books() == (0, 0)


async def test_a_closed_batch_takes_nothing_more(bank: Bank) -> None:
    """Its rows were cancelled while another batch kept the process' line."""
    batch = bank.batch()
    async with batch._line:
        gone = asyncio.create_task(batch.reserve(80))
        while not batch._taken:  # noqa: ASYNC110
            await asyncio.sleep(0)
        gone.cancel()
        closing = asyncio.create_task(batch.close())
        await asyncio.sleep(0)
    await closing
    with bank.ledger.read() as conn:
        assert count_holds(conn) == 0
