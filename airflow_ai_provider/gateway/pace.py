"""Pacing within one process: requests and tokens per minute of a deployment, and how many at once.

GCRA (the virtual scheduling form of the leaky bucket, ITU-T I.371): each limit keeps one number, the moment at which
its bucket would be empty. A request that comes too early waits; none is rejected. A cool-down asked for by the
vendor moves that moment for everybody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

_BURST_SECONDS = 1.0
"""How much of a minute's allowance may go at once: one second's worth, so that vendors see an even load."""


@dataclass(slots=True)
class Gcra:
    """One limit of ``per_minute`` units. Pure: the moment is passed in, the wait comes out."""

    per_minute: int
    empty_at: float = 0.0
    """The moment at which all that was taken has drained."""

    def take(self, units: int, now: float) -> float:
        """Take units and return how many seconds to wait before using them."""
        emission = 60.0 / self.per_minute
        burst = max(_BURST_SECONDS, emission)
        start = max(self.empty_at, now)
        self.empty_at = start + units * emission
        return max(0.0, start + min(units * emission, burst) - burst - now)

    def give_back(self, units: int) -> None:
        """Return units that were taken and not used."""
        self.empty_at -= units * 60.0 / self.per_minute


class Pacer:
    """The limits of one deployment, shared by all its calls in this process."""

    def __init__(
        self,
        *,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        concurrency: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = Gcra(requests_per_minute) if requests_per_minute else None
        self._tokens = Gcra(tokens_per_minute) if tokens_per_minute else None
        self._slots = asyncio.Semaphore(concurrency)
        self._clock = clock
        self._resume_at = 0.0

    @property
    def slots(self) -> asyncio.Semaphore:
        """Held while a request is out and until its answer is safe."""
        return self._slots

    async def wait(self, tokens: int) -> None:
        """Return when one request of about ``tokens`` may leave."""
        now = self._clock()
        pauses = [0.0]
        if self._requests:
            pauses.append(self._requests.take(1, now))
        if self._tokens:
            pauses.append(self._tokens.take(tokens, now))
        ready_at = now + max(pauses)
        # A cool-down may come while this waits, so the end of the wait is looked up again.
        while (pause := max(ready_at, self._resume_at) - self._clock()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(pause)

    def used(self, *, expected: int, actual: int) -> None:
        """Correct the token limit by what a request really took."""
        if self._tokens:
            self._tokens.give_back(expected - actual)

    def cool_down(self, seconds: float) -> None:
        """Let nobody send for so long: the vendor said so."""
        self._resume_at = max(self._resume_at, self._clock() + seconds)
