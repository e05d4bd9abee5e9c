"""The response store: answers that were paid for, found again by what was asked.

*Cache* and *resume* are one mechanism. An answer is good for anyone in its scope until the route's ``ttl`` is over,
and for the run that paid for it for as long as it is kept, so that a retry or a clear pays nothing twice. Values are
encrypted and bound to their key. A store that fails costs reuse, never correctness: an entry that cannot be read is
a miss.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import orjson

from airflow_ai_provider.errors import KeyringError, PrivacyError, StoreUnavailable
from airflow_ai_provider.ledger.batching import Batcher
from airflow_ai_provider.privacy.cipher import decrypt, encrypt
from airflow_ai_provider.privacy.keyring import Keyring

log = logging.getLogger(__name__)

RESUME_SECONDS = 7 * 86400
"""How long an answer is kept for the run that paid for it."""
_PURPOSE = "responses"
_CHUNK = 500  # keys per statement; SQLite takes at most 32,766 parameters


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer as it is stored: masked, with what it cost."""

    text: str
    deployment: str
    finish_reason: str
    input_tokens: int
    output_tokens: int
    cost_nano: int
    run: str
    """Tag of the run that paid."""
    created_at: int
    """Unix seconds."""

    def good_for(self, *, run: str, ttl: int, now: float) -> bool:
        return self.run == run or now - self.created_at < ttl


class ResponseBackend(Protocol):
    """Where encrypted answers are kept. Raises ``StoreUnavailable``."""

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    async def put_many(self, entries: Mapping[bytes, bytes], ttl: int) -> None:
        """Keep entries for ``ttl`` seconds; they outlive this process on return."""
        ...

    async def close(self) -> None: ...


class ResponseStore:
    """Answers by key, encrypted, over any backend; single look-ups and writes travel in groups."""

    def __init__(self, backend: ResponseBackend, keyring: Keyring) -> None:
        self._backend = backend
        self._keyring = keyring
        self._reads: Batcher[bytes, bytes | None] = Batcher(self._read)
        self._writes: Batcher[tuple[bytes, bytes, int], None] = Batcher(self._write)
        self._complained = False

    async def find(self, keys: Sequence[bytes], *, run: str, ttl: int) -> Stored | None:
        """The first good answer under ``keys``. A store that is away, and an entry that cannot be read, are misses."""
        now = time.time()
        for key in keys:
            value = await self._reads.ask(key)
            stored = self._opened(key, value) if value is not None else None
            if stored is not None and stored.good_for(run=run, ttl=ttl, now=now):
                return stored
        return None

    async def find_many(self, keys, *, run, ttl):
        now = time.time()
        values = await self._read(list(keys)) if len(keys) > 4 else [await self._reads.ask(key) for key in keys]
        out = []
        for key, value in zip(keys, values, strict=True):
            stored = self._opened(key, value) if value is not None else None
            out.append(stored if stored is not None and stored.good_for(run=run, ttl=ttl, now=now) else None)
        return out

    async def claim(self, key):
        return True

    async def release(self, key): ...
    async def answer_of_another(self, key, *, run, ttl): ...

    async def keep(self, key: bytes, stored: Stored, *, ttl: int) -> None:
        """Return when the answer is stored, or the store has failed (which is logged, once)."""
        value = encrypt(self._keyring, _PURPOSE, orjson.dumps(stored), key)
        await self._writes.ask((key, value, max(ttl, RESUME_SECONDS)))

    async def close(self) -> None:
        await self._writes.idle()
        await self._backend.close()

    def _opened(self, key: bytes, value: bytes) -> Stored | None:
        try:
            return Stored(**orjson.loads(decrypt(self._keyring, _PURPOSE, value, key)))
        except (PrivacyError, KeyringError, orjson.JSONDecodeError, TypeError):
            return None

    async def _read(self, keys: list[bytes]) -> Sequence[bytes | None]:
        try:
            return await self._backend.get_many(keys)
        except StoreUnavailable as error:
            self._complain(error)
            return [None] * len(keys)

    async def _write(self, writes: list[tuple[bytes, bytes, int]]) -> list[None]:
        by_ttl: dict[int, dict[bytes, bytes]] = {}
        for key, value, ttl in writes:
            by_ttl.setdefault(ttl, {})[key] = value
        try:
            for ttl, entries in by_ttl.items():
                await self._backend.put_many(entries, ttl)
        except StoreUnavailable as error:
            self._complain(error)
        return [None] * len(writes)

    def _complain(self, error: StoreUnavailable) -> None:
        if not self._complained:
            log.warning("%s; rows are answered without reuse until it is back", error)
            self._complained = True


