"""What a database says of itself becomes an error of the ledger: wait and try again, or stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.errors import LedgerError, LedgerUnavailable

GONE = ["25006", "25P03", "57P01", "57P02", "57P03", "57P05", "58030", "08006", "08P01"]
BUSY = ["57014", "55P03", "40001", "40P01", "53100", "53300"]


def fail(conn: Connection, state: str, message: str = "as told") -> None:
    """Let the real server raise an error with a SQLSTATE."""
    conn.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = '{state}'; END $$")


def backend(conn: Connection) -> int:
    return int(conn.execute(text("SELECT pg_backend_pid()")).scalar_one())


@pytest.mark.parametrize("state", [*GONE, *BUSY])
def test_a_server_that_cannot_now_is_waited_for(migrated_postgres_url: str, state: str) -> None:
    with Ledger.open(migrated_postgres_url) as ledger:
        with ledger.read() as conn:
            before = backend(conn)
        tries = []

        def work(conn: Connection, again: bool) -> int:
            tries.append(again)
            if not again:
                fail(conn, state)
            return backend(conn)

        after = ledger.run(work)
        assert tries == [False, True]
        assert (after != before) == (state in GONE), "a connection to a server that is gone, or demoted, is dropped"
        with pytest.raises(LedgerUnavailable, match=rf"as told \(SQLSTATE {state}\)") as caught, ledger.write() as conn:
            fail(conn, state)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("state", ["42501", "42P01", "23505", "22P02", "XX000"])
def test_what_waiting_does_not_mend_is_raised_at_once(migrated_postgres_url: str, state: str) -> None:
    with Ledger.open(migrated_postgres_url) as ledger:
        tries = []

        def work(conn: Connection, again: bool) -> None:
            tries.append(again)
            fail(conn, state, "value 4711")

        with pytest.raises(LedgerError) as caught:
            ledger.run(work)
        assert tries == [False]
        assert ("4711" in str(caught.value)) == state.startswith("42"), "only class 42 never quotes a row"


def test_a_pool_forgets_every_connection_to_a_demoted_server(migrated_postgres_url: str) -> None:
    with Ledger.open(migrated_postgres_url) as ledger:
        with ledger.read() as one, ledger.read() as two:
            before = {backend(one), backend(two)}
        with pytest.raises(LedgerUnavailable), ledger.write() as conn:
            fail(conn, "25006")
        with ledger.read() as one, ledger.read() as two:
            assert not before & {backend(one), backend(two)}


def test_a_sqlite_file_whose_disk_is_full_is_waited_for(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        tries = []

        def work(conn: Connection, again: bool) -> None:
            tries.append(again)
            conn.execute(text(f"PRAGMA max_page_count = {10**6 if again else 1}"))
            conn.execute(text("CREATE TABLE filler AS SELECT hex(zeroblob(99999)) AS x"))

        ledger.run(work)
        assert tries == [False, True]


@pytest.mark.parametrize("damage", [b"no database at all" * 500])
def test_a_damaged_sqlite_file_is_a_clear_stop(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(damage)
    with pytest.raises(LedgerError, match=r"not a database.*backup"):
        Ledger.open(f"sqlite:///{path}")
