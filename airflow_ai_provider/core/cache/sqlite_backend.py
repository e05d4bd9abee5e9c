"""SQLite, one file in the ``[ai]`` home, shared by the processes of one host.

WAL with ``synchronous=NORMAL``: a commit survives the death of the process. Removed answers are overwritten.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from airflow_ai_provider.core.cache.backend import OWNER_SECONDS, Entry, Heading, Seen
from airflow_ai_provider.core.errors import StoreUnavailable
from airflow_ai_provider.core.sqlite import BUSY_SECONDS, use_write_ahead_log

_VERSION = 3
"""Of the tables. It is a cache: a file of another version is emptied."""
_TABLES = """
CREATE TABLE responses (
    key BLOB PRIMARY KEY, team TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    value BLOB NOT NULL);
CREATE INDEX responses_expiry ON responses (expires_at);
CREATE INDEX responses_team ON responses (team);
CREATE TABLE leases (key BLOB PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE owners (owner TEXT PRIMARY KEY, alive_until REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE tasks (task TEXT PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
"""
_CHUNK = 250
"""Keys per statement; SQLite takes at most 32,766 parameters."""
_SCANNED = 1000
_EXPIRED = 10_000
"""Rows that one opening removes at most, so that none takes long."""
_ALIVE = "SELECT owner FROM owners WHERE alive_until >= ?"
_LEASE = (
    "INSERT INTO leases VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET owner = excluded.owner "  # noqa: S608
    f"WHERE leases.owner NOT IN ({_ALIVE})"
)

_Result = TypeVar("_Result")


class SqliteResponses:
    """A ``ResponseBackend`` in a file."""

    def __init__(self, path: Path) -> None:
        """Raises ``StoreUnavailable`` where the file cannot be used."""
        self._path = path
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            # Look-ups go by their own connection: readers do not wait for writers.
            self._writer, self._reader = _Connection(path), _Connection(path)
            _prepare(self._writer.db)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self._read(lambda db: _get(db, keys))

    async def finish(self, entries: Sequence[Entry], released: Sequence[bytes], owner: str) -> None:
        now = int(time.time())
        rows = [(each.key, each.team, each.created_at, now + each.ttl, each.value) for each in entries]
        free = [(key, owner) for key in (*(entry.key for entry in entries), *released)]

        def write(db: sqlite3.Connection) -> None:
            db.executemany("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?)", rows)
            db.executemany("DELETE FROM leases WHERE key = ? AND owner = ?", free)

        await self._write(write)

    async def claim(self, keys: Sequence[bytes], owner: str) -> list[Seen]:
        def write(db: sqlite3.Connection) -> list[Seen]:
            now = time.time()
            _stay(db, owner, now)
            db.executemany(_LEASE, [(key, owner, now) for key in keys])
            return _look(db, keys, now, owner)

        return await self._write(write)

    async def look(self, keys: Sequence[bytes]) -> list[Seen]:
        return await self._read(lambda db: _look(db, keys, time.time(), None))

    async def stay(self, owner: str) -> None:
        await self._write(lambda db: _stay(db, owner, time.time()))

    async def succeed(self, task: str, owner: str) -> None:
        def write(db: sqlite3.Connection) -> None:
            before = "SELECT owner FROM tasks WHERE task = ? AND owner <> ?"
            db.execute(f"DELETE FROM owners WHERE owner IN ({before})", (task, owner))  # noqa: S608
            _stay(db, owner, time.time())
            db.execute("INSERT OR REPLACE INTO tasks VALUES (?, ?)", (task, owner))

        await self._write(write)

    async def leave(self, owner: str) -> None:
        await self._write(lambda db: db.execute("DELETE FROM owners WHERE owner = ?", (owner,)))

    async def scan(self, *, team: str | None = None, before: int | None = None) -> AsyncIterator[list[Heading]]:
        asked = "rowid > ?" + " AND team = ?" * (team is not None) + " AND created_at < ?" * (before is not None)
        query = f"SELECT rowid, key, team, created_at, length(value) FROM responses WHERE {asked}"  # noqa: S608
        given = [value for value in (team, before) if value is not None]
        last = -1
        while True:
            values = (last, *given, _SCANNED)
            rows = await self._read(partial(_rows, query=f"{query} ORDER BY rowid LIMIT ?", values=values))
            if not rows:
                return
            last = rows[-1][0]
            yield [Heading(*row[1:]) for row in rows]

    async def delete(self, keys: Sequence[bytes]) -> int:
        query = "DELETE FROM responses WHERE key IN"
        return await self._write(
            lambda db: sum(db.execute(f"{query} {_marks(len(chunk))}", chunk).rowcount for chunk in _chunks(keys))
        )

    async def tidy(self) -> None:
        while await self._write(_remove_expired):
            pass
        with self._translated():  # outside a transaction: what was removed leaves the log as well
            await self._writer.run(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())

    async def close(self) -> None:
        for connection in (self._reader, self._writer):
            await connection.close()

    async def _read(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        with self._translated():
            return await self._reader.run(work)

    async def _write(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """In one transaction."""
        with self._translated():
            return await self._writer.run(lambda db: _in_transaction(db, work))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(f"response store {self._path}: {error}") from None


class _Connection:
    """One connection and the thread that it works in, one piece of work after the other."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
        use_write_ahead_log(self.db)
        for pragma in ("synchronous=NORMAL", "secure_delete=ON"):
            self.db.execute(f"PRAGMA {pragma}")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="responses")

    async def run(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self.db)

    async def close(self) -> None:
        await self.run(sqlite3.Connection.close)
        self._thread.shutdown(wait=False)


def _in_transaction(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
    db.execute("BEGIN IMMEDIATE")
    try:
        result = work(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


def _prepare(db: sqlite3.Connection) -> None:
    """Tables of this version, in whichever of the processes that open an older file comes first."""
    if _version(db) != _VERSION:
        _in_transaction(db, _make_tables)
    _in_transaction(db, _remove_expired)


def _make_tables(db: sqlite3.Connection) -> None:
    if _version(db) == _VERSION:
        return
    for name in ("responses", "leases", "owners", "tasks"):
        db.execute(f"DROP TABLE IF EXISTS {name}")
    for statement in _TABLES.split(";"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {_VERSION}")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _remove_expired(db: sqlite3.Connection) -> int:
    """Some of what is out of date; how many answers that were."""
    now = time.time()
    db.execute("DELETE FROM owners WHERE alive_until < ?", (now,))
    for table in ("leases", "tasks"):
        db.execute(f"DELETE FROM {table} WHERE owner NOT IN (SELECT owner FROM owners)")  # noqa: S608
    expired = "SELECT rowid FROM responses WHERE expires_at < ? LIMIT ?"
    return db.execute(f"DELETE FROM responses WHERE rowid IN ({expired})", (int(now), _EXPIRED)).rowcount  # noqa: S608


def _get(db: sqlite3.Connection, keys: Sequence[bytes]) -> list[bytes | None]:
    found: dict[bytes, bytes] = {}
    now = int(time.time())
    for chunk in _chunks(keys):
        query = f"SELECT key, value FROM responses WHERE expires_at >= ? AND key IN {_marks(len(chunk))}"  # noqa: S608
        found.update(db.execute(query, (now, *chunk)).fetchall())
    return list(map(found.get, keys))


def _rows(db: sqlite3.Connection, query: str, values: Sequence[object]) -> list[Any]:
    return db.execute(query, values).fetchall()


def _look(db: sqlite3.Connection, keys: Sequence[bytes], now: float, owner: str | None) -> list[Seen]:
    """How keys are; what ``owner`` has leased does not count."""
    leased: set[bytes] = set()
    for chunk in _chunks(keys):
        query = f"SELECT key FROM leases WHERE owner IS NOT ? AND owner IN ({_ALIVE}) AND key IN {_marks(len(chunk))}"  # noqa: S608
        leased.update(key for (key,) in db.execute(query, (owner, now, *chunk)))
    return [Seen(value, key in leased) for key, value in zip(keys, _get(db, keys), strict=True)]


def _stay(db: sqlite3.Connection, owner: str, now: float) -> None:
    db.execute("INSERT OR REPLACE INTO owners VALUES (?, ?)", (owner, now + OWNER_SECONDS))


@lru_cache(maxsize=_CHUNK + 1)
def _marks(number: int) -> str:
    return f"({','.join('?' * number)})"


def _chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), _CHUNK):
        yield keys[start : start + _CHUNK]
