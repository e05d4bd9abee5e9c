"""What a plan learns from: a task's recent calls, and how its budgets stand. The same on both databases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from support.ledger import NOW, TASK, attempt, period

from airflow_ai_provider.core.ledger.attempts.attempts import Settled, open_attempts, settle
from airflow_ai_provider.core.ledger.budgets.availability import Room, Scope, rooms
from airflow_ai_provider.core.ledger.budgets.holds import take_hold
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.reports import call_history as history
from airflow_ai_provider.core.ledger.reports.call_history import CallHistory, call_history, spent_since
from airflow_ai_provider.core.policy import Budget

DAILY = Budget(team="support", period="day", limit_usd="1")


def write(ledger: Ledger, rows: Sequence[dict[str, Any]]) -> None:
    """Settled rows; ``request`` holds changes of the request, the rest is of the row."""
    with ledger.write() as conn:
        take_hold(conn, hold_id="h", owner="me", task=TASK, periods=[period(10**9)], amounts=[10**6], now=NOW)
        settled = []
        for number, row in enumerate(rows):
            changes = dict(row)
            opened = attempt("h", 1000, f"r{number}")
            opened = replace(opened, request=replace(opened.request, **changes.pop("request", {})))
            if row.get("status") != "reused":
                open_attempts(conn, [opened])
            values = {"created_at": NOW, "status": "ok", "usage": Usage(10, 5), **changes}
            settled.append(Settled(opened.attempt_id, request=opened.request, **values))
        settle(conn, settled, NOW)


def read(ledger: Ledger, task_id: str = "answer") -> list[CallHistory]:
    with ledger.read() as conn:
        return call_history(conn, dag_id="dag", task_id=task_id, now=NOW + timedelta(hours=1))


def test_a_tasks_calls_are_summed_by_tier_and_deployment(ledger: Ledger) -> None:
    sized = {"prompt_bytes": 40}
    write(
        ledger,
        [
            {"request": sized, "usage": Usage(10, 5, 4, 2), "latency_ms": 300, "cost_nano": 7},
            {"request": sized, "usage": Usage(20, 15), "latency_ms": 500},
            {"usage": Usage(100, 1)},  # from before prompts were measured
            {"request": sized, "status": "unknown", "usage": None, "cost_nano": 1000},
            {"request": sized, "status": "error", "usage": Usage(0, 0)},
            {"request": {**sized, "deployment": "large", "tier": "complex"}, "usage": Usage(7, 3)},
        ],
    )
    large, small = read(ledger)
    assert (small.deployment, small.tier, small.model) == ("small", "simple", "openai/gpt-4o-mini")
    assert (small.answered, small.unknown) == (3, 1)
    assert (small.prompt_bytes, small.prompt_tokens) == (80, 30), "only calls whose prompt was measured"
    assert (small.input_tokens, small.output_tokens) == (130, 21)
    assert (small.cached_tokens, small.cache_write_tokens, small.latency_ms) == (4, 2, 800)
    assert (large.deployment, large.answered, large.input_tokens) == ("large", 1, 7)


def test_reused_rows_other_tasks_and_old_calls_are_left_out(ledger: Ledger) -> None:
    other = replace(TASK, task_id="other")
    write(
        ledger,
        [
            {"status": "reused", "usage": Usage(0, 0)},
            {"request": {"task": other}},
            {"created_at": NOW - history.WINDOW},
        ],
    )
    assert read(ledger) == []
    assert [past.answered for past in read(ledger, "other")] == [1]


def test_the_newest_calls_count_where_there_are_too_many(ledger: Ledger, monkeypatch: Any) -> None:
    monkeypatch.setattr(history, "MOST_CALLS", 2)
    write(ledger, [{"created_at": NOW - timedelta(days=age), "usage": Usage(age, 1)} for age in (3, 1, 2)])
    assert [(past.answered, past.input_tokens) for past in read(ledger)] == [(2, 3)]


def test_calls_are_not_looked_for_behind_endless_reuse(ledger: Ledger, monkeypatch: Any) -> None:
    monkeypatch.setattr(history, "MOST_ROWS", 2)
    reused = {"status": "reused", "usage": Usage(0, 0)}
    write(ledger, [{"created_at": NOW - timedelta(days=2)}, {"created_at": NOW - timedelta(days=1)}, reused])
    assert [past.answered for past in read(ledger)] == [1]


def test_a_row_asked_again_in_a_higher_tier_went_up(ledger: Ledger) -> None:
    up = {"tier": "complex", "deployment": "large"}
    write(
        ledger,
        [
            {"request": {"request_id": "twice"}},
            {"request": {"request_id": "twice", **up}},
            {"request": {"request_id": "once"}},
            {"request": {"request_id": "straight", **up}},
        ],
    )
    assert {past.tier: (past.answered, past.went_up) for past in read(ledger)} == {"complex": (2, 0), "simple": (2, 1)}


def test_no_calls_are_no_history(ledger: Ledger) -> None:
    assert read(ledger) == []


def test_a_budget_nothing_was_charged_to_has_all_of_its_limit(ledger: Ledger) -> None:
    scope = Scope("support", "dag", "run", "support")
    others = [Budget(team="other", period="day", limit_usd="5"), Budget(dag="other", period="day", limit_usd="5")]
    with ledger.read() as conn:
        assert rooms(conn, [DAILY, *others], scope, NOW) == [Room("team=support/day", "2026-03-04", 10**9, 0, 0)]


def test_what_is_spent_and_held_is_not_free(ledger: Ledger) -> None:
    write(ledger, [{"cost_nano": 300}])
    with ledger.read() as conn:
        (room,) = rooms(conn, [DAILY], Scope("support", "dag", "run", "support"), NOW)
    assert (room.spent_nano, room.held_nano) == (300, 10**6 - 1000)
    assert room.free_nano == 10**9 - 300 - (10**6 - 1000)


def test_spent_since_counts_one_task_instance_from_a_moment_on(ledger: Ledger) -> None:
    shard = replace(TASK, map_index=3)
    write(
        ledger,
        [
            {"request": {"task": shard}, "cost_nano": 5, "created_at": NOW - timedelta(seconds=1)},
            {"request": {"task": shard}, "cost_nano": 7},
            {"request": {"task": replace(shard, try_number=2)}, "cost_nano": 11},
            {"request": {"task": TASK}, "cost_nano": 100},
        ],
    )
    who = {"dag_id": "dag", "run_id": "run", "task_id": "answer", "map_index": 3}
    with ledger.read() as conn:
        assert spent_since(conn, since=NOW, **who) == 18
        assert spent_since(conn, since=NOW + timedelta(seconds=1), **who) == 0
