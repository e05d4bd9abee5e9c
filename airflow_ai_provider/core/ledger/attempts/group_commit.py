"""Group commit: requests of many coroutines share one transaction.

Group commit for coroutines: what is asked while one group is under way goes together in the next.

Group commit: many coroutines ask, one transaction serves all that wait.

A commit to a durable database takes milliseconds whatever is in it. Opening and settling hundreds of attempts in one
transaction shares that wait, and writes each budget row once per group instead of once per call.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import Connection

from airflow_ai_provider.core.errors import AIProviderError, LedgerError
from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, Settled, open_attempts, settle
from airflow_ai_provider.core.ledger.budgets.holds import RENEW_EVERY, renew_holds
from airflow_ai_provider.core.ledger.database import PATIENCE_SECONDS, Ledger

Item = TypeVar("Item")
Result = TypeVar("Result")
_ENOUGH = 64
"""A group of so many does not wait for more: what they share is a small part of what each costs by itself."""


class Batcher(Generic[Item, Result]):
    """Turns single requests into groups, sent one after the other. For one event loop.

    ``send`` gets the items of a group and returns as many results; a result that is an exception is raised to the one
    who asked. If ``send`` itself raises, all of the group get that.
    """

    def __init__(
        self,
        send: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
        most: int = 2000,
        *,
        gather_seconds: float = 0.0,
    ) -> None:
        """``gather_seconds`` is how long a group may wait for more, if none is urgent."""
        self._send = send
        self._most = most
        self._gather_seconds = gather_seconds
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def ask(self, item: Item) -> Result:
        """The result for one item, once its group is through."""
        return await self.put(item)

    def put(self, item: Item) -> asyncio.Future[Result]:
        """Ask without waiting."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._sender is None:
            self._sender = asyncio.create_task(self._drain())
        return answer

    async def idle(self) -> None:
        """Return when nothing is waiting or under way."""
        while self._sender is not None:
            await asyncio.wait([self._sender])

    async def _drain(self) -> None:
        try:
            while self._waiting:
                if self._gather_seconds and len(self._waiting) < _ENOUGH:
                    await asyncio.sleep(self._gather_seconds)
                group, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                try:
                    results = await self._send([item for item, _ in group])
                except Exception as error:  # noqa: BLE001 - whatever it is belongs to those who asked
                    results = [error] * len(group)
                for (_, answer), result in zip(group, results, strict=True):
                    _deliver(answer, result)
        finally:
            self._sender = None


def _deliver(answer: asyncio.Future[Result], result: Result | Exception) -> None:
    if answer.done():
        return  # the one who asked was cancelled
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)


T = TypeVar("T")
_BACK_SECONDS = 2 * RENEW_EVERY.total_seconds()
"""Seconds after an outage in which the holds of other live processes may look expired."""


@dataclass(frozen=True, slots=True)
class _Open:
    attempt: OpenAttempt


@dataclass(frozen=True, slots=True)
class _Settle:
    rows: tuple[Settled, ...]


@dataclass(frozen=True, slots=True)
class _Work:
    run: Callable[[Connection], Any]


_Entry = _Open | _Settle | _Work


class Journal:
    """The only writer of a process to its ledger, for one event loop. Close it before the loop ends."""

    def __init__(self, ledger: Ledger, owner: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._ledger = ledger
        self._owner = owner
        self._patience = patience_seconds
        self._batcher: Batcher[_Entry, Any] = Batcher(self._send)
        # A call that is to leave need not wait behind what others settle; SQLite lets one writer in at a time anyway.
        self._opens = self._batcher if ledger.sqlite else Batcher(self._send)
        self._renewal = asyncio.create_task(self._keep_alive())
        self._back_at = -math.inf

    def now(self) -> datetime:
        """The ledger's time (UTC)."""
        return self._ledger.now()

    @property
    def just_back(self) -> bool:
        """Whether the database was away until a moment ago: live processes may not have renewed their holds yet."""
        return time.monotonic() - self._back_at < _BACK_SECONDS

    async def open(self, attempt: OpenAttempt) -> None:
        """Durable on return. Raises ``LedgerUnavailable`` or ``LedgerError``: then the call must not be made."""
        await self._opens.ask(_Open(attempt))

    async def settle(self, settled: Sequence[Settled]) -> None:
        """Durable on return."""
        if settled:
            await self._batcher.ask(_Settle(tuple(settled)))

    async def run(self, work: Callable[[Connection], T]) -> T:
        """One transaction of its own, in turn with the others. ``work`` may run again if its commit was lost."""
        return cast("T", await self._batcher.ask(_Work(work)))

    async def close(self) -> None:
        """Write what is waiting and stop."""
        await self._opens.idle()
        await self._batcher.idle()
        self._renewal.cancel()
        with suppress(asyncio.CancelledError):
            await self._renewal

    async def _send(self, entries: list[_Entry]) -> list[Any]:
        return await asyncio.to_thread(self._write, entries)

    def _write(self, entries: list[_Entry]) -> list[Any]:
        """Results in the order of the entries; work of its own keeps its place between the groups."""
        results: list[Any] = []
        for alone, group in groupby(entries, key=lambda entry: isinstance(entry, _Work)):
            together = list(group)
            if alone:
                results += [self._attempt(_alone(entry.run)) for entry in together if isinstance(entry, _Work)]
            else:
                results += self._commit_group(together)
        return results

    def _commit_group(self, entries: list[_Entry], *, replay: bool = False) -> list[Any]:
        """All in one transaction; if the ledger refuses it, each entry alone, so that one spoils none.

        Alone an entry counts as replayed: what was refused may be the replay of a commit that was still under way.
        """
        opened = [entry.attempt for entry in entries if isinstance(entry, _Open)]
        settled = [row for entry in entries if isinstance(entry, _Settle) for row in entry.rows]
        result = self._attempt(lambda conn, again: _open_and_settle(conn, opened, settled, self.now(), replay or again))
        if isinstance(result, LedgerError) and not replay:
            return [outcome for entry in entries for outcome in self._commit_group([entry], replay=True)]
        return [result] * len(entries)

    def _attempt(self, work: Callable[[Connection, bool], T]) -> T | Exception:
        """Commit ``work``, waiting for a database that is away; the error where it cannot be."""
        tried_again = False

        def counted(conn: Connection, again: bool) -> T:
            nonlocal tried_again
            tried_again = again
            return work(conn, again)

        try:
            done = self._ledger.run(counted, patience_seconds=self._patience)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the callers of the group
            return error
        if tried_again:
            self._back_at = time.monotonic()
        return done

    async def _keep_alive(self) -> None:
        """Say every few seconds that this process lives, so that others wait for the room it holds."""
        while True:
            await asyncio.sleep(RENEW_EVERY.total_seconds())
            with suppress(AIProviderError):  # the next group finds out, and waits for the database
                await self.run(self._renew)

    def _renew(self, conn: Connection) -> None:
        self._ledger.read_clock(conn)
        renew_holds(conn, self._owner, self.now())


def _alone(work: Callable[[Connection], T]) -> Callable[[Connection, bool], T]:
    return lambda conn, _replay: work(conn)


def _open_and_settle(
    conn: Connection, opened: list[OpenAttempt], settled: list[Settled], now: datetime, replay: bool
) -> None:
    if opened:
        open_attempts(conn, opened, replay=replay)
    if settled:
        settle(conn, settled, now, replay=replay)
