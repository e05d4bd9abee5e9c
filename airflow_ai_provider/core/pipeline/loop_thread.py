"""Runs a job's event loop in a thread of its own, so that a signal stops the job in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

import uvloop

from airflow_ai_provider.core.errors import JobStopped

T = TypeVar("T")
GRACE_SECONDS = 20.0
"""How long requests that are out may still come back; Airflow waits 60 s before it kills a task for good
(``[core] killed_task_cleanup_time``)."""
_CLOSING_SECONDS = 25.0
"""How long it may take after that to settle, flush and close."""
_LOOK_SECONDS = 1.0
"""Seconds between two checks whether the job is still wanted; well within the 10 s lifetime of its leases."""


class LoopThread:
    """Runs a coroutine on an event loop in a separate thread; the main thread only waits.

    Whatever a signal handler raises in the main thread (Airflow's time-out, a kill, Ctrl-C) surfaces there at once and
    stops the job in order, instead of ending in whichever row happens to run. A job can also be started where an event
    loop runs already, as in a notebook.
    """

    def __init__(
        self, main: Callable[[asyncio.Event], Coroutine[Any, Any, T]], wanted: Callable[[], bool] | None = None
    ) -> None:
        """``main`` receives the event that asks it to stop; ``wanted`` is called each second: ``False`` stops it."""
        self._main = main
        self._wanted = wanted
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._result: Future[Any] = Future()
        self._asked_to_stop = False

    def run(self) -> Any:
        """Run ``main`` and return its result.

        Raises, once ``main`` has ended, what it raised, what a signal handler raised in this thread, or ``JobStopped``
        if the job was no longer wanted.
        """
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
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for the result
            self._result.set_exception(error)
        else:
            self._result.set_result(result)

    def _ask_to_stop(self) -> None:
        self._asked_to_stop = True
        if self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # the loop has ended in between
                self._loop.call_soon_threadsafe(self._stop.set)
