"""Months are made ahead and dropped after their time, and never one that is still needed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, inspect, select, text, update
from support.ledger import NOW, adjust, item, period, request, written

from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, open_attempts
from airflow_ai_provider.core.ledger.budgets.holds import take_hold
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.maintenance.partitions import (
    first_kept,
    leftover_months,
    make_months,
    month_name,
    month_of,
    months_before,
    months_there,
    next_month,
)
from airflow_ai_provider.core.ledger.maintenance.upkeep import Maintenance, maintain
from airflow_ai_provider.core.ledger.schema import llm_adjustments, llm_budgets, llm_cost_daily, llm_requests
from airflow_ai_provider.errors import LedgerError

JANUARY, FEBRUARY, MARCH = (datetime(2026, month, 15, 12, tzinfo=UTC) for month in (1, 2, 3))
DECEMBER = datetime(2025, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    written(ledger, *(item(moment) for moment in (DECEMBER, JANUARY, FEBRUARY, MARCH)))
    return ledger


def keep(ledger: Ledger, months: int, **changes: Any) -> Maintenance:
    return maintain(ledger, now=NOW, keep_months=months, **changes)


def months_with_rows(ledger: Ledger) -> list[str]:
    with ledger.read() as conn:
        return sorted(f"{moment:%Y-%m}" for moment in conn.execute(select(llm_requests.c.created_at)).scalars())


def dropped(done: Maintenance) -> list[tuple[str, int]]:
    return [(month.name, month.rows) for month in done.dropped]


def test_months_older_than_the_retention_are_dropped_and_the_rollup_stays(filled: Ledger) -> None:
    steps: list[tuple[int, int]] = []
    done = keep(filled, 1, progress=lambda at, total: steps.append((at, total)))
    assert dropped(done) == [("2025-12", 1), ("2026-01", 1)]
    assert steps == [(1, 2), (2, 2)]
    assert months_with_rows(filled) == ["2026-02", "2026-03"]
    with filled.read() as conn:
        assert conn.execute(select(func.sum(llm_cost_daily.c.requests))).scalar() == 4
        assert month_of(first_kept(conn) or NOW) == month_of(FEBRUARY)
    assert dropped(keep(filled, 1)) == []


def test_a_dry_run_says_what_would_go_and_drops_nothing(filled: Ledger) -> None:
    assert dropped(keep(filled, 1, dry_run=True)) == [("2025-12", 1), ("2026-01", 1)]
    assert len(months_with_rows(filled)) == 4


def test_without_a_retention_everything_stays(filled: Ledger) -> None:
    assert maintain(filled, now=NOW, keep_months=None).dropped == ()
    assert len(months_with_rows(filled)) == 4


def test_nobody_can_ask_to_keep_less_than_a_month(filled: Ledger) -> None:
    with pytest.raises(LedgerError, match="keep_months 0: expected 1 or more"):
        keep(filled, 0)


def test_adjustments_go_with_the_month_they_were_made_in(ledger: Ledger) -> None:
    """So that a day of adjustments is there whole or not at all, as a day of requests is."""
    old, late, new = written(ledger, item(JANUARY), item(JANUARY), item(MARCH))
    adjust(ledger, old, -40, when=JANUARY)
    adjust(ledger, late, -40, when=MARCH)
    adjust(ledger, new, -30, when=MARCH)
    keep(ledger, 1)
    with ledger.read() as conn:
        kept = set(conn.execute(select(llm_adjustments.c.attempt_id)).scalars())
    assert kept == {late.attempt_id, new.attempt_id}


def test_unknown_amounts_keep_their_month_and_those_after_it_until_an_invoice_resolves_them(ledger: Ledger) -> None:
    lost, _ = written(ledger, item(DECEMBER, status="unknown", usage=None), item(JANUARY))
    done = keep(ledger, 1)
    assert dropped(done) == []
    assert [(month.name, month.needed) for month in done.kept] == [
        ("2025-12", "1 unknown amounts are not reconciled"),
        ("2026-01", ""),
    ]
    adjust(ledger, lost, -100)
    assert dropped(keep(ledger, 1)) == [("2025-12", 1), ("2026-01", 1)]


def test_attempts_that_are_not_settled_keep_their_month(ledger: Ledger) -> None:
    written(ledger, item(JANUARY))
    with ledger.write() as conn:
        take_hold(conn, hold_id="h", owner="me", task=request().task, periods=[period(10**9)], amounts=[5], now=JANUARY)
        open_attempts(conn, [OpenAttempt("a", "h", 5, JANUARY, request())])
    assert keep(ledger, 1).kept[0].needed == "1 attempts opened in it are not settled"


def test_an_open_budget_keeps_the_months_it_counts(filled: Ledger) -> None:
    with filled.write() as conn:
        conn.execute(update(llm_budgets).values(starts_at=JANUARY, ends_at=NOW + timedelta(days=1)))
    done = keep(filled, 1)
    assert dropped(done) == [("2025-12", 1)]
    assert done.kept[0].needed == "budget team=support/day@2026-03-04 is still open"


def test_who_insists_drops_what_is_needed(ledger: Ledger) -> None:
    written(ledger, item(JANUARY, status="unknown", usage=None))
    assert dropped(keep(ledger, 1, force=True)) == [("2026-01", 1)]


def test_a_ledger_without_rows_is_maintained_too(ledger: Ledger) -> None:
    assert keep(ledger, 1).kept == ()
    with ledger.read() as conn:
        assert first_kept(conn) is None or not ledger.sqlite


# PostgreSQL alone


@pytest.fixture
def postgres_ledger(migrated_postgres_url: str) -> Any:
    with Ledger.open(migrated_postgres_url) as ledger:
        yield ledger


def test_months_are_made_ahead_with_every_index(postgres_ledger: Ledger) -> None:
    later = datetime(2031, 11, 30, tzinfo=UTC)
    assert maintain(postgres_ledger, now=later, keep_months=None, dry_run=True).made[0] == "2031-11"
    made = maintain(postgres_ledger, now=later, keep_months=None).made
    assert made == ("2031-11", "2031-12", "2032-01", "2032-02")
    assert maintain(postgres_ledger, now=later, keep_months=None).made == ()
    found = inspect(postgres_ledger.engine)
    own = {tuple(index["column_names"]) for index in found.get_indexes("llm_requests_2032_01")}
    assert own == {tuple(index["column_names"]) for index in found.get_indexes("llm_requests")}
    with postgres_ledger.read() as conn:
        loose = conn.execute(
            text(
                "SELECT count(*) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t "
                "ON t.oid = x.indrelid WHERE t.relname = 'llm_requests_2032_01' AND NOT i.relispartition"
            )
        )
        assert loose.scalar() == 0, "each index is part of the whole table's"


def test_a_reader_does_not_hold_up_the_making_of_months(postgres_ledger: Ledger) -> None:
    month = datetime(2033, 1, 1, tzinfo=UTC)
    with postgres_ledger.read() as reader:
        reader.execute(select(func.count()).select_from(llm_requests))
        with postgres_ledger.write() as conn:
            conn.execute(text("SET lock_timeout = '2s'"))
            assert make_months(conn, [month]) == [month]


def test_what_was_interrupted_between_detaching_and_dropping_is_ended(postgres_ledger: Ledger) -> None:
    written(postgres_ledger, item(JANUARY), item(MARCH))
    with postgres_ledger.statements() as conn:
        conn.execute(text(f"ALTER TABLE llm_requests DETACH PARTITION {month_name(JANUARY)} CONCURRENTLY"))
    with postgres_ledger.read() as conn:
        assert leftover_months(conn) == [month_of(JANUARY)]
    keep(postgres_ledger, 1)
    with postgres_ledger.read() as conn:
        assert leftover_months(conn) == []
        assert month_of(JANUARY) not in months_there(conn)
    assert not inspect(postgres_ledger.engine).has_table(month_name(JANUARY))


def test_a_detach_that_was_interrupted_is_ended(postgres_ledger: Ledger) -> None:
    """Cancelled while it waits for a reader, it leaves the partition half detached."""
    written(postgres_ledger, item(JANUARY), item(MARCH))
    with postgres_ledger.read() as reader:
        reader.execute(select(func.count()).select_from(llm_requests)).scalar()
        with postgres_ledger.statements() as conn:
            conn.execute(text("SET statement_timeout = '300ms'"))
            with pytest.raises(Exception, match="statement timeout"):
                conn.exec_driver_sql(f"ALTER TABLE llm_requests DETACH PARTITION {month_name(JANUARY)} CONCURRENTLY")
            conn.exec_driver_sql("RESET statement_timeout")
    assert dropped(keep(postgres_ledger, 1)) == [("2026-01", 1)]
    assert not inspect(postgres_ledger.engine).has_table(month_name(JANUARY))


def test_an_attempt_of_a_month_that_was_not_made_makes_it(postgres_ledger: Ledger) -> None:
    late = datetime(2040, 6, 30, 23, 59, 59, tzinfo=UTC)
    written(postgres_ledger, item(late))
    with postgres_ledger.read() as conn:
        assert month_of(late) in months_there(conn)


@pytest.mark.parametrize(
    ("now", "count", "expected"),
    [
        (datetime(2026, 3, 31, tzinfo=UTC), 1, datetime(2026, 2, 1, tzinfo=UTC)),
        (datetime(2026, 3, 1, tzinfo=UTC), 25, datetime(2024, 2, 1, tzinfo=UTC)),
        (datetime(2026, 1, 1, tzinfo=UTC), 12, datetime(2025, 1, 1, tzinfo=UTC)),
    ],
)
def test_months_are_counted_back_over_years(now: datetime, count: int, expected: datetime) -> None:
    assert months_before(now, count) == expected
    for _ in range(count):
        expected = next_month(expected)
    assert expected == month_of(now)
