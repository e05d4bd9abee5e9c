r"""A process that needs answers and shares them: asks what nobody else is asking, waits for the rest.

    python -m support.cache_process \
        '{"home": …, "url": … or null, "keys": 500, "seed": 1, "log": …, "hold": false, "of": 4}'

Writes a line for each key it asks: when it began and ended (ns of the system's monotonic clock), and what came of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path

from airflow_ai_provider.core.cache import ResponseStore, Stored, open_responses, redis_backend, sqlite_backend, store
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring

OWNER_SECONDS = 2.0
"""Of the workers and whoever tests them, so that a dead one is soon believed dead."""
HOUR = 3600


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def shorten_lives() -> None:
    store.OWNER_SECONDS = sqlite_backend.OWNER_SECONDS = OWNER_SECONDS  # type: ignore[attr-defined, misc]
    redis_backend._OWNER_MS = int(OWNER_SECONDS * 1000)


def open_store(home: Path, url: str | None) -> ResponseStore:
    return ResponseStore(open_responses(url, home), Keyring.open(home / "keyring.json"))


class Worker:
    def __init__(self, opened: ResponseStore, name: str, seed: int, log: int) -> None:
        self._store, self._name, self._rng, self._log = opened, name, random.Random(seed), log
        self._at_once = asyncio.Semaphore(20)
        """Nobody takes all keys before the others have looked."""

    async def answer(self, number: int) -> str:
        """The answer to one key, from whoever gave it."""
        async with self._at_once:
            return await self._answer(number)

    async def _answer(self, number: int) -> str:
        key = key_of(number)
        while True:
            (found,) = await self._store.find_many([key], run=self._name, ttl=HOUR)
            if found is None and not await self._store.claim(key, run=self._name, ttl=HOUR):
                found = await self._store.answer_of_another(key, run=self._name, ttl=HOUR)
            elif found is None:
                found = await self._ask(number, key)
            if found is not None:
                return found.text

    async def _ask(self, number: int, key: bytes) -> Stored | None:
        """As a vendor would: it takes a while, and a third of the calls fail."""
        began = time.monotonic_ns()
        await asyncio.sleep(self._rng.random() * 0.02)
        answer = Stored(f"{number} by {self._name}", "small", "stop", 1, 1, 1, self._name, int(time.time()))
        fails = self._rng.random() < 1 / 3
        ended = time.monotonic_ns()
        # The line before the lease is given up: whoever has it next begins later.
        line = {"key": number, "who": self._name, "began": began, "ended": ended, "kept": not fails}
        os.write(self._log, json.dumps(line).encode() + b"\n")
        if fails:
            await self._store.release(key)
            return None
        await self._store.keep(key, answer, ttl=HOUR)
        return answer


async def main(home: str, url: str | None, keys: int, seed: int, log: str, hold: bool, of: int) -> None:
    opened = open_store(Path(home), url)
    numbers = list(range(keys))
    if hold:
        print(json.dumps(await opened.claim_many([key_of(n) for n in numbers], run="holder", ttl=HOUR)), flush=True)
        await asyncio.sleep(600)
    random.Random(seed).shuffle(numbers)
    (Path(home) / f"ready-{seed}").touch()
    while len(list(Path(home).glob("ready-*"))) < of:  # noqa: ASYNC110, ASYNC240 - the others are processes
        await asyncio.sleep(0.005)
    worker = Worker(opened, f"worker-{seed}", seed, os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    answers = await asyncio.gather(*(worker.answer(number) for number in numbers))
    print(json.dumps(dict(zip(numbers, answers, strict=True))), flush=True)
    await opened.close()


if __name__ == "__main__":
    shorten_lives()
    asyncio.run(main(**json.loads(sys.argv[1])))
