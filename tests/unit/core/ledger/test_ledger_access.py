"""An analyst reads everything, months to come included, and can change nothing."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text
from support.ledger import NOW, item, written

from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.maintenance.read_access import VIEWS, grant, grant_statements
from airflow_ai_provider.core.ledger.schema import metadata
from airflow_ai_provider.errors import LedgerError

ROLE = 'ai "analysts" %'
"""A name that has to be quoted, in SQL and in the driver's own parameters."""


@pytest.fixture
def ledger(migrated_postgres_url: str) -> Iterator[Ledger]:
    with Ledger.open(migrated_postgres_url) as opened:
        yield opened
        with opened.statements() as conn:
            for (role,) in conn.execute(
                text("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> 'postgres'")
            ).all():
                quoted = '"' + role.replace('"', '""') + '"'
                conn.exec_driver_sql(f"DROP OWNED BY {quoted}".replace("%", "%%"))
                conn.exec_driver_sql(f"DROP ROLE {quoted}".replace("%", "%%"))


def login(ledger: Ledger, name: str, *, member_of: str | None = None, options: str = "") -> str:
    """A role that can log in; returns its URL for psycopg."""
    password = secrets.token_hex(8)
    with ledger.statements() as conn:
        conn.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD '{password}' {options}")
        if member_of:
            quoted = '"' + member_of.replace('"', '""').replace("%", "%%") + '"'
            conn.exec_driver_sql(f"GRANT {quoted} TO {name}")
    url = make_url(ledger.engine.url).set(drivername="postgresql", username=name, password=password)
    return url.render_as_string(hide_password=False)


def test_an_analyst_who_logs_in_reads_every_table_and_view_and_writes_none(ledger: Ledger) -> None:
    written(ledger, item(NOW))
    assert grant(ledger, ROLE) == []
    later = item(datetime(2041, 5, 5, tzinfo=UTC))
    with psycopg.connect(login(ledger, "alice", member_of=ROLE), autocommit=True) as alice:
        for name in (*metadata.tables, *VIEWS):
            alice.execute(f"SELECT * FROM {name}".encode()).fetchall()
        written(ledger, later)  # a month that was not there when the right was given
        found = alice.execute("SELECT attempt_id FROM llm_requests WHERE created_at >= '2041-01-01'").fetchall()
        assert found == [(later.attempt_id,)]
        refusals = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)
        for statement in (
            "INSERT INTO llm_budget_sets VALUES ('x', '[]')",
            "UPDATE llm_requests SET cost_nano = 0",
            "DELETE FROM llm_cost_daily",
            "TRUNCATE llm_adjustments",
            "UPDATE team_daily_cost SET cost_usd = 0",
            "DROP TABLE llm_requests",
            "CREATE TABLE mine (x int)",
            "ALTER TABLE llm_budgets ADD COLUMN x int",
            "CREATE INDEX x ON llm_requests (team_id)",
            "SELECT * FROM ai_ledger_version",
        ):
            with pytest.raises(refusals):
                alice.execute(statement.encode())
    with ledger.read() as conn:
        assert conn.execute(text("SELECT SUM(cost_nano), COUNT(*) FROM llm_requests")).one() == (200, 2)


def test_what_is_printed_is_what_is_run(ledger: Ledger) -> None:
    statements = grant_statements(ledger, ROLE)
    assert statements[0] == 'CREATE ROLE "ai ""analysts"" %" NOLOGIN'
    with ledger.statements() as conn:
        for statement in statements:
            conn.exec_driver_sql(statement.replace("%", "%%"))
    assert not any(statement.startswith("CREATE") for statement in grant_statements(ledger, ROLE))
    assert grant(ledger, ROLE) == [], "a second time changes nothing"


def test_rights_to_write_that_a_role_has_from_elsewhere_are_told(ledger: Ledger) -> None:
    with ledger.statements() as conn:
        conn.exec_driver_sql("CREATE ROLE writer")
        conn.exec_driver_sql("GRANT INSERT ON llm_budgets TO writer")
        conn.exec_driver_sql("CREATE ROLE analyst IN ROLE writer")
        conn.exec_driver_sql("GRANT CREATE ON SCHEMA public TO analyst")
    assert grant(ledger, "analyst") == [
        "role analyst may write llm_budgets",
        "role analyst may create tables in the ledger's schema",
    ]
    assert grant(ledger, "postgres") == ["role postgres is a superuser"]


def test_a_login_that_may_not_make_roles_says_what_to_do(ledger: Ledger) -> None:
    url = login(ledger, "plain")
    with ledger.statements() as conn:
        conn.exec_driver_sql("GRANT SELECT ON ai_ledger_version TO plain")
    with (
        Ledger.open(url.replace("postgresql:", "postgresql+psycopg:")) as own,
        pytest.raises(LedgerError, match=r"permission denied to create role.*--print"),
    ):
        grant(own, "analysts")


@pytest.mark.parametrize("role", ["", "  ", "public", "pg_read_all_data", "x" * 64])
def test_a_name_that_no_role_can_have_is_refused(ledger: Ledger, role: str) -> None:
    with pytest.raises(LedgerError, match="expected a name"):
        grant_statements(ledger, role)


def test_sqlite_has_no_roles(tmp_path: Path) -> None:
    with (
        Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as sqlite,
        pytest.raises(LedgerError, match="SQLite has no roles"),
    ):
        grant_statements(sqlite, "analysts")
