"""Group commit for coroutines: what is asked while one group is under way goes together in the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

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
        """``gather_seconds`` is how long a group may wait for more, where nobody is in a hurry."""
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
