"""The embedded index: one SQLite file, with an index for each question that is asked of it.

Measured over 1,000,000 events by benchmarks/bench_audit_search.py.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson

from airflow_ai_provider.core.audit.sinks.search import FIELDS, Event, Query, Rejected, SearchIndex
from airflow_ai_provider.core.errors import AuditError, StoreUnavailable
from airflow_ai_provider.core.sqlite import BUSY_SECONDS, use_write_ahead_log

_COLUMNS: Final = {field: column for column, field in FIELDS.items()}
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS events (
    event_id TEXT PRIMARY KEY,
    at INTEGER NOT NULL, -- milliseconds since 1970, UTC
    "user" TEXT, action TEXT, outcome TEXT, dag_id TEXT, run_id TEXT, task_id TEXT, request_id TEXT,
    document BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_time ON events (at);
CREATE INDEX IF NOT EXISTS by_user ON events ("user", at) WHERE "user" IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_action ON events (action, at);
CREATE INDEX IF NOT EXISTS by_run ON events (dag_id, run_id, at) WHERE dag_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_dag ON events (dag_id, at) WHERE dag_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_request ON events (request_id) WHERE request_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS about (identity TEXT NOT NULL);
"""
_INSERT: Final = "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class SqliteIndex(SearchIndex):
    """An index in a file of this host, readable by its owner only. Many may read while one writes."""

    def __init__(self, path: Path) -> None:
        self.name = f"SQLite {path}"
        self._path = path
        with self._translated():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            use_write_ahead_log(self._db)
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
            self._identify()

    def prepare(self) -> None:
        """Nothing: an opened file is ready."""

    def identity(self) -> str:
        with self._translated():
            found: str = self._db.execute("SELECT identity FROM about").fetchone()[0]
        return found

    def add(self, events: Sequence[Event], *, replay: bool = False) -> list[Rejected]:
        rejected, rows = [], []
        for event in events:
            try:
                rows.append(_row(event))
            except ValueError as error:
                rejected.append(Rejected(event["event.id"], str(error)))
        with self._translated(), self._transaction():
            self._db.executemany(_INSERT, rows)
        return rejected

    def refresh(self) -> None:
        """Nothing: what was added is found at once."""

    def search(self, query: Query) -> list[Event]:
        statement, values = select(query)
        with self._translated():
            return [orjson.loads(document) for (document,) in self._db.execute(statement, values)]

    def plan(self, query: Query) -> str:
        """How SQLite answers a query, in its own words."""
        statement, values = select(query)
        with self._translated():
            return "; ".join(row[3] for row in self._db.execute(f"EXPLAIN QUERY PLAN {statement}", values))

    def count(self) -> int:
        with self._translated():
            found: int = self._db.execute("SELECT count(*) FROM events").fetchone()[0]
        return found

    def clear(self) -> None:
        with self._translated(), self._transaction():
            self._db.execute("DELETE FROM events")
            self._db.execute("DELETE FROM about")
            self._db.execute("INSERT INTO about VALUES (?)", (uuid.uuid4().hex,))

    def close(self) -> None:
        with self._translated():
            self._db.execute("PRAGMA optimize")
            self._db.close()

    def _identify(self) -> None:
        with self._transaction():
            if self._db.execute("SELECT 1 FROM about").fetchone() is None:
                self._db.execute("INSERT INTO about VALUES (?)", (uuid.uuid4().hex,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"audit index {self._path}: {error}; check the disk and its permissions") from None
        except sqlite3.DatabaseError as error:
            raise AuditError(f"audit index {self._path}: {error}; remove it and run airflow ai audit index") from None
        except OSError as error:
            raise StoreUnavailable(f"audit index {self._path} cannot be opened: {error.strerror}") from None


def select(query: Query) -> tuple[str, list[Any]]:
    """The statement that answers a query, and its values."""
    conditions = [f'"{_COLUMNS[field]}" = ?' for field in query.terms()]
    values: list[Any] = list(query.terms().values())
    for moment, comparison in ((query.since, ">="), (query.until, "<")):
        if moment is not None:
            conditions.append(f"at {comparison} ?")
            values.append(_milliseconds(moment))
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    # Both parts are names and signs of this module, never a value.
    return f"SELECT document FROM events{where} ORDER BY at DESC, rowid DESC LIMIT ?", [*values, query.limit]  # noqa: S608


def _row(event: Event) -> tuple[Any, ...]:
    """Raises ``ValueError`` for a time that is none or a name that is no text."""
    at = _milliseconds(datetime.fromisoformat(event["@timestamp"]))
    names = [event.get(field) for field in FIELDS.values()]
    if not all(name is None or type(name) is str for name in names):
        raise ValueError(f"one of {', '.join(FIELDS.values())} is no text")
    return event["event.id"], at, *names, orjson.dumps(event)


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
