"""The rows of a process that are under way, and how they end when the job stops.

After a stop nothing more is sent. A request that is out is charged whatever becomes of this process, so it has a grace
period to come back; after that it is cancelled and settled as unknown. A row that waits for anything else ends at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from airflow_ai_provider.core.errors import JobStopped

T = TypeVar("T")


class InFlight:
    """Tracks the tasks of rows on one event loop, and which of them have a request out."""

    def __init__(self) -> None:
        self.stopping = False
        self._rows: set[asyncio.Task[Any]] = set()
        self._sending: set[asyncio.Task[Any]] = set()

    async def run(self, row: Coroutine[Any, Any, T]) -> T:
        """Run one row in the current task. Raises ``JobStopped`` if the job stops before the row has ended."""
        if self.stopping:
            row.close()
            raise JobStopped
        task = asyncio.current_task()
        assert task is not None
        self._rows.add(task)
        try:
            return await row
        except asyncio.CancelledError:
            if self.stopping:
                raise JobStopped from None
            raise
        finally:
            self._rows.discard(task)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Mark the current row as having a request out: a stop cancels it only after the grace period."""
        task = asyncio.current_task()
        assert task is not None
        self._sending.add(task)
        try:
            yield
        finally:
            self._sending.discard(task)

    def check(self) -> None:
        """Raise ``JobStopped`` if the job is stopping."""
        if self.stopping:
            raise JobStopped

    async def stop(self, grace_seconds: float) -> None:
        """Stop all rows; return when the last one has ended."""
        self.stopping = True
        ends = asyncio.get_running_loop().time() + grace_seconds
        while self._rows and (left := ends - asyncio.get_running_loop().time()) > 0:
            for task in self._rows - self._sending:  # again each time: a row that came back would wait for its retry
                task.cancel()
            await asyncio.wait(set(self._rows), timeout=min(left, 0.2))
        while self._rows:
            for task in self._rows:
                task.cancel()
            await asyncio.wait(set(self._rows), timeout=1)


async def in_time(waiting: Awaitable[T], deadline: float | None) -> T:
    """Await something until a deadline on the loop's clock. Raises ``TimeoutError`` at the deadline."""
    if deadline is None:
        return await waiting
    async with asyncio.timeout_at(deadline):
        return await waiting
