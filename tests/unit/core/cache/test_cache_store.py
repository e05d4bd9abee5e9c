"""The response store: one behaviour suite, SQLite and a real Redis through it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.cache import Place, entry, stored
from support.cache import place as _place

from airflow_ai_provider.core.cache import ResponseStore, Stored, open_responses, store
from airflow_ai_provider.core.cache.backend import MOST_BYTES, Codec, heading_of
from airflow_ai_provider.core.cache.sqlite_backend import SqliteResponses
from airflow_ai_provider.core.privacy.crypto.cipher import Sealer
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring, fresh_keyring, with_fresh_key
from airflow_ai_provider.errors import StoreUnavailable

KEY, OTHER = b"k" * 32, b"o" * 32
HOUR = 3600
FULL: dict[str, Any] = {
    "team": "support",
    "tokens": ("[EMAIL_7K2QM]", "[PERSON_4K2QM]"),
    "scope": '["team","support"]',
    "tool_calls": ({"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}},),
    "cached_input_tokens": 2,
}


place = _place


async def found(store: ResponseStore, key: bytes = KEY, run: str = "run-a", ttl: int = HOUR) -> Stored | None:
    return (await store.find_many([key], run=run, ttl=ttl))[0]


async def test_an_answer_is_found_by_its_key_by_whoever_opens_the_store_next(place: Place) -> None:
    first = place.open()
    assert await found(first) is None
    answer = stored(text="答案 🙂\n", **FULL)
    await first.keep(KEY, answer, ttl=HOUR)
    assert await found(first) == answer
    assert await found(first, OTHER) is None
    await first.close()
    second = place.open()
    assert await found(second) == answer
    await second.close()


async def test_the_first_key_that_has_a_good_answer_counts(place: Place) -> None:
    opened = place.open()
    await opened.keep(OTHER, stored(deployment="spare"), ttl=HOUR)
    hit = await opened.find([KEY, OTHER], run="run-a", ttl=HOUR)
    assert hit is not None
    assert hit.deployment == "spare"
    await opened.keep(KEY, stored(), ttl=HOUR)
    hit = await opened.find([KEY, OTHER], run="run-a", ttl=HOUR)
    assert hit is not None
    assert hit.deployment == "small"
    await opened.close()


async def test_a_later_answer_takes_the_place_of_an_earlier_one(place: Place) -> None:
    opened = place.open()
    await opened.keep(KEY, stored(text="old"), ttl=HOUR)
    await opened.keep(KEY, stored(text="new"), ttl=HOUR)
    hit = await found(opened)
    assert hit is not None
    assert hit.text == "new"
    await opened.close()


async def test_hundreds_of_answers_go_in_and_come_out_together_in_the_order_that_was_asked(place: Place) -> None:
    opened = place.open()
    keys = [bytes([n % 256, n // 256]) * 16 for n in range(1200)]
    await asyncio.gather(*(opened.keep(key, stored(text=str(n)), ttl=HOUR) for n, key in enumerate(keys)))
    asked = [*keys[::-1], OTHER, KEY, keys[5]]
    hits = await opened.find_many(asked, run="run-a", ttl=HOUR)
    assert [hit and hit.text for hit in hits] == [*map(str, range(1199, -1, -1)), None, None, "5"]
    assert await opened.find_many([], run="run-a", ttl=HOUR) == []
    await opened.close()


async def test_others_are_answered_until_the_ttl_is_over_and_the_same_run_after_it(place: Place) -> None:
    opened = place.open()
    await opened.keep(KEY, stored(created_at=int(time.time()) - 100), ttl=HOUR)
    assert await found(opened, run="run-b", ttl=101 + HOUR) is not None
    assert await found(opened, run="run-b", ttl=100) is None
    assert await found(opened, run="run-b", ttl=0) is None
    assert await found(opened, run="run-a", ttl=0) is not None
    await opened.close()


@pytest.mark.parametrize(("ttl", "kept"), [(0, store.RESUME_SECONDS), (10 * 86400, 10 * 86400)])
async def test_an_answer_is_kept_for_its_ttl_and_long_enough_for_a_retry(place: Place, ttl: int, kept: int) -> None:
    opened = place.open()
    began = time.monotonic()
    await opened.keep(KEY, stored(), ttl=ttl)
    left = place.seconds_to_live(KEY)
    assert kept - (time.monotonic() - began) - 2 <= left <= kept + 2, "whole seconds, of two clocks"
    await opened.close()


async def test_what_has_expired_is_not_found(place: Place) -> None:
    backend = place.backend()
    await backend.finish([entry(KEY, b"v"), entry(OTHER, b"v")], (), "me")
    place.expire(KEY)
    assert await backend.get_many([KEY, OTHER]) == [None, b"v"]
    await backend.close()


# What is no answer of ours is a miss


def flipped(value: bytes, at: int) -> bytes:
    return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]


MEDDLING: dict[str, Callable[[bytes], bytes]] = {
    "a bit flipped in the text": lambda value: flipped(value, -20),
    "a bit flipped in the tag": lambda value: value[:-1] + bytes([value[-1] ^ 1]),
    "another age": lambda value: flipped(value, 5),
    "another team": lambda value: flipped(value, 12),
    "another length of the team": lambda value: flipped(value, 10),
    "another key id": lambda value: flipped(value, 22),
    "the first byte": lambda value: b"\xff" + value[1:],
    "cut short": lambda value: value[: len(value) // 2],
    "the heading alone": lambda value: value[:18],
    "half of the heading": lambda value: value[:7],
    "one byte": lambda value: value[:1],
    "nothing": lambda value: b"",
    "text": lambda value: b'{"text": "forged"}',
    "absurdly large": lambda value: value[:18] + bytes(MOST_BYTES),
}


@pytest.mark.parametrize("how", MEDDLING)
async def test_an_entry_that_was_meddled_with_is_a_miss(place: Place, how: str) -> None:
    opened = place.open()
    await opened.keep(KEY, stored(**FULL), ttl=HOUR)
    sealed = place.raw()[KEY]
    place.overwrite(KEY, MEDDLING[how](sealed))
    assert await found(opened) is None
    place.overwrite(KEY, sealed)
    assert await found(opened) is not None
    await opened.close()


async def test_an_entry_moved_to_another_key_is_a_miss(place: Place) -> None:
    opened = place.open()
    await opened.keep(KEY, stored(), ttl=HOUR)
    place.overwrite(OTHER, place.raw()[KEY])
    assert await found(opened, OTHER) is None
    await opened.close()


ARRAY = [2, "text", "small", "stop", 3, 4, 50, "run-a", 0, 0, "", [], "", []]
FOREIGN: dict[str, Any] = {
    "another format": [3, *ARRAY[1:]],
    "a field more": [*ARRAY, 1],
    "a field less": ARRAY[:-1],
    "a number for the text": [2, 5, *ARRAY[2:]],
    "nothing for the text": [2, None, *ARRAY[2:]],
    "a fraction for tokens": [*ARRAY[:4], 3.5, *ARRAY[5:]],
    "a flag for tokens": [*ARRAY[:4], True, *ARRAY[5:]],
    "a number for a masking token": [*ARRAY[:11], [1], *ARRAY[12:]],
    "a text for a tool call": [*ARRAY[:13], ["call"]],
    "an object": {"text": "text", "deployment": "small"},
    "a text": "text",
    "an empty list": [],
    "null": None,
}


def sealed(keyring: Keyring, key: bytes, payload: bytes) -> bytes:
    heading = b"A" + bytes(8) + bytes(2)
    return heading + Sealer(keyring, "responses").seal(payload, heading + key)


async def test_the_form_that_the_next_tests_change_is_read(place: Place) -> None:
    opened = place.open()
    place.overwrite(KEY, sealed(place.keyring, KEY, orjson.dumps(ARRAY)))
    assert await found(opened) == stored(text="text", created_at=0)
    await opened.close()


@pytest.mark.parametrize("what", FOREIGN)
async def test_an_authentic_entry_of_another_form_is_a_miss(place: Place, what: str) -> None:
    opened = place.open()
    place.overwrite(KEY, sealed(place.keyring, KEY, orjson.dumps(FOREIGN[what])))
    assert await found(opened) is None
    place.overwrite(KEY, sealed(place.keyring, KEY, b"[2, no json"))
    assert await found(opened) is None
    await opened.close()


async def test_what_another_program_keeps_under_our_name_is_a_miss(place: Place) -> None:
    if place.url is None:
        pytest.skip("SQLite has one type of value here")
    import redis

    with redis.Redis.from_url(place.url) as client:
        client.rpush(b"ai:response:" + KEY, "a", "list")
    opened = place.open()
    assert await found(opened) is None
    assert await opened.claim(KEY, run="run-a", ttl=HOUR)
    await opened.keep(KEY, stored(), ttl=HOUR)
    assert await found(opened) is not None
    await opened.close()


async def test_an_entry_under_a_key_of_another_keyring_is_a_miss(place: Place, tmp_path: Path) -> None:
    foreign = place.open(Keyring.open(tmp_path / "foreign" / "keyring.json"))
    await foreign.keep(KEY, stored(), ttl=HOUR)
    await foreign.close()
    mine = place.open()
    assert await found(mine) is None
    await mine.close()


async def test_an_entry_under_another_secret_of_the_same_name_is_a_miss(place: Place) -> None:
    content = fresh_keyring()
    swapped = {**content, "keys": {content["active"]: fresh_keyring()["keys"].popitem()[1]}}
    first, second = place.open(Keyring.from_mapping(content)), place.open(Keyring.from_mapping(swapped))
    await first.keep(KEY, stored(), ttl=HOUR)
    assert await found(first) is not None
    assert await found(second) is None
    await first.close()
    await second.close()


async def test_a_rotated_key_still_opens_and_a_removed_one_is_a_miss(place: Place) -> None:
    before = fresh_keyring()
    after = with_fresh_key(before)
    removed = {**after, "keys": {after["active"]: after["keys"][after["active"]]}}
    old = place.open(Keyring.from_mapping(before))
    await old.keep(KEY, stored(), ttl=HOUR)
    await old.close()
    for content, is_found in ((after, True), (removed, False)):
        opened = place.open(Keyring.from_mapping(content))
        assert (await found(opened) is not None) == is_found
        await opened.close()


async def test_an_absurdly_large_answer_is_not_stored(place: Place) -> None:
    opened = place.open()
    assert await opened.claim(KEY, run="run-a", ttl=HOUR)
    await opened.keep(KEY, stored(text="x" * MOST_BYTES), ttl=HOUR)
    await opened.keep(OTHER, stored(text="x" * (MOST_BYTES - 1000)), ttl=HOUR)
    assert place.raw().keys() == {OTHER}
    assert place.leases() == set()
    assert await found(opened, OTHER) is not None
    await opened.close()


async def test_an_answer_that_is_no_text_is_not_stored_and_holds_up_nobody(place: Place) -> None:
    opened = place.open()
    assert await opened.claim(KEY, run="run-a", ttl=HOUR)
    await opened.keep(KEY, stored(text="half of a pair: \ud800"), ttl=HOUR)
    assert (place.raw(), place.leases()) == ({}, set())
    await opened.close()


async def test_nothing_of_an_answer_can_be_read_in_the_store(place: Place) -> None:
    opened = place.open()
    secret = stored(
        text="the answer about a person", deployment="deployment-x", run="run-x", tokens=("[EMAIL_7K2QM]",), team="t1"
    )
    await opened.keep(KEY, secret, ttl=HOUR)
    bytes_of_it = b"".join(key + value for key, value in place.raw().items())
    if place.url is None:
        bytes_of_it += b"".join(path.read_bytes() for path in place.folder.glob("responses.db*"))
    for readable in (b"answer", b"person", b"deployment", b"run-x", b"small", b"EMAIL", b"7K2QM"):
        assert readable not in bytes_of_it
    await opened.close()


def test_team_and_age_are_readable_without_a_key() -> None:
    value = Codec(Keyring.from_mapping(fresh_keyring())).seal(KEY, stored(team="Zürich", created_at=1_700_000_000))
    assert value is not None
    assert heading_of(value) == ("Zürich", 1_700_000_000)
    assert heading_of(value[:18]) == ("Zürich", 1_700_000_000)
    assert heading_of(value[:17]) is None
    assert heading_of(b"\x01" + value[1:]) is None


# A store that is away


async def test_a_store_that_goes_away_costs_reuse_and_says_so_once_each_time(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_SLOW_SECONDS", 1e9)  # it is not left alone for long, however busy this machine is
    opened = place.open()
    await opened.keep(KEY, stored(), ttl=HOUR)
    for _ in range(2):
        caplog.clear()
        place.take_away()
        with caplog.at_level(logging.WARNING):
            assert await found(opened) is None
            await opened.keep(OTHER, stored(), ttl=HOUR)
            assert await found(opened, OTHER) is None
            assert await opened.claim(KEY, run="run-a", ttl=HOUR), "whoever cannot ask others asks the vendor"
            assert await opened.answer_of_another(OTHER, run="run-a", ttl=HOUR) is None
            await opened.release(KEY)
        complaints = [record for record in caplog.records if record.name == store.__name__]
        assert ["answered without reuse" in record.getMessage() for record in complaints] == [True]
        place.bring_back()
        await opened.keep(KEY, stored(text="back"), ttl=HOUR)
        hit = await found(opened)
        assert hit is not None
        assert hit.text == "back"
    await opened.close()


class Slow:
    """A backend that takes its time to fail. Only what the test needs of one."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.asked = clock, 0

    async def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        self.asked += 1
        self.clock.now += 5
        raise StoreUnavailable("response store: no reply")

    async def close(self) -> None: ...


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


