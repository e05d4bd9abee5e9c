"""What dead tasks hold is found by the state of the task, captured once, and never taken from the living."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select
from support.ledger import NOW, TASK, attempt, budget, period

from airflow_ai_provider.core.ledger.attempts.attempts import open_attempts
from airflow_ai_provider.core.ledger.budgets.availability import Room, Scope, has_room, rooms, tightest, worth_going_on
from airflow_ai_provider.core.ledger.budgets.holds import LIVE_FOR, count_holds, renew_holds, take_hold
from airflow_ai_provider.core.ledger.budgets.orphaned_holds import UNKNOWN_AFTER, Holder, is_over, silent_holders, sweep
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.schema import llm_requests
from airflow_ai_provider.core.policy import Budget
from airflow_ai_provider.errors import LedgerError

LATER = NOW + LIVE_FOR * 2
HOLDER = Holder("me", TASK, 40, NOW)


def hold(ledger: Ledger, owner: str = "me", hold_id: str = "h1", map_index: int = -1) -> None:
    task = replace(TASK, map_index=map_index)
    with ledger.write() as conn:
        take_hold(conn, hold_id=hold_id, owner=owner, task=task, periods=[period(100)], amounts=[40], now=NOW)
        open_attempts(conn, [attempt(hold_id, 30, task=task)])


def test_silent_processes_are_listed_with_their_task(ledger: Ledger) -> None:
    hold(ledger)
    with ledger.read() as conn:
        assert silent_holders(conn, NOW + LIVE_FOR / 2) == []
        assert silent_holders(conn, LATER) == [HOLDER]


def test_a_sweep_captures_what_was_open_and_releases_the_rest(ledger: Ledger) -> None:
    hold(ledger)
    hold(ledger, owner="other", hold_id="h2", map_index=3)
    with ledger.write() as conn:
        holds, settled = sweep(conn, ["me"], LATER)
    assert (holds, [item.cost_nano for item in settled]) == (1, [30])
    assert budget(ledger) == (100, 30, 40)
    with ledger.write() as conn:
        assert sweep(conn, ["me"], LATER) == (0, [])
        assert count_holds(conn) == 1
        row = conn.execute(select(llm_requests)).mappings().one()
    assert (row["status"], row["error_type"], row["cost_nano"]) == ("unknown", "task_died", 30)


def test_a_process_that_was_heard_of_again_keeps_its_hold(ledger: Ledger) -> None:
    hold(ledger)
    with ledger.write() as conn:
        renew_holds(conn, "me", LATER)
        assert sweep(conn, ["me"], LATER) == (0, [])
    assert budget(ledger) == (100, 0, 40)


def test_a_process_that_wakes_up_after_a_sweep_is_fenced_off(ledger: Ledger) -> None:
    hold(ledger)
    with ledger.write() as conn:
        sweep(conn, ["me"], LATER)
    with pytest.raises(LedgerError, match="fenced off"), ledger.write() as conn:
        open_attempts(conn, [attempt("h1", 10)])


@pytest.mark.parametrize("state", ["running", "restarting"])
def test_a_task_that_may_be_alive_is_left_alone_however_long_it_is_silent(state: str) -> None:
    assert not is_over(HOLDER, state, known=True, now=NOW + timedelta(days=3))


@pytest.mark.parametrize("state", ["failed", "success", "up_for_retry", "deferred", "skipped", None])
def test_a_task_in_any_other_state_is_over(state: str | None) -> None:
    assert is_over(HOLDER, state, known=True, now=LATER)


def test_a_holder_that_no_scheduler_knows_is_over_after_an_hour() -> None:
    assert not is_over(HOLDER, None, known=False, now=NOW + UNKNOWN_AFTER - timedelta(seconds=1))
    assert is_over(HOLDER, None, known=False, now=NOW + UNKNOWN_AFTER)


def test_rooms_are_those_of_this_moment(ledger: Ledger) -> None:
    hold(ledger)
    budgets = [
        Budget(team="support", period="day", limit_usd="0.0000001"),
        Budget(period="total", limit_usd="5"),
        Budget(team="other", period="day", limit_usd="1"),
    ]
    with ledger.read() as conn:
        found = rooms(conn, budgets, Scope("support", "dag", "run", "support"), NOW)
    assert found == [
        Room("team=support/day", "2026-03-04", 100, 0, 40),
        Room("organisation/total", "total", 5 * 10**9, 0, 0),
    ]
    assert tightest(found).free_nano == 60
    assert has_room(found, 60)
    assert not has_room(found, 61)
    with pytest.raises(LedgerError, match=r"limit is \$0\.0000001; room for \$0\.000000101 will never be there"):
        has_room(found, 101)
    assert worth_going_on(found, 1000, 5), "a tenth of the limit is free"
    assert not worth_going_on(found, 1000, 61), "and not enough for one row"
    assert worth_going_on(found, 3, 3)
    assert not worth_going_on([replace(found[0], spent_nano=95, held_nano=0)], 1000, 5)
