"""Measures how late an event loop runs.

A double that decides by time, such as one with quotas, judges requests by when its loop reaches them. On a machine
that is too busy for it, its decisions say little of its clients; these figures tell.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

LOOK_S = 0.01
"""Seconds between two looks."""


class LagMeter:
    """Counts by how many milliseconds each look was late."""

    def __init__(self) -> None:
        self._late_ms: Counter[int] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin looking, in the running loop. Does nothing if it looks already."""
        if self._timer is None:
            self._look_again(asyncio.get_running_loop())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def reset(self) -> None:
        self._late_ms.clear()

    def seconds(self, share: float) -> float:
        """The lag that ``share`` of the looks did not exceed, in seconds; 1.0 is the longest. 0 before any look."""
        total, seen = self._late_ms.total(), 0
        for late in sorted(self._late_ms):
            seen += self._late_ms[late]
            if seen >= share * total:
                return late / 1000
        return 0.0

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        due = time.monotonic() + LOOK_S  # the loop's own time may stand still while it works
        self._timer = loop.call_later(LOOK_S, self._look, loop, due)

    def _look(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._late_ms[round(max(0.0, time.monotonic() - due) * 1000)] += 1
        self._look_again(loop)
