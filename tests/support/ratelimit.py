"""Where the stories of the gates take place: in one process on a clock that jumps, or on Redis in real time.

A story is a coroutine. In the process, time passes only while everybody waits: an hour takes no time, every moment is
exact. On Redis, time is Redis' own: stories last a second or two, and what they claim holds however late they run.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import selectors
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any

from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.ratelimit.limiter import Link, LocalLimiter, RedisLimiter
from airflow_ai_provider.core.ratelimit.limits import CircuitChanged, Limiter, Terms, terms_of
from airflow_ai_provider.core.ratelimit.queue import ProcessGate


class _Jumping(selectors.DefaultSelector):
    """Does not wait: hands the time that it would have waited to ``passed``."""

    passed: Callable[[float], None]

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout != 0:
            if timeout is None:
                raise RuntimeError("everybody waits for something that will never happen")
            self.passed(timeout)
        return ready


PROCESS: contextvars.ContextVar[int | None] = contextvars.ContextVar("PROCESS", default=None)
"""The simulated process that a callback belongs to."""


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when there is nothing else to do.

    Callbacks with a ``PROCESS`` in their context can be held up apart from the others.
    """

    def __init__(self) -> None:
        selector = _Jumping()
        selector.passed = self._pass
        self.now = 1000.0
        self._held_until: dict[int, float] = {}
        self._order = itertools.count(1)
        super().__init__(selector)

    def hold_up(self, process: int, seconds: float) -> None:
        """Run nothing of a process for so many seconds; what was due meanwhile runs afterwards, in order."""
        self._held_until[process] = max(self.now + seconds, self._held_until.get(process, 0.0))

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        return super().call_soon(self._run_of, process, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is None or callback == self._run_of:
            return super().call_at(when, callback, *args, context=context)
        return super().call_at(when, self._run_of, process, callback, *args, context=context)

    def _run_of(self, process: int, callback: Any, *args: Any) -> None:
        until = self._held_until.get(process, 0.0)
        if self.now < until:
            self.call_at(until + next(self._order) * 1e-9, self._run_of, process, callback, *args)
        else:
            callback(*args)

    def time(self) -> float:
        return self.now

    def _pass(self, seconds: float) -> None:
        self.now += seconds


class World(ABC):
    """A place for one story."""

    clock: Callable[[], float]

    def __init__(self) -> None:
        self.changes: list[CircuitChanged] = []
        self._gates: list[ProcessGate] = []

    def worker(self, team: str = "one", name: str = "small", called: str | None = None, **said: Any) -> ProcessGate:
        """The gate of one more worker before a deployment; ``called`` is its own name."""
        terms = terms_of(name, Deployment.model_validate({"model": "openai/gpt-4o-mini", **said}), team)
        desk = self._desk(name, terms)
        gate = ProcessGate(name, terms, team, desk, worker=called, on_change=self.changes.append, clock=self.clock)
        self._gates.append(gate)
        return gate

    def run(self, story: Coroutine[Any, Any, None]) -> None:
        """Tell the story; it may take 20 s of real time."""
        with asyncio.Runner(loop_factory=self._loop) as runner:
            runner.run(self._tell(story))

    async def _tell(self, story: Coroutine[Any, Any, None]) -> None:
        try:
            await story
        finally:
            for gate in self._gates:
                await gate.close()

    @abstractmethod
    def _desk(self, name: str, terms: Terms) -> Limiter: ...

    @abstractmethod
    def _loop(self) -> asyncio.AbstractEventLoop: ...


class InProcess(World):
    def __init__(self) -> None:
        super().__init__()
        self.loop = JumpingLoop()
        self.clock = self.loop.time
        self._desks: dict[str, LocalLimiter] = {}

    def _desk(self, name: str, terms: Terms) -> Limiter:
        return self._desks.setdefault(name, LocalLimiter(terms, clock=self.clock))

    def _loop(self) -> asyncio.AbstractEventLoop:
        return self.loop


class OnRedis(World):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.clock = time.monotonic
        self.url = url
        self.key = uuid.uuid4().hex

    def _desk(self, name: str, terms: Terms) -> Limiter:
        return RedisLimiter(Link(self.url), f"{name}:{self.key}", terms, clock=self.clock)

    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()