class SqliteResponses:
    """One file in the ``[ai]`` home. WAL with ``synchronous=NORMAL``: a commit survives the death of the process."""

    def __init__(self, path: Path) -> None:
        """Raises ``StoreUnavailable`` where the file cannot be used."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS responses "
                "(key BLOB PRIMARY KEY, value BLOB NOT NULL, expires_at INTEGER NOT NULL) WITHOUT ROWID"
            )
            self._db.execute("CREATE INDEX IF NOT EXISTS responses_expiry ON responses (expires_at)")
            self._db.execute("DELETE FROM responses WHERE expires_at < ?", (int(time.time()),))
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(f"response store {path}: {error}") from None
        self._path = path
        self._turn = asyncio.Lock()

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        async with self._turn:
            return await asyncio.to_thread(self._get, keys)

    async def put_many(self, entries: Mapping[bytes, bytes], ttl: int) -> None:
        async with self._turn:
            await asyncio.to_thread(self._put, entries, int(time.time()) + ttl)

    async def close(self) -> None:
        async with self._turn:
            self._db.close()

    def _get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found: dict[bytes, bytes] = {}
        now = int(time.time())
        try:
            for start in range(0, len(keys), _CHUNK):
                chunk = keys[start : start + _CHUNK]
                marks = ",".join("?" * len(chunk))
                query = f"SELECT key, value FROM responses WHERE expires_at >= ? AND key IN ({marks})"  # noqa: S608
                found.update(self._db.execute(query, (now, *chunk)).fetchall())
        except sqlite3.Error as error:
            raise StoreUnavailable(f"response store {self._path}: {error}") from None
        return [found.get(key) for key in keys]

    def _put(self, entries: Mapping[bytes, bytes], expires_at: int) -> None:
        rows = [(key, value, expires_at) for key, value in entries.items()]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO responses VALUES (?, ?, ?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StoreUnavailable(f"response store {self._path}: {error}") from None


class RedisResponses:
    """Redis, shared by all workers: one MGET a look-up, one pipeline a group of writes."""

    _PREFIX = b"ai:response:"

    def __init__(self, url: str) -> None:
        import redis.asyncio

        try:
            self._redis = redis.asyncio.Redis.from_url(url, socket_timeout=10, socket_connect_timeout=5)
        except ValueError:
            raise StoreUnavailable("response store: not a Redis URL; check the connection of cache_conn_id") from None

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        import redis

        try:
            return cast("list[bytes | None]", await self._redis.mget([self._PREFIX + key for key in keys]))
        except redis.RedisError as error:
            raise StoreUnavailable(f"response store on Redis: {type(error).__name__}") from None

    async def put_many(self, entries: Mapping[bytes, bytes], ttl: int) -> None:
        import redis

        pipeline: Any = self._redis.pipeline(transaction=False)
        for key, value in entries.items():
            pipeline.set(self._PREFIX + key, value, ex=ttl)
        try:
            await pipeline.execute()
        except redis.RedisError as error:
            raise StoreUnavailable(f"response store on Redis: {type(error).__name__}") from None

    async def close(self) -> None:
        await self._redis.aclose()


def open_responses(cache_url: str | None, home: Path) -> ResponseBackend:
    """Redis at ``cache_url``, or SQLite in ``home``."""
    return RedisResponses(cache_url) if cache_url else SqliteResponses(home / "responses.db")
