"""The schema goes up and down with data in it, and an unreachable database says so."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import inspect, select, text
from support.ledger import NOW, TASK, attempt, period, settled

from airflow_ai_provider.core.ledger.attempts.attempts import open_attempts, settle
from airflow_ai_provider.core.ledger.budgets.holds import take_hold
from airflow_ai_provider.core.ledger.database import Ledger, migrate
from airflow_ai_provider.core.ledger.reports.costs import budget_report, cost_report
from airflow_ai_provider.core.ledger.schema import metadata
from airflow_ai_provider.errors import LedgerError, LedgerUnavailable


def spend(ledger: Ledger, cost: int) -> None:
    opened = attempt("h1", 50)
    with ledger.write() as conn:
        take_hold(conn, hold_id="h1", owner="me", task=TASK, periods=[period(10**9)], amounts=[50], now=NOW)
        open_attempts(conn, [opened])
        settle(conn, [settled(opened, cost)], NOW)


def test_migrations_make_the_schema_the_code_expects(ledger: Ledger) -> None:
    found = inspect(ledger.engine)
    for table in metadata.tables.values():
        assert {column["name"] for column in found.get_columns(table.name)} == set(table.columns.keys())


def test_migrations_go_down_and_up_again_with_data_in_the_tables(ledger: Ledger) -> None:
    spend(ledger, 30)
    with ledger.write() as conn:
        migrate(conn, "base")
    assert set(inspect(ledger.engine).get_table_names()) <= {"ai_ledger_version"}
    with ledger.write() as conn:
        migrate(conn, "head")
    spend(ledger, 30)
    assert cost_report(ledger)[0]["requests"] == 1


def test_opening_twice_changes_nothing(empty_ledger_url: str) -> None:
    with Ledger.open(empty_ledger_url) as first:
        spend(first, 30)
    with Ledger.open(empty_ledger_url) as second:
        assert cost_report(second)[0]["requests"] == 1


def test_a_newer_schema_is_refused(ledger: Ledger, ledger_url: str) -> None:
    with ledger.write() as conn:
        conn.execute(text("UPDATE ai_ledger_version SET version_num = '9999'"))
    with pytest.raises(LedgerError, match="9999 is newer"):
        Ledger.open(ledger_url)


def test_reports_and_the_view_for_analysts_agree(ledger: Ledger) -> None:
    spend(ledger, 30)
    (row,) = cost_report(ledger, by=["day", "team", "dag", "model"], since=date(2026, 3, 4), until=date(2026, 3, 4))
    assert row["cost_usd"] == Decimal("0.00000003")
    assert (row["input_tokens"], row["output_tokens"]) == (10, 5)
    with ledger.read() as conn:
        seen = conn.execute(text("SELECT team_id, cost_usd, requests, reuse_rate FROM team_daily_cost")).one()
        usd = conn.execute(select(metadata.tables["llm_requests"].c.cost_usd)).scalar_one()
    assert (seen.team_id, seen.requests, float(seen.reuse_rate)) == ("support", 1, 0.0)
    assert Decimal(seen.cost_usd).quantize(Decimal("1e-9")) == row["cost_usd"]
    assert Decimal(usd).quantize(Decimal("1e-9")) == row["cost_usd"]
    assert cost_report(ledger, since=date(2026, 3, 5)) == []
    assert budget_report(ledger)[0]["spent"] == Decimal("0.00000003")


def test_an_unknown_grouping_names_the_known_ones(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="cannot group by colour; expected some of hour, day, week, month, team"):
        cost_report(ledger, by=["colour"])


def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(LedgerUnavailable, match=r"127\.0\.0\.1:9.*no call is made") as caught:
        Ledger.open("postgresql+psycopg://user:hunter2@127.0.0.1:9/ledger")
    assert "hunter2" not in str(caught.value)


def test_a_home_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerUnavailable, match="writable folder"):
        Ledger.open(f"sqlite:///{tmp_path / 'file' / 'ledger.db'}")


def test_other_databases_are_refused() -> None:
    with pytest.raises(LedgerError, match="expected PostgreSQL or SQLite"):
        Ledger.open("mysql://localhost/x")
