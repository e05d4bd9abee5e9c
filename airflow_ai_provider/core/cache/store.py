"""The response store as the gateway uses it: look-ups, writes and leases travel in groups, and never fail.

A lease says that a process is asking a vendor: equal requests of other processes wait for its answer instead of paying
for their own. Within one process the gateway itself merges equal requests, so a process has one row per key here.

Waiting for what others are asking: one poller for all rows of a process, however many wait.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from airflow_ai_provider.core.cache.backend import (
    MOST_BYTES,
    OWNER_SECONDS,
    Codec,
    Entry,
    ResponseBackend,
    Seen,
    Stored,
    StoreRefused,
)
from airflow_ai_provider.core.errors import StoreUnavailable
from airflow_ai_provider.core.ledger.attempts.group_commit import Batcher
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.core.redis_errors import RETRY_SECONDS

FIRST_SECONDS, MOST_SECONDS = 0.02, 0.25
"""Between two looks at one key: they double from the first to the most."""


def next_pause(pause: float) -> float:
    """Seconds until the next look, after a pause of so many."""
    return min(max(pause * 2, FIRST_SECONDS), MOST_SECONDS)


class _Wait:
    """One row that waits for one key."""

    __slots__ = ("_accept", "due", "ended", "key", "pause")

    def __init__(self, key: bytes, accept: Callable[[bytes], Stored | None], now: float) -> None:
        self.key, self.due, self.pause, self._accept = key, now, 0.0, accept
        self.ended: asyncio.Future[Stored | None] = asyncio.get_running_loop().create_future()

    def saw(self, seen: Seen, now: float) -> None:
        if self.ended.done():
            return  # no row waits any more
        answer = self._accept(seen.value) if seen.value is not None else None
        if answer is not None or not seen.leased:
            self.ended.set_result(answer)
        else:
            self.pause = next_pause(self.pause)
            self.due = now + self.pause


class Waiting:
    """Rows that wait for the answer of a key, or for its lease to end. For one event loop."""

    def __init__(self, look: Callable[[list[bytes]], Awaitable[Sequence[Seen]]]) -> None:
        """``look`` sees how keys are; it raises nothing."""
        self._look = look
        self._waits: list[_Wait] = []
        self._poller: asyncio.Task[None] | None = None

    async def until_ended(self, key: bytes, accept: Callable[[bytes], Stored | None]) -> Stored | None:
        """The first answer that ``accept`` makes of the key's value, or ``None`` where asking ended without one.

        The first look is at once.
        """
        wait = _Wait(key, accept, asyncio.get_running_loop().time())
        self._waits.append(wait)
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            return await wait.ended
        finally:
            wait.ended.cancel()  # where it has not ended, the row was cancelled

    async def close(self) -> None:
        """Release the rows that still wait, without an answer."""
        self._end_all()
        if self._poller is not None:
            await asyncio.wait([self._poller])

    async def _poll(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while self._waits:
                now = clock()
                due = [wait for wait in self._waits if wait.due <= now and not wait.ended.done()]
                if due:
                    for wait, seen in zip(due, await self._look([wait.key for wait in due]), strict=True):
                        wait.saw(seen, now)
                self._waits = [wait for wait in self._waits if not wait.ended.done()]
                if self._waits:
                    await asyncio.sleep(FIRST_SECONDS)
        finally:
            self._end_all()
            self._poller = None

    def _end_all(self) -> None:
        for wait in self._waits:
            if not wait.ended.done():
                wait.ended.set_result(None)
        self._waits = []


log = logging.getLogger(__name__)

RESUME_SECONDS = 7 * 86400
"""How long an answer is kept for the run that paid for it."""
_GROUP = 250
"""Keys that are opened at a stretch, before others have their turn in the event loop."""
_SLOW_SECONDS = 0.5
_REST = 4
"""A store that takes longer than this to fail is left alone for so many times as long."""

_Result = TypeVar("_Result")
_Other = TypeVar("_Other")


@dataclass(slots=True, eq=False)
class _Claim:
    """Keys to be leased together, and the result."""

    keys: Sequence[bytes]
    run: str
    ttl: int
    won: list[bytes] = field(default_factory=list)
    """Leased in the store, and not yet anybody's."""
    dropped: bool = False
    """The rows that wanted them were cancelled."""


