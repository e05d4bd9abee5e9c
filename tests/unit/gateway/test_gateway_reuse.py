"""The response store: one behaviour suite, SQLite and a real Redis through it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from services import RedisServer

from airflow_ai_provider.errors import StoreUnavailable
from airflow_ai_provider.gateway import reuse
from airflow_ai_provider.gateway.reuse import ResponseStore, SqliteResponses, Stored, open_responses
from airflow_ai_provider.privacy.keyring import Keyring

KEY, OTHER = b"k" * 32, b"o" * 32
HOUR = 3600


class Place:
    """Where one kind of store keeps its bytes, to look at and to meddle with from outside."""

    def __init__(self, folder: Path, url: str | None, server: RedisServer | None) -> None:
        self.folder, self.url, self.server = folder, url, server
        self.keyring = Keyring.open(folder / "keyring.json")
        self._stores: list[ResponseStore] = []

    def open(self, keyring: Keyring | None = None) -> ResponseStore:
        return ResponseStore(open_responses(self.url, self.folder), keyring or self.keyring)

    def raw(self) -> dict[bytes, bytes]:
        """Every entry as it lies in the store, by key."""
        if self.url:
            with redis.Redis.from_url(self.url) as client:
                return {key.rpartition(b":")[2]: client.get(key) for key in client.scan_iter()}  # type: ignore[misc]
        with sqlite3.connect(self.folder / "responses.db") as db:
            return dict(db.execute("SELECT key, value FROM responses").fetchall())

    def overwrite(self, key: bytes, value: bytes) -> None:
        if self.url:
            with redis.Redis.from_url(self.url) as client:
                client.set(b"ai:response:" + key, value)
        else:
            with sqlite3.connect(self.folder / "responses.db") as db:
                db.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, 9999999999)", (key, value))

    def seconds_to_live(self, key: bytes) -> float:
        if self.url:
            with redis.Redis.from_url(self.url) as client:
                return float(client.ttl(b"ai:response:" + key))  # type: ignore[arg-type]
        with sqlite3.connect(self.folder / "responses.db") as db:
            (expires,) = db.execute("SELECT expires_at FROM responses WHERE key = ?", (key,)).fetchone()
        return float(expires) - reuse.time.time()

    def take_away(self) -> None:
        if self.server:
            self.server.stop()
        else:
            with sqlite3.connect(self.folder / "responses.db") as db:
                db.execute("DROP TABLE responses")

    def bring_back(self) -> None:
        if self.server:
            self.server.start()
        else:
            SqliteResponses(self.folder / "responses.db")


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        yield Place(tmp_path, None, None)
        return
    url = request.getfixturevalue("empty_redis_url")
    server = request.getfixturevalue("redis_service")
    yield Place(tmp_path, url, server)
    server.start()


def stored(**changes: Any) -> Stored:
    values: dict[str, Any] = {"text": "the answer", "deployment": "small", "finish_reason": "stop", "run": "run-a"}
    values |= {"input_tokens": 3, "output_tokens": 4, "cost_nano": 50, "created_at": int(reuse.time.time())}
    return Stored(**{**values, **changes})


async def found(store: ResponseStore, *keys: bytes, run: str = "run-a", ttl: int = HOUR) -> Stored | None:
    return await store.find(keys or [KEY], run=run, ttl=ttl)


async def test_an_answer_is_found_by_its_key_by_whoever_opens_the_store_next(place: Place) -> None:
    first = place.open()
    assert await found(first) is None
    answer = stored(text="答案 🙂\n")
    await first.keep(KEY, answer, ttl=HOUR)
    assert await found(first) == answer
    assert await found(first, OTHER) is None
    await first.close()
    second = place.open()
    assert await found(second) == answer
    await second.close()


async def test_the_first_key_that_has_a_good_answer_counts(place: Place) -> None:
    store = place.open()
    await store.keep(OTHER, stored(deployment="spare"), ttl=HOUR)
    hit = await found(store, KEY, OTHER)
    assert hit is not None
    assert hit.deployment == "spare"
    await store.keep(KEY, stored(), ttl=HOUR)
    hit = await found(store, KEY, OTHER)
    assert hit is not None
    assert hit.deployment == "small"
    await store.close()


async def test_a_later_answer_takes_the_place_of_an_earlier_one(place: Place) -> None:
    store = place.open()
    await store.keep(KEY, stored(text="old"), ttl=HOUR)
    await store.keep(KEY, stored(text="new"), ttl=HOUR)
    hit = await found(store)
    assert hit is not None
    assert hit.text == "new"
    await store.close()


async def test_hundreds_of_answers_go_in_and_come_out_together(place: Place) -> None:
    store = place.open()
    keys = [bytes([n % 256, n // 256]) * 16 for n in range(1200)]
    await asyncio.gather(*(store.keep(key, stored(text=str(n)), ttl=HOUR) for n, key in enumerate(keys)))
    hits = await asyncio.gather(*(found(store, key) for key in keys))
    assert [hit.text for hit in hits if hit] == [str(n) for n in range(1200)]
    await store.close()


async def test_others_are_answered_until_the_ttl_is_over_and_the_same_run_after_it(place: Place) -> None:
    store = place.open()
    await store.keep(KEY, stored(created_at=int(reuse.time.time()) - 100), ttl=HOUR)
    assert await found(store, run="run-b", ttl=101 + HOUR) is not None
    assert await found(store, run="run-b", ttl=100) is None
    assert await found(store, run="run-b", ttl=0) is None
    assert await found(store, run="run-a", ttl=0) is not None
    await store.close()


@pytest.mark.parametrize(("ttl", "kept"), [(0, reuse.RESUME_SECONDS), (10 * 86400, 10 * 86400)])
async def test_an_answer_is_kept_for_its_ttl_and_long_enough_for_a_retry(place: Place, ttl: int, kept: int) -> None:
    store = place.open()
    await store.keep(KEY, stored(), ttl=ttl)
    assert place.seconds_to_live(KEY) == pytest.approx(kept, abs=5)
    await store.close()


def flipped(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


MEDDLING: dict[str, Callable[[bytes], bytes]] = {
    "a bit flipped": flipped,
    "the first byte": lambda value: b"\xff" + value[1:],
    "cut short": lambda value: value[: len(value) // 2],
    "nothing": lambda value: b"",
    "text": lambda value: b'{"text": "forged"}',
}


@pytest.mark.parametrize("how", MEDDLING)
async def test_an_entry_that_was_meddled_with_is_a_miss(place: Place, how: str) -> None:
    store = place.open()
    await store.keep(KEY, stored(), ttl=HOUR)
    place.overwrite(KEY, MEDDLING[how](place.raw()[KEY]))
    assert await found(store) is None
    await store.keep(KEY, stored(text="again"), ttl=HOUR)
    assert await found(store) is not None
    await store.close()


async def test_an_entry_moved_to_another_key_is_a_miss(place: Place) -> None:
    store = place.open()
    await store.keep(KEY, stored(), ttl=HOUR)
    place.overwrite(OTHER, place.raw()[KEY])
    assert await found(store, OTHER) is None
    await store.close()


async def test_an_entry_under_a_key_of_another_keyring_is_a_miss(place: Place, tmp_path: Path) -> None:
    store = place.open(Keyring.open(tmp_path / "foreign" / "keyring.json"))
    await store.keep(KEY, stored(), ttl=HOUR)
    await store.close()
    mine = place.open()
    assert await found(mine) is None
    await mine.close()


async def test_nothing_of_an_answer_can_be_read_in_the_store(place: Place) -> None:
    store = place.open()
    await store.keep(KEY, stored(text="the answer about a person", deployment="deployment-x", run="run-x"), ttl=HOUR)
    bytes_of_it = b"".join(key + value for key, value in place.raw().items())
    if place.url is None:
        bytes_of_it += b"".join(path.read_bytes() for path in place.folder.glob("responses.db*"))
    for readable in (b"answer", b"person", b"deployment", b"run-x", b"small"):
        assert readable not in bytes_of_it
    await store.close()


async def test_a_store_that_goes_away_costs_reuse_and_says_so_once(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    store = place.open()
    await store.keep(KEY, stored(), ttl=HOUR)
    place.take_away()
    with caplog.at_level(logging.WARNING):
        assert await found(store) is None
        await store.keep(OTHER, stored(), ttl=HOUR)
        assert await found(store, OTHER) is None
    complaints = [record for record in caplog.records if record.name == reuse.__name__]
    assert ["answered without reuse" in record.getMessage() for record in complaints] == [True]
    place.bring_back()
    await store.keep(KEY, stored(text="back"), ttl=HOUR)
    hit = await found(store)
    assert hit is not None
    assert hit.text == "back"
    await store.close()


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=r"response store .*responses\.db"):
        open_responses(None, tmp_path / "file")


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    SqliteResponses(tmp_path / "responses.db")
    assert (tmp_path / "responses.db").stat().st_mode & 0o077 == 0


async def test_what_is_out_of_date_is_not_found_and_is_gone_at_the_next_opening(tmp_path: Path) -> None:
    backend = SqliteResponses(tmp_path / "responses.db")
    await backend.put_many({KEY: b"v"}, -10)
    assert await backend.get_many([KEY]) == [None]
    await backend.close()
    SqliteResponses(tmp_path / "responses.db")
    with sqlite3.connect(tmp_path / "responses.db") as db:
        assert db.execute("SELECT count(*) FROM responses").fetchone() == (0,)
