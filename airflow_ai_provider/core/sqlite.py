"""What all SQLite files of an installation need alike."""

from __future__ import annotations

import sqlite3
import time

BUSY_SECONDS = 30
"""How long a connection waits for others that write."""
_AGAIN_SECONDS = 0.01


def use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch a database to write-ahead logging, which lets many read while one writes.

    SQLite's own waiting does not cover the switch: beside a process that is about to write, the statement fails at once
    (https://sqlite.org/c3ref/busy_handler.html). Raises ``sqlite3.Error``, after ``BUSY_SECONDS`` of a locked database
    too.
    """
    latest = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= latest:
                raise
            time.sleep(_AGAIN_SECONDS)
