"""The rollup is what the rows add up to, a difference is found to the figure, and a repair makes it right."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, text, update
from support.ledger import NOW, TASK, adjust, item, request, written

from airflow_ai_provider.core.ledger.attempts.attempts import Settled
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.maintenance.upkeep import (
    check_day,
    check_days,
    days_to_check,
    maintain,
    repair_day,
)
from airflow_ai_provider.core.ledger.schema import llm_cost_daily, llm_requests

DAY = NOW.date()
YESTERDAY = DAY - timedelta(days=1)


def drift(ledger: Ledger, *days: date) -> list[tuple[str, int, int]]:
    return [(one.column, one.rollup, one.rows) for found in check_days(ledger, list(days)) for one in found]


def some_of_everything() -> list[Settled]:
    other = request(task=TaskRef("sales", "other", "run", "answer", -1, 1))
    return [
        item(NOW, 700, usage=Usage(100, 20, 40, 10), baseline_nano=9000),
        item(NOW, 0, status="error", usage=Usage(0, 0), error_type="rate_limited"),
        item(NOW, 1000, status="unknown", usage=None),
        item(NOW, 0, status="reused", usage=Usage(0, 0), saved_nano=700),
        item(NOW - timedelta(days=1), 33, request=other),
    ]


def test_what_settling_wrote_has_no_drift(ledger: Ledger) -> None:
    written(ledger, *some_of_everything())
    assert drift(ledger, DAY, YESTERDAY) == []


def test_adjustments_count_to_the_day_of_their_request(ledger: Ledger) -> None:
    ok, _, unknown, *_ = written(ledger, *some_of_everything())
    adjust(ledger, unknown, -990, when=NOW + timedelta(days=3), input_tokens=50)
    adjust(ledger, ok, 5)
    assert drift(ledger, DAY) == []
    with ledger.read() as conn:
        assert conn.execute(select(llm_cost_daily.c.unknown).where(llm_cost_daily.c.day == DAY)).scalar() == 0


def test_a_changed_figure_is_named(ledger: Ledger) -> None:
    written(ledger, *some_of_everything())
    with ledger.write() as conn:
        conn.execute(update(llm_cost_daily).where(llm_cost_daily.c.day == DAY).values(cost_nano=1, reused=5))
    with ledger.snapshot() as conn:
        first, second = check_day(conn, DAY)
    assert (first.day, first.team, first.dag, first.model) == (DAY, "support", "dag", "openai/gpt-4o-mini")
    assert (first.column, first.rollup, first.rows) == ("reused", 5, 1)
    assert (second.column, second.rollup, second.rows) == ("cost_nano", 1, 1700)


def test_a_lost_row_on_either_side_is_found(ledger: Ledger) -> None:
    written(ledger, *some_of_everything())
    with ledger.write() as conn:
        conn.execute(delete(llm_cost_daily).where(llm_cost_daily.c.day == YESTERDAY))
        conn.execute(delete(llm_requests).where(llm_requests.c.status == "unknown"))
    assert ("cost_nano", 0, 33) in drift(ledger, YESTERDAY)
    assert ("cost_nano", 1700, 700) in drift(ledger, DAY)


def test_a_repair_makes_the_day_what_its_rows_say_and_leaves_the_others(ledger: Ledger) -> None:
    ok, *_ = written(ledger, *some_of_everything())
    adjust(ledger, ok, -100)
    before = daily(ledger)
    with ledger.write() as conn:
        conn.execute(update(llm_cost_daily).values(cost_nano=1, unknown=9))
        conn.execute(delete(llm_cost_daily).where(llm_cost_daily.c.team_id == "sales"))
        conn.execute(llm_cost_daily.insert(), {"day": DAY, "team_id": "ghost", "dag_id": "d", "model": "m"})
    repair_day(ledger, DAY)
    assert drift(ledger, DAY) == []
    assert drift(ledger, YESTERDAY) != []
    repair_day(ledger, YESTERDAY)
    assert daily(ledger) == before


def daily(ledger: Ledger) -> list[Any]:
    with ledger.read() as conn:
        return list(conn.execute(select(llm_cost_daily).order_by(*llm_cost_daily.primary_key)).mappings())


def test_a_repair_beside_writers_loses_nothing(migrated_postgres_url: str) -> None:
    """Whoever settles while a day is rewritten waits, and is in the rollup afterwards."""
    with Ledger.open(migrated_postgres_url) as ledger:
        written(ledger, item(NOW))
        stop = threading.Event()

        def settle_on() -> None:
            while not stop.is_set():
                written(ledger, item(NOW), item(NOW))

        writers = [threading.Thread(target=settle_on) for _ in range(3)]
        for writer in writers:
            writer.start()
        seen = []
        for _ in range(15):
            repair_day(ledger, DAY)
            seen += drift(ledger, DAY)
        stop.set()
        for writer in writers:
            writer.join()
        assert seen == drift(ledger, DAY) == []
        with ledger.read() as conn:
            assert (
                conn.execute(text("SELECT SUM(requests) FROM llm_cost_daily")).scalar()
                == conn.execute(text("SELECT COUNT(*) FROM llm_requests")).scalar()
            )


def test_days_to_check_are_the_last_ones_and_those_that_an_invoice_touched(ledger: Ledger) -> None:
    old, *_ = written(ledger, item(NOW - timedelta(days=20)), item(NOW))
    with ledger.read() as conn:
        assert days_to_check(conn, YESTERDAY, DAY) == ([YESTERDAY, DAY], 0)
        assert len(days_to_check(conn, None, DAY)[0]) >= 21
    adjust(ledger, old, -1, when=NOW)
    with ledger.read() as conn:
        assert days_to_check(conn, YESTERDAY, DAY) == ([old.created_at.date(), YESTERDAY, DAY], 0)


def test_days_whose_rows_retention_dropped_are_not_called_drift(ledger: Ledger) -> None:
    written(ledger, item(datetime(2025, 12, 30, tzinfo=UTC)), item(NOW))
    maintain(ledger, now=NOW, keep_months=1)
    with ledger.read() as conn:
        days, lost = days_to_check(conn, None, DAY)
    assert lost > 0
    assert days[-1] == DAY
    assert drift(ledger, *days) == []


def test_an_empty_ledger_has_nothing_to_check(ledger: Ledger) -> None:
    with ledger.read() as conn:
        days, lost = days_to_check(conn, None, DAY)
    assert lost == 0
    assert drift(ledger, *days[:3]) == []


statuses = st.sampled_from(["ok", "error", "unknown", "reused"])
amounts = st.integers(min_value=0, max_value=10**12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(statuses, amounts, st.integers(0, 172_799), st.integers(-1000, 1000)), max_size=12))
def test_any_rows_and_adjustments_leave_no_drift_and_survive_a_repair(tmp_path: Any, rows: list[Any]) -> None:
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        start = datetime(2026, 3, 3, tzinfo=UTC)
        items = [
            item(
                start + timedelta(seconds=second),
                0 if status in ("error", "reused") else cost,
                status=status,
                usage=None if status == "unknown" else Usage(cost % 977, cost % 31),
                saved_nano=cost if status == "reused" else 0,
                request=request(task=TASK),
            )
            for status, cost, second, _ in rows
        ]
        if items:
            written(ledger, *items)
        for one, (_, _, _, delta) in zip(items, rows, strict=True):
            if delta % 3 == 0:
                adjust(ledger, one, delta)
        assert drift(ledger, YESTERDAY, DAY) == []
        before = daily(ledger)
        repair_day(ledger, DAY)
        assert daily(ledger) == before
