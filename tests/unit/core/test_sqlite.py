"""SQLite files that several processes open at the same moment."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from airflow_ai_provider.core import sqlite as shared
from airflow_ai_provider.core.sqlite import use_write_ahead_log


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)


def mode(connection: sqlite3.Connection) -> str:
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_the_switch_to_a_write_ahead_log_waits_for_another_process_that_writes(tmp_path: Path, lock: str) -> None:
    first, second = connect(tmp_path / "new.db"), connect(tmp_path / "new.db")
    first.execute("CREATE TABLE t (a)")
    first.execute(lock)
    waiting = threading.Thread(target=use_write_ahead_log, args=[second])
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    first.execute("COMMIT")
    waiting.join()
    assert mode(second) == "wal"


def test_a_file_that_stays_locked_is_an_error_at_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "BUSY_SECONDS", 0.05)
    first, second = connect(tmp_path / "new.db"), connect(tmp_path / "new.db")
    first.execute("CREATE TABLE t (a)")
    first.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        use_write_ahead_log(second)


def test_what_is_no_lock_is_an_error_at_once(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("this is no database, and long enough to be looked at" * 20)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        use_write_ahead_log(connect(path))
