"""Waiting for what others are asking: one poller for all rows of a process, however many wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from airflow_ai_provider.gateway.reuse.backend import Seen
from airflow_ai_provider.gateway.reuse.stored import Stored

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
            return  # nobody waits any more
        answer = self._accept(seen.value) if seen.value is not None else None
        if answer is not None or not seen.leased:
            self.ended.set_result(answer)
        else:
            self.pause = next_pause(self.pause)
            self.due = now + self.pause


class Waiting:
    """Rows that wait until a key has an answer, or nobody is asking for it. For one event loop."""

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
        """Let whoever still waits go, without an answer."""
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
