"""Holds and budgets: room is taken before it is spent, and never more than there is."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from support.ledger import NOW, TASK, attempt, budget, period, settled

from airflow_ai_provider.core.ledger.attempts.attempts import open_attempts, recover, settle
from airflow_ai_provider.core.ledger.budgets.holds import (
    LIVE_FOR,
    Grant,
    TaskRef,
    close_holds,
    count_holds,
    take_hold,
    total_held,
)
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.schema import llm_cost_daily, llm_open_attempts, llm_requests
from airflow_ai_provider.errors import LedgerError


def take(ledger: Ledger, amounts: list[int], *, limit: int = 100, hold_id: str = "h1", **changes: Any) -> Grant:
    values: dict[str, Any] = {"owner": "me", "task": TASK, "periods": [period(limit)], "now": NOW, **changes}
    with ledger.write() as conn:
        return take_hold(conn, hold_id=hold_id, amounts=amounts, **values)


def test_grants_the_longest_prefix_that_fits(ledger: Ledger) -> None:
    grant = take(ledger, [40, 40, 40, 10])
    assert grant.granted == 2
    assert grant.room == 20
    assert budget(ledger) == (100, 0, 80)


def test_a_call_must_fit_every_budget_that_applies(ledger: Ledger) -> None:
    periods = [period(100), period(50, "organisation/day")]
    grant = take(ledger, [40, 40], periods=periods)
    assert grant.granted == 1
    assert grant.short_of == "organisation/day"
    assert budget(ledger)[2] == budget(ledger, "organisation/day")[2] == 40


def test_what_is_spent_lowers_the_ceiling_what_is_held_does_not(ledger: Ledger) -> None:
    take(ledger, [60])
    opened = attempt("h1", 60)
    with ledger.write() as conn:
        open_attempts(conn, [opened])
    assert take(ledger, [50], hold_id="h2").ceiling == 100
    with ledger.write() as conn:
        settle(conn, [settled(opened, 55)], NOW)
    assert take(ledger, [50], hold_id="h2").ceiling == 45


def test_a_silent_process_is_not_waited_for_but_its_hold_still_counts(ledger: Ledger) -> None:
    take(ledger, [90], owner="1-dead", task=TaskRef("support", "dag", "run", "answer", 7, 1))
    soon = take(ledger, [20], hold_id="h2", now=NOW + LIVE_FOR / 2)
    late = take(ledger, [20], hold_id="h2", now=NOW + LIVE_FOR + timedelta(seconds=1))
    assert (soon.granted, soon.live_holds) == (0, True)
    assert (late.granted, late.live_holds, late.room) == (0, False, 10)


def test_the_limit_follows_the_policy(ledger: Ledger) -> None:
    take(ledger, [90])
    assert take(ledger, [90], hold_id="h2").granted == 0
    assert take(ledger, [90], hold_id="h2", limit=200).granted == 1
    assert budget(ledger) == (200, 0, 180)


def test_success_captures_the_actual_and_releases_the_rest(ledger: Ledger) -> None:
    take(ledger, [40, 40])
    first, second = attempt("h1", 40, "a"), attempt("h1", 40, "b")
    with ledger.write() as conn:
        open_attempts(conn, [first, second])
    with ledger.write() as conn:
        settle(conn, [settled(first, 7)], NOW)
    assert budget(ledger) == (100, 7, 40)
    with ledger.write() as conn:
        settle(conn, [settled(second, 0, status="error", usage=None, keeps_hold=True)], NOW)
    assert budget(ledger) == (100, 7, 40), "a definite refusal costs nothing and keeps its share for the next attempt"
    with ledger.write() as conn:
        close_holds(conn, ["h1"], NOW)
    assert budget(ledger) == (100, 7, 0)


def test_settling_twice_moves_money_once(ledger: Ledger) -> None:
    take(ledger, [40])
    opened = attempt("h1", 40)
    with ledger.write() as conn:
        open_attempts(conn, [opened])
    for _ in range(2):
        with ledger.write() as conn:
            settle(conn, [settled(opened, 7)], NOW)
    assert budget(ledger) == (100, 7, 0)
    with ledger.read() as conn:
        assert conn.execute(select(llm_cost_daily.c.requests, llm_cost_daily.c.cost_nano)).one() == (1, 7)


def test_a_replayed_reuse_counts_once(ledger: Ledger) -> None:
    """A commit whose outcome was lost is sent again."""
    item = settled(attempt("none", 0), 0, status="reused", saved_nano=9)
    for replay in (False, True):
        with ledger.write() as conn:
            settle(conn, [item], NOW, replay=replay)
    with ledger.read() as conn:
        daily = conn.execute(select(llm_cost_daily.c.reused, llm_cost_daily.c.saved_nano)).one()
    assert daily == (1, 9)


def test_a_hold_with_an_open_attempt_is_not_closed(ledger: Ledger) -> None:
    take(ledger, [40])
    with ledger.write() as conn:
        open_attempts(conn, [attempt("h1", 40)])
    with ledger.write() as conn:
        close_holds(conn, ["h1"], NOW)
    assert budget(ledger) == (100, 0, 40)


def test_a_retry_settles_what_its_dead_predecessor_left_open(ledger: Ledger) -> None:
    take(ledger, [40, 30], owner="1-dead")
    first, second = attempt("h1", 40, "a"), attempt("h1", 30, "b")
    with ledger.write() as conn:
        open_attempts(conn, [first, second])
        settle(conn, [settled(first, 5)], NOW)
    retry = TaskRef("support", "dag", "run", "answer", -1, 2)
    with ledger.write() as conn:
        recovered = recover(conn, retry, "2-alive", NOW)
    assert [item.attempt_id for item in recovered] == [second.attempt_id]
    assert budget(ledger) == (100, 35, 0)
    with ledger.read() as conn:
        row = conn.execute(select(llm_requests).where(llm_requests.c.attempt_id == second.attempt_id)).mappings().one()
        assert conn.execute(select(llm_open_attempts)).all() == []
        assert count_holds(conn) == 0
    assert (row["status"], row["cost_nano"], row["input_tokens"], row["try_number"]) == ("unknown", 30, None, 1)


def test_other_tasks_are_left_alone_by_recovery(ledger: Ledger) -> None:
    take(ledger, [40], owner="alive", task=TaskRef("support", "dag", "run", "answer", 3, 1))
    with ledger.write() as conn:
        assert recover(conn, TASK, "me", NOW) == []
        assert count_holds(conn) == 1


def test_a_try_that_was_taken_over_cannot_send_again(ledger: Ledger) -> None:
    take(ledger, [40], owner="1-old")
    with ledger.write() as conn:
        recover(conn, TASK, "2-new", NOW)
    with pytest.raises(LedgerError, match="fenced off"), ledger.write() as conn:
        open_attempts(conn, [attempt("h1", 40)])


def test_a_try_whose_successor_holds_room_takes_no_more(ledger: Ledger) -> None:
    second = replace(TASK, try_number=2)
    take(ledger, [10], owner="1-old")
    take(ledger, [10], owner="2-new", hold_id="h2", task=second)
    take(ledger, [10], owner="newer", hold_id="h3", task=second)
    for owner, hold_id, task in (("old", "h1", TASK), ("new", "h2", second)):
        with pytest.raises(LedgerError, match="fenced off"):
            take(ledger, [10], owner=owner, hold_id=hold_id, task=task)
        with pytest.raises(LedgerError, match="fenced off"), ledger.write() as conn:
            open_attempts(conn, [attempt(hold_id, 10, task=task)])
    with ledger.write() as conn:
        open_attempts(conn, [attempt("h3", 10, task=second)])


def test_a_late_answer_of_a_try_that_was_taken_over_moves_no_money(ledger: Ledger) -> None:
    take(ledger, [40], owner="1-old")
    opened = attempt("h1", 40)
    with ledger.write() as conn:
        open_attempts(conn, [opened])
        recover(conn, TASK, "2-new", NOW)
    with ledger.write() as conn:
        settle(conn, [settled(opened, 7)], NOW)
    assert budget(ledger) == (100, 40, 0)


def test_held_equals_the_sum_of_holds(ledger: Ledger) -> None:
    take(ledger, [10, 20])
    take(ledger, [30], hold_id="h2")
    with ledger.read() as conn:
        assert total_held(conn, "team=support/day@2026-03-04") == budget(ledger)[2] == 60


def test_an_older_try_that_comes_late_settles_nothing_of_its_successors(ledger: Ledger) -> None:
    newer = TaskRef("support", "dag", "run", "answer", -1, 2)
    take(ledger, [40], owner="b", task=newer)
    opened = attempt("h1", 40, task=newer)
    with ledger.write() as conn:
        open_attempts(conn, [opened])
    with pytest.raises(LedgerError, match="fenced off"), ledger.write() as conn:
        recover(conn, TASK, "a", NOW)
    assert budget(ledger) == (100, 0, 40)