@dataclass(frozen=True, slots=True)
class _Finish:
    """A lease to give up, with the answer where there is one."""

    key: bytes
    entry: Entry | None


class ResponseStore:
    """Answers by key, encrypted, over any backend. For one event loop."""

    def __init__(self, backend: ResponseBackend, keyring: Keyring, *, task: str | None = None) -> None:
        """``task`` names the task instance that asks: a try of it does not wait for what a dead one had leased."""
        self._backend = backend
        self._task = task
        self._succeeded = task is None
        self._codec = Codec(keyring)
        self._owner = secrets.token_hex(8)
        self._held: set[bytes] = set()
        self._staying: asyncio.Task[None] | None = None
        self._reads: Batcher[bytes, bytes | None] = Batcher(self._read)
        self._claims: Batcher[_Claim, list[bool]] = Batcher(self._claim_group)
        self._finishes: Batcher[_Finish, None] = Batcher(self._finish_group)
        self._waiting = Waiting(self._look)
        self._away = _Away()

    async def find_many(self, keys: Sequence[bytes], *, run: str, ttl: int) -> list[Stored | None]:
        """The good answer under each key. A store that is away, and an entry that cannot be read, are misses."""
        found: list[Stored | None] = []
        for start in range(0, len(keys), _GROUP):
            group = keys[start : start + _GROUP]
            values = await self._read(group)
            now = time.time()
            found += [self._good(key, value, run, ttl, now) for key, value in zip(group, values, strict=True)]
        return found

    async def find(self, keys: Sequence[bytes], *, run: str, ttl: int) -> Stored | None:
        """The first good answer under ``keys``, for one row; the look-ups of many rows go together."""
        now = time.time()
        for key in keys:
            if (stored := self._good(key, await self._reads.ask(key), run, ttl, now)) is not None:
                return stored
        return None

    async def keep(self, key: bytes, stored: Stored, *, ttl: int) -> None:
        """Return when the answer is stored and its lease is free, or the store has failed (which is logged).

        An answer of more than ``MOST_BYTES`` is not stored.
        """
        value = self._codec.seal(key, stored)
        entry = None
        if value is not None and len(value) <= MOST_BYTES:
            entry = Entry(key, value, stored.team, stored.created_at, max(ttl, RESUME_SECONDS))
        await self._finishes.ask(_Finish(key, entry))

    async def claim(self, key: bytes, *, run: str, ttl: int) -> bool:
        """Whether this process is to ask; see ``claim_many``."""
        return (await self.claim_many([key], run=run, ttl=ttl))[0]

    async def claim_many(self, keys: Sequence[bytes], *, run: str, ttl: int) -> list[bool]:
        """Whether this process is to ask for each of ``keys``: no other is asking, or has kept an answer meanwhile.

        ``True`` obliges to ``keep`` an answer or to ``release`` the key, whatever happens. All are ``True`` where the
        store is away. After ``False``, ``answer_of_another`` has the answer, or waits for it.
        """
        claim = _Claim(keys, run, ttl)
        try:
            return await self._claims.ask(claim)
        except asyncio.CancelledError:
            claim.dropped = True
            self._finish_later(claim.won)
            raise

    async def answer_of_another(self, key: bytes, *, run: str, ttl: int) -> Stored | None:
        """Wait for the answer of the process that has leased ``key``. ``None`` if it ended without one; claim again."""
        return await self._waiting.until_ended(key, lambda value: self._good(key, value, run, ttl, time.time()))

    async def release(self, key: bytes) -> None:
        """What was claimed has ended without an answer."""
        await self._finishes.ask(_Finish(key, None))

    async def close(self) -> None:
        """Write what is still to be written, and free whatever this process has leased."""
        await self._claims.idle()
        await self._finishes.idle()
        await self._waiting.close()
        if self._staying is not None:
            self._staying.cancel()
            await asyncio.wait([self._staying])
        if self._held:
            await self._away.tried(lambda: self._backend.leave(self._owner), without=None)
        await self._backend.close()

    def _good(self, key: bytes, value: bytes | None, run: str, ttl: int, now: float) -> Stored | None:
        if value is None:
            return None
        stored = self._codec.open(key, value)
        return stored if stored is not None and stored.good_for(run=run, ttl=ttl, now=now) else None

    async def _read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return await self._away.tried(lambda: self._backend.get_many(keys), without=[None] * len(keys))

    async def _look(self, keys: list[bytes]) -> Sequence[Seen]:
        return await self._away.tried(lambda: self._backend.look(keys), without=[Seen(None, False)] * len(keys))

    async def _finish_group(self, group: list[_Finish]) -> list[None]:
        entries = [item.entry for item in group if item.entry is not None]
        released = [item.key for item in group if item.entry is None]
        done = await self._away.tried(lambda: self._finished(entries, released), without=False)
        self._held.difference_update(item.key for item in group)
        if not done:
            self._start_anew()
        return [None] * len(group)

    async def _finished(self, entries: Sequence[Entry], released: Sequence[bytes]) -> bool:
        await self._backend.finish(entries, released, self._owner)
        return True

    async def _claim_group(self, group: list[_Claim]) -> list[list[bool]]:
        keys = [key for claim in group for key in claim.keys]
        found = await self._away.tried(lambda: self._claimed(keys), without=None)
        if found is None:
            self._start_anew()
            return [[True] * len(claim.keys) for claim in group]
        seen, now = iter(found), time.time()
        results = [[self._is_ours(claim, key, next(seen), now) for key in claim.keys] for claim in group]
        if self._held and self._staying is None:
            self._staying = asyncio.create_task(self._stay())
        return results

    async def _claimed(self, keys: Sequence[bytes]) -> list[Seen]:
        if not self._succeeded and self._task is not None:
            await self._backend.succeed(self._task, self._owner)
            self._succeeded = True
        return await self._backend.claim(keys, self._owner)

    def _start_anew(self) -> None:
        """Be another owner: what the one before may still have in the store is free once that one is believed dead."""
        self._owner, self._succeeded = secrets.token_hex(8), self._task is None
        self._held.clear()

    def _is_ours(self, claim: _Claim, key: bytes, seen: Seen, now: float) -> bool:
        if seen.leased:
            return False
        if claim.dropped or self._good(key, seen.value, claim.run, claim.ttl, now) is not None:
            self._finish_later([key])
            return False
        claim.won.append(key)
        self._held.add(key)
        return True

    def _finish_later(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._finishes.put(_Finish(key, None))

    async def _stay(self) -> None:
        """Be heard of while anything is leased."""
        try:
            while self._held:
                await asyncio.sleep(OWNER_SECONDS / 3)
                await self._away.tried(lambda: self._backend.stay(self._owner), without=None)
        finally:
            self._staying = None


class _Away:
    """Does without a store that fails. Says so once for each time that it goes away, and once for each refusal."""

    def __init__(self) -> None:
        self._told = ""
        """The refusal that was logged last."""
        self._is_away = False
        self._until = 0.0

    async def tried(self, ask: Callable[[], Awaitable[_Result]], *, without: _Other) -> _Result | _Other:
        """What ``ask`` returns, or ``without``."""
        started = time.monotonic()
        if started < self._until:
            return without
        try:
            result = await ask()
        except StoreRefused as refused:
            self._until = time.monotonic() + RETRY_SECONDS
            if str(refused) != self._told:
                self._told = str(refused)
                log.warning("%s; rows are answered without reuse until it takes them", refused)
            return without
        except StoreUnavailable as error:
            took = time.monotonic() - started
            if took > _SLOW_SECONDS:
                self._until = started + took * (1 + _REST)
            if not self._is_away:
                log.warning("%s; rows are answered without reuse until it is back", error)
            self._is_away = True
            return without
        self._is_away = False
        return result