async def test_a_store_that_is_slow_to_fail_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(store, "time", clock)
    backend: Any = Slow(clock)
    opened = ResponseStore(backend, Keyring.open(tmp_path / "keyring.json"))
    for _ in range(10):
        assert await found(opened) is None
    assert backend.asked == 1
    clock.now += 21
    assert await found(opened) is None
    assert backend.asked == 2
    await opened.close()


# The file


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=r"response store .*responses\.db"):
        open_responses(None, tmp_path / "file")


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    backend = SqliteResponses(tmp_path / "responses.db")
    assert (tmp_path / "responses.db").stat().st_mode & 0o077 == 0
    await backend.close()


async def test_what_is_out_of_date_is_gone_at_the_next_opening(tmp_path: Path) -> None:
    backend = SqliteResponses(tmp_path / "responses.db")
    await backend.finish([entry(KEY, b"v", ttl=-10)], (), "me")
    assert await backend.get_many([KEY]) == [None]
    await backend.close()
    await SqliteResponses(tmp_path / "responses.db").close()
    with sqlite3.connect(tmp_path / "responses.db") as db:
        assert db.execute("SELECT count(*) FROM responses").fetchone() == (0,)


async def test_a_file_of_an_older_release_is_emptied_and_used(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "responses.db") as db:
        db.execute(
            "CREATE TABLE responses (key BLOB PRIMARY KEY, value BLOB NOT NULL, expires_at INTEGER NOT NULL) "
            "WITHOUT ROWID"
        )
        db.execute("CREATE INDEX responses_expiry ON responses (expires_at)")
        db.execute("INSERT INTO responses VALUES (?, ?, 9999999999)", (KEY, b"old"))
    openings = [SqliteResponses(tmp_path / "responses.db") for _ in range(3)]
    assert await openings[0].get_many([KEY]) == [None]
    await openings[1].finish([entry(KEY, b"new")], (), "me")
    assert await openings[2].get_many([KEY]) == [b"new"]
    for opened in openings:
        await opened.close()


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_million_look_ups_take_no_memory(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Of what is there and what is not; measured after the first tenth, when pools and caches are filled."""
    opened = Place(tmp_path, request.getfixturevalue("empty_redis_url") if kind == "redis" else None, None).open()
    there = [n.to_bytes(32, "big") for n in range(500)]
    await asyncio.gather(*(opened.keep(key, stored(), ttl=HOUR) for key in there))
    resident = 0
    for round_number in range(1000):
        absent = [(1000 + round_number * 500 + n).to_bytes(32, "big") for n in range(500)]
        hits = await opened.find_many([*there, *absent], run="run-b", ttl=HOUR)
        assert sum(hit is not None for hit in hits) == 500
        if round_number == 100:
            resident = resident_bytes()
    assert resident_bytes() - resident < 4 * 2**20
    await opened.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
