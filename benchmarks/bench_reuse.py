"""The response store beside the bare database under it: look-ups, writes and leases by the hundred, on both backends.

CPU of this process per key, in microseconds, medians over rounds in which store and peer take turns. The peers move the
same bytes and nothing else: ``MGET`` and a pipeline of ``SET`` through redis-py's asyncio client, and ``SELECT … IN``
and ``executemany`` through ``sqlite3``. The store opens, checks or seals every answer on top, and frees its lease. Ends
with the memory that a million look-ups have taken.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis.asyncio
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.redis_server import redis_server

from airflow_ai_provider.core.cache import ResponseStore, Stored, open_responses
from airflow_ai_provider.core.cache.backend import Codec
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring, fresh_keyring

_BATCH = 250
_BATCHES = 40
_ROUNDS = 9
_DAY = 86400
_LOOK_UPS = 1_000_000
_ANSWER = Stored(
    text="The card was charged twice on [DATE_4K2QM]; the second charge goes back within five days. " * 3,
    deployment="small",
    finish_reason="stop",
    input_tokens=420,
    output_tokens=85,
    cost_nano=114_000,
    run="0123456789abcdef",
    created_at=int(time.time()),
    team="support",
    tokens=("[DATE_4K2QM]", "[EMAIL_7K2QM]", "[PERSON_2XQ4A]"),
    scope='["team","support"]',
)

Work = Callable[[Sequence[bytes]], Awaitable[object]]


@dataclass(frozen=True)
class Peer:
    """The bare database."""

    get: Work
    put: Work


def main() -> None:
    keyring = Keyring.from_mapping(fresh_keyring())
    sealed = Codec(keyring).seal(bytes(32), _ANSWER)
    assert sealed is not None
    print(
        f"answers of {len(sealed)} bytes, {_BATCH} a time; CPU per key in µs, and how often that of the bare database"
    )
    print(f"{'':<26}{'store':>8}{'bare':>8}{'ratio':>8}{'keys/s of CPU':>16}")
    with tempfile.TemporaryDirectory() as folder, redis_server() as server:
        for url in (None, server.url):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_measure(Path(folder), url, keyring, sealed))


async def _measure(folder: Path, url: str | None, keyring: Keyring, sealed: bytes) -> None:
    store = ResponseStore(open_responses(url, folder), keyring)
    peer = _on_redis(url, sealed) if url else _on_sqlite(folder / "bare.db", sealed)
    name = "Redis" if url else "SQLite"

    async def find(keys: Sequence[bytes]) -> None:
        assert all(await store.find_many(keys, run="another", ttl=_DAY))

    async def miss(keys: Sequence[bytes]) -> None:
        assert not any(await store.find_many([key[::-1] for key in keys], run="another", ttl=_DAY))

    async def keep(keys: Sequence[bytes]) -> None:
        await asyncio.gather(*(store.keep(key, _ANSWER, ttl=_DAY) for key in keys))

    async def lease(keys: Sequence[bytes]) -> None:
        claimed = [key[::-1] for key in keys]
        assert all(await store.claim_many(claimed, run="another", ttl=_DAY))
        await asyncio.gather(*(store.release(key) for key in claimed))

    for what, ours, bare in (
        ("keep", keep, peer.put),
        ("found", find, peer.get),
        ("not found", miss, peer.get),
        ("claim and release", lease, None),
    ):
        await _compare(f"{name}, {what}", ours, bare)
    grown = await _memory(store)
    print(
        f"{name + ', memory':<26}{grown / 2**20:>8.1f} MiB more after {_LOOK_UPS:,} look-ups than after a tenth of them"
    )
    await store.close()


async def _compare(name: str, ours: Work, bare: Work | None) -> None:
    store, peer = [], []
    for round_number in range(_ROUNDS):
        batches = list(_batches(round_number if name.endswith("keep") else 0))
        if bare is not None:
            peer.append(await _cpu(bare, batches))
        store.append(await _cpu(ours, batches))
    us = statistics.median(store)
    line = f"{name:<26}{us:>8.1f}"
    if peer:
        plain = statistics.median(peer)
        line += f"{plain:>8.1f}{us / plain:>8.1f}"
    print(f"{line:<50}{1e6 / us:>16,.0f}")


async def _cpu(work: Work, batches: Sequence[Sequence[bytes]]) -> float:
    """Microseconds per key."""
    started = time.process_time()
    for batch in batches:
        await work(batch)
    return (time.process_time() - started) * 1e6 / (_BATCH * len(batches))


def _batches(number: int) -> Iterator[list[bytes]]:
    """Keys as hashes are: in no order. Those of one number are always the same."""
    random_bytes = _stream(number)
    for start in range(0, _BATCHES * _BATCH * 32, _BATCH * 32):
        yield [random_bytes[at : at + 32] for at in range(start, start + _BATCH * 32, 32)]


def _stream(number: int) -> bytes:
    return hashlib.shake_128(number.to_bytes(4, "big")).digest(_BATCHES * _BATCH * 32)


def _on_redis(url: str, sealed: bytes) -> Peer:
    client = redis.asyncio.Redis.from_url(url)

    async def put(keys: Sequence[bytes]) -> None:
        pipeline = client.pipeline(transaction=False)
        for key in keys:
            pipeline.set(b"bare:" + key, sealed, ex=_DAY)
        await pipeline.execute()

    async def get(keys: Sequence[bytes]) -> None:
        assert all(await client.mget([b"bare:" + key for key in keys]))

    return Peer(get, put)


def _on_sqlite(path: Path, sealed: bytes) -> Peer:
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        db.execute(f"PRAGMA {pragma}")
    db.execute("CREATE TABLE bare (key BLOB PRIMARY KEY, value BLOB)")
    query = f"SELECT key, value FROM bare WHERE key IN ({','.join('?' * _BATCH)})"

    async def put(keys: Sequence[bytes]) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT OR REPLACE INTO bare VALUES (?, ?)", [(key, sealed) for key in keys])
        db.execute("COMMIT")

    async def get(keys: Sequence[bytes]) -> None:
        assert len(db.execute(query, keys).fetchall()) == _BATCH

    return Peer(get, put)


async def _memory(store: ResponseStore) -> int:
    batches = list(_batches(0))
    resident = 0
    for number in range(_LOOK_UPS // _BATCH):
        await store.find_many(batches[number % len(batches)], run="another", ttl=_DAY)
        if number == _LOOK_UPS // _BATCH // 10:
            resident = _resident()
    return _resident() - resident


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
