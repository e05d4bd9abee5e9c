"""Leases among real processes: raced, killed, and with Redis gone and back in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support import cache_process
from support.redis_server import RedisServer

from airflow_ai_provider.core.privacy.crypto.keyring import Keyring

KEYS = 500


class Crew:
    """Worker processes of one store."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.folder, self.url = folder, url
        self.log = folder / "asked.jsonl"
        self._started: list[subprocess.Popen[str]] = []
        Keyring.open(folder / "keyring.json")

    def start(self, seed: int, *, keys: int = KEYS, hold: bool = False, of: int = 1) -> subprocess.Popen[str]:
        """One of ``of`` workers that begin together."""
        given = {"home": str(self.folder), "url": self.url, "keys": keys, "seed": seed, "log": str(self.log), "of": of}
        process = subprocess.Popen(
            [sys.executable, "-m", "support.cache_process", json.dumps({**given, "hold": hold})],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


@pytest.fixture(params=["sqlite", "redis"])
def crew(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Crew]:
    made = Crew(tmp_path, request.getfixturevalue("empty_redis_url") if request.param == "redis" else None)
    yield made
    made.end()


def answers_of(process: subprocess.Popen[str]) -> dict[str, str]:
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    answers: dict[str, str] = json.loads(said)
    return answers


@pytest.mark.timeout(120)
def test_each_key_is_asked_by_one_process_at_a_time_and_paid_once(crew: Crew) -> None:
    workers = [crew.start(seed, of=4) for seed in range(4)]
    first, *others = [answers_of(worker) for worker in workers]
    assert len(first) == KEYS
    assert all(other == first for other in others)
    by_key: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in crew.asked():
        by_key[line["key"]].append(line)
    assert len(by_key) == KEYS
    for lines in by_key.values():
        lines.sort(key=lambda line: line["began"])
        assert [line["kept"] for line in lines] == [*[False] * (len(lines) - 1), True]
        assert all(one["ended"] <= two["began"] for one, two in pairwise(lines))
    assert len({line["who"] for line in crew.asked()}) == 4, "nobody did it alone"


@pytest.mark.timeout(60)
def test_the_keys_of_a_killed_holder_come_free(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own retry is what usually wants them. While it lives it keeps them, however long it takes."""
    holder = crew.start(0, keys=50, hold=True)
    assert holder.stdout is not None
    assert json.loads(holder.stdout.readline()) == [True] * 50

    async def retry() -> int:
        opened = cache_process.open_store(crew.folder, crew.url)
        keys = [cache_process.key_of(n) for n in range(50)]
        looked, kill_at = 0, time.monotonic() + 1.5 * cache_process.OWNER_SECONDS
        while not any(claimed := await opened.claim_many(keys, run="retry", ttl=60)):
            looked += 1
            if time.monotonic() > kill_at and holder.poll() is None:
                looked = 0
                holder.kill()
                holder.wait()
            await asyncio.sleep(0.1)
        assert all(claimed)
        await opened.close()
        return looked

    with monkeypatch.context() as patched:
        for module, name in ((cache_process.store, "OWNER_SECONDS"), (cache_process.sqlite_backend, "OWNER_SECONDS")):
            patched.setattr(module, name, cache_process.OWNER_SECONDS)
        patched.setattr(cache_process.redis_backend, "_OWNER_MS", int(cache_process.OWNER_SECONDS * 1000))
        looked = asyncio.run(retry())
    assert holder.poll() is not None, "it was not robbed while it lived"
    assert looked > 0, "nor at the moment that it died"


@pytest.mark.timeout(120)
def test_redis_gone_and_back_in_the_middle_leaves_nobody_waiting(
    tmp_path: Path, redis_service: RedisServer, empty_redis_url: str
) -> None:
    crew = Crew(tmp_path, empty_redis_url)
    workers = [crew.start(seed, keys=600) for seed in range(4)]
    try:
        until_asked(crew, 100, workers)
        redis_service.crash()
        until_asked(crew, 300, workers)
        redis_service.start()
        answers = [answers_of(worker) for worker in workers]
    finally:
        redis_service.start()
        crew.end()
    assert all(len(each) == 600 for each in answers)
    after = {line["key"] for line in crew.asked() if line["kept"]}
    assert after == set(range(600))


def until_asked(crew: Crew, number: int, workers: list[subprocess.Popen[str]]) -> None:
    while len(crew.asked()) < number:
        assert any(worker.poll() is None for worker in workers)
        time.sleep(0.005)
