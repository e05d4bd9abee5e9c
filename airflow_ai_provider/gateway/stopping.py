"""Stopping a job: nothing more is sent, what is out may still come back, then it is given up.

A request that is out is paid for whatever becomes of us, so it is waited for, for a while; what has not come back by
then is settled as unknown before the process ends. Everything else, waiting for room, pace or a retry, ends at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Any, TypeVar

import uvloop

from airflow_ai_provider.errors import JobStopped

T = TypeVar("T")
GRACE_SECONDS = 20.0
"""How long requests that are out may still come back; Airflow waits 60 s before it kills a task for good
(``[core] killed_task_cleanup_time``)."""
_CLOSING_SECONDS = 25.0
"""How long it may take after that to settle, flush and close."""
_LOOK_SECONDS = 1.0
"""How often a job looks whether it is still wanted: well within the 10 s for which its leases outlive it."""


class Walks:
    """The rows on their way through one event loop, and which of them have a request out."""

    def __init__(self) -> None:
        self.stopping = False
        self._walking: set[asyncio.Task[Any]] = set()
        self._sending: set[asyncio.Task[Any]] = set()

    async def run(self, walk: Coroutine[Any, Any, T]) -> T:
        """One row's walk, which ends with ``JobStopped`` once everything stops."""
        if self.stopping:
            walk.close()
            raise JobStopped
        task = asyncio.current_task()
        assert task is not None
        self._walking.add(task)
        try:
            return await walk
        except asyncio.CancelledError:
            if self.stopping:
                raise JobStopped from None
            raise
        finally:
            self._walking.discard(task)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """While a request is out: the walk is not ended, unless it does not come back in time."""
        task = asyncio.current_task()
        assert task is not None
        self._sending.add(task)
        try:
            yield
        finally:
            self._sending.discard(task)

    def check(self) -> None:
        """Raises ``JobStopped`` once nothing more may be sent."""
        if self.stopping:
            raise JobStopped

    async def stop(self, grace_seconds: float) -> None:
        """Return when every walk has ended."""
        self.stopping = True
        ends = asyncio.get_running_loop().time() + grace_seconds
        while self._walking and (left := ends - asyncio.get_running_loop().time()) > 0:
            for task in self._walking - self._sending:  # also who has come back meanwhile, and would wait again
                task.cancel()
            await asyncio.wait(set(self._walking), timeout=min(left, 0.2))
        while self._walking:
            for task in self._walking:
                task.cancel()
            await asyncio.wait(set(self._walking), timeout=1)


class Worker:
    """Runs a job's event loop in a thread of its own.

    The main thread only waits, so whatever a signal handler raises there (Airflow's time-out, a kill, Ctrl-C) leaves
    it at once and stops the job in order, instead of ending in whichever row happened to run. It also lets a job be
    started where a loop runs already, as in a notebook.
    """

    def __init__(
        self, main: Callable[[asyncio.Event], Coroutine[Any, Any, T]], wanted: Callable[[], bool] | None = None
    ) -> None:
        """``main`` is given the event that asks it to stop; ``wanted`` is asked each second, and ``False`` stops it."""
        self._main = main
        self._wanted = wanted
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._result: Future[Any] = Future()
        self._asked_to_stop = False

    def run(self) -> Any:
        """Run ``main`` and return its result. Once it has ended, raises what it raised, what a signal handler raised
        here, or ``JobStopped`` where the job was not wanted any more."""
        context = copy_context()
        thread = threading.Thread(target=context.run, args=(self._work,), name="ai-gateway", daemon=True)
        thread.start()
        try:
            return self._wait()
        except BaseException as error:
            if not self._result.done():
                self._ask_to_stop()
                with suppress(Exception):
                    self._result.result(timeout=GRACE_SECONDS + _CLOSING_SECONDS)
                raise error from None
            raise
        finally:
            if self._result.done():
                thread.join()

    def _wait(self) -> Any:
        seconds = None if self._wanted is None else _LOOK_SECONDS
        while not wait([self._result], timeout=seconds).done:
            if self._wanted is not None and not self._wanted():
                raise JobStopped(
                    "stopped: the process that supervised this task is gone; the next try goes on from there"
                )
        return self._result.result()

    def _work(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                self._loop = runner.get_loop()
                self._stop = asyncio.Event()
                if self._asked_to_stop:
                    self._stop.set()
                result = runner.run(self._main(self._stop))
        except BaseException as error:  # noqa: BLE001 - belongs to whoever waits for the result
            self._result.set_exception(error)
        else:
            self._result.set_result(result)

    def _ask_to_stop(self) -> None:
        self._asked_to_stop = True
        if self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # the loop has ended in between
                self._loop.call_soon_threadsafe(self._stop.set)
