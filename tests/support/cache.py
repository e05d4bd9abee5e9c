"""A response store of one kind or the other, and ways to look at it and to meddle with it from outside."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from airflow_ai_provider.core.cache import ResponseStore, Stored, open_responses
from airflow_ai_provider.core.cache.backend import Entry, ResponseBackend
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from support.redis_server import RedisServer

PREFIX = b"ai:response:"


class Place:
    """Where one kind of store keeps its bytes."""

    def __init__(self, folder: Path, url: str | None, server: RedisServer | None) -> None:
        self.folder, self.url, self.server = folder, url, server
        self.keyring = Keyring.open(folder / "keyring.json")

    def open(self, keyring: Keyring | None = None, task: str | None = None) -> ResponseStore:
        return ResponseStore(self.backend(), keyring or self.keyring, task=task)

    def backend(self) -> ResponseBackend:
        return open_responses(self.url, self.folder)

    def raw(self) -> dict[bytes, bytes]:
        """Every answer as it lies in the store, by key."""
        if self.url:
            with self._redis() as client:
                return {name.removeprefix(PREFIX): client.get(name) for name in client.scan_iter(PREFIX + b"*")}
        with self._db() as db:
            return dict(db.execute("SELECT key, value FROM responses").fetchall())

    def leases(self) -> set[bytes]:
        """Every key that anybody, alive or not, has leased."""
        if self.url:
            with self._redis() as client:
                return {name.removeprefix(b"ai:lease:") for name in client.scan_iter(b"ai:lease:*")}
        with self._db() as db:
            return {key for (key,) in db.execute("SELECT key FROM leases")}

    def overwrite(self, key: bytes, value: bytes) -> None:
        if self.url:
            with self._redis() as client:
                client.set(PREFIX + key, value)
        else:
            with self._db() as db:
                db.execute("INSERT OR REPLACE INTO responses VALUES (?, 'support', 1, 9999999999, ?)", (key, value))

    def seconds_to_live(self, key: bytes) -> float:
        if self.url:
            with self._redis() as client:
                return float(client.ttl(PREFIX + key))
        with self._db() as db:
            (expires,) = db.execute("SELECT expires_at FROM responses WHERE key = ?", (key,)).fetchone()
        return float(expires) - time.time()

    def expire(self, key: bytes) -> None:
        if self.url:
            with self._redis() as client:
                client.pexpire(PREFIX + key, -1)
        else:
            with self._db() as db:
                db.execute("UPDATE responses SET expires_at = 1 WHERE key = ?", (key,))

    def silence(self) -> None:
        """As if no owner had been heard of for long."""
        if self.url:
            with self._redis() as client:
                client.delete(*client.scan_iter(b"ai:owner:*"))
        else:
            with self._db() as db:
                db.execute("UPDATE owners SET alive_until = 1")

    def take_away(self) -> None:
        if self.server:
            self.server.stop()
        else:
            with self._db() as db:
                db.execute("ALTER TABLE responses RENAME TO elsewhere")
                db.execute("ALTER TABLE leases RENAME TO leases_elsewhere")

    def bring_back(self) -> None:
        if self.server:
            self.server.start()
        else:
            with self._db() as db:
                db.execute("ALTER TABLE elsewhere RENAME TO responses")
                db.execute("ALTER TABLE leases_elsewhere RENAME TO leases")

    @contextmanager
    def _redis(self) -> Iterator[Any]:
        assert self.url
        with redis.Redis.from_url(self.url) as client:
            yield client

    @contextmanager
    def _db(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.folder / "responses.db", timeout=30)) as db, db:
            yield db


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty store, on SQLite and on a real Redis."""
    if request.param == "sqlite":
        yield Place(tmp_path, None, None)
        return
    url = request.getfixturevalue("empty_redis_url")
    server = request.getfixturevalue("redis_service")
    yield Place(tmp_path, url, server)
    server.start()


def stored(**changes: Any) -> Stored:
    values: dict[str, Any] = {"text": "the answer", "deployment": "small", "finish_reason": "stop", "run": "run-a"}
    values |= {"input_tokens": 3, "output_tokens": 4, "cost_nano": 50, "created_at": int(time.time())}
    return Stored(**{**values, **changes})


def entry(key: bytes, value: bytes, **changes: Any) -> Entry:
    values: dict[str, Any] = {"team": "support", "created_at": int(time.time()), "ttl": 3600}
    return Entry(key, value, **{**values, **changes})
