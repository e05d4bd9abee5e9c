"""Progress of deliveries, dead letters, and how long a sink is retried.

How long a sink is asked again before the rest waits for the next delivery.

How far each sink has got, and what it refused: one SQLite file beside the spool.

A chunk is written down before it is sent and again when it has arrived, so a delivery that was killed goes on at the
chunk it was in, and knows that this one chunk may be there already. Dead letters and the progress that passes over
them are one transaction: an event is never in neither.
"""

from __future__ import annotations

import fcntl
import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from airflow_ai_provider.core.audit.trail.events import format_time
from airflow_ai_provider.core.errors import AuditError
from airflow_ai_provider.core.sqlite import BUSY_SECONDS, use_write_ahead_log

TRIES: Final = 8
_FIRST_S: Final = 0.05
_LONGEST_S: Final = 5.0


def pause(attempt: int) -> float:
    """Seconds before the try after ``attempt``: doubling, with jitter, so that clients do not come back together."""
    longest: float = min(_LONGEST_S, _FIRST_S * 2 ** (attempt - 1))
    return random.uniform(longest / 2, longest)  # noqa: S311


_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS progress (
    sink TEXT, segment TEXT,
    done INTEGER NOT NULL,      -- records that arrived
    sent INTEGER NOT NULL,      -- records up to the end of the chunk that was last sent
    finished INTEGER NOT NULL,
    PRIMARY KEY (sink, segment)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS manifests (sink TEXT PRIMARY KEY, sequence INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS dead_letters (
    sink TEXT, segment TEXT, record INTEGER,
    event_id TEXT NOT NULL, reason TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (sink, segment, record)
);
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """Of one segment into one sink."""

    done: int = 0
    """Records that arrived."""
    sent: int = 0
    """Records that may have arrived."""
    finished: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that a sink will never take. The trail has it."""

    segment: str
    record: int
    """Its number in the segment, from 1."""
    event_id: str
    """Empty where the record cannot be read."""
    reason: str
    at: str


class Cursor:
    """Opened by one delivery at a time: see ``holding``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            use_write_ahead_log(self._db)
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise AuditError(f"audit cursor {path} cannot be opened: {error}") from None

    @contextmanager
    def holding(self) -> Iterator[bool]:
        """``True`` to one delivery at a time, ``False`` at once to others; a dead one holds nothing."""
        with Path(f"{self._path}.lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def progress(self, sink: str, segment: str) -> Progress:
        query = "SELECT done, sent, finished FROM progress WHERE sink = ? AND segment = ?"
        row = self._db.execute(query, (sink, segment)).fetchone()
        return Progress(row[0], row[1], bool(row[2])) if row else Progress()

    def sending(self, sink: str, segment: str, done: int, sent: int) -> None:
        self._write(sink, segment, Progress(done, sent))

    def arrived(
        self, sink: str, segment: str, done: int, dead: Sequence[DeadLetter] = (), *, finished: bool = False
    ) -> None:
        rows = [(sink, each.segment, each.record, each.event_id, each.reason, each.at) for each in dead]
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT OR REPLACE INTO dead_letters VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._write(sink, segment, Progress(done, done, finished))
        self._db.execute("COMMIT")

    def _write(self, sink: str, segment: str, now: Progress) -> None:
        row = (sink, segment, now.done, now.sent, now.finished)
        self._db.execute("INSERT OR REPLACE INTO progress VALUES (?, ?, ?, ?, ?)", row)

    def manifest(self, sink: str) -> int:
        """Number of the newest manifest of which every segment has arrived."""
        row = self._db.execute("SELECT sequence FROM manifests WHERE sink = ?", (sink,)).fetchone()
        return int(row[0]) if row else 0

    def manifest_arrived(self, sink: str, sequence: int, segments: Sequence[str]) -> None:
        """A manifest stands for its segments, which need no rows of their own any more."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("INSERT OR REPLACE INTO manifests VALUES (?, ?)", (sink, sequence))
        rows = [(sink, segment) for segment in segments]
        self._db.executemany("DELETE FROM progress WHERE sink = ? AND segment = ?", rows)
        self._db.execute("COMMIT")

    def keep_only(self, sink: str, segments: Sequence[str]) -> None:
        """Forget segments that are no longer in the spool."""
        known = [row[0] for row in self._db.execute("SELECT segment FROM progress WHERE sink = ?", (sink,))]
        gone = [(sink, segment) for segment in set(known) - set(segments)]
        self._db.executemany("DELETE FROM progress WHERE sink = ? AND segment = ?", gone)

    def forget(self, sink: str) -> None:
        """Begin again: nothing was delivered, nothing was refused."""
        self._db.execute("BEGIN IMMEDIATE")
        for table in ("progress", "manifests", "dead_letters"):
            self._db.execute(f"DELETE FROM {table} WHERE sink = ?", (sink,))  # noqa: S608
        self._db.execute("COMMIT")

    def dead_letters(self, sink: str) -> list[DeadLetter]:
        query = "SELECT segment, record, event_id, reason, at FROM dead_letters WHERE sink = ? ORDER BY segment, record"
        return [DeadLetter(*row) for row in self._db.execute(query, (sink,))]

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def dead_letter(segment: str, record: int, event_id: str, reason: str, now: datetime) -> DeadLetter:
    return DeadLetter(segment, record, event_id, reason, format_time(now))
