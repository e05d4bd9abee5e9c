"""Processes that are held up, before a vendor that counts strictly: gates as they are, on a clock that jumps.

A stall holds up everything in a process and nothing at the vendor: what was sent before arrives meanwhile. Stalls hold
up all processes of a simulation at the same time, or each process by itself.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from airflow_ai_provider.core.ratelimit.queue import ProcessGate
from airflow_ai_provider.errors import VendorTransientError
from airflow_ai_provider.testing.limits import Window
from support.ratelimit import PROCESS, InProcess

PER_SECOND = 100


@dataclass
class StrictVendor:
    """Takes what its window lets in, in the order of arrival; ``lag`` holds up what arrives in these stretches."""

    window: Window
    lag: Sequence[tuple[float, float]] = ()
    tells_when: bool = False
    """Whether a 429 has a ``retry-after``."""
    refuses: frozenset[int] = frozenset()
    """Numbers of requests that it refuses whatever its window says."""
    taken: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    _travelling: list[tuple[float, int]] = field(default_factory=list)
    _decisions: dict[int, float | None] = field(default_factory=dict)
    _count: int = 0

    def send(self, arrives: float) -> tuple[int, float]:
        """A request on its way; returns its number and when the vendor reaches it."""
        self._count += 1
        arrives = next((end for start, end in self.lag if start <= arrives < end), arrives)
        heapq.heappush(self._travelling, (arrives, self._count))
        return self._count, arrives

    def decision(self, number: int) -> float | None:
        """Seconds to wait where it was refused; ``None`` where it was taken."""
        while number not in self._decisions:
            at, other = heapq.heappop(self._travelling)
            wait = self.window.wait(at, 1) or (0.01 if other in self.refuses else 0.0)
            if wait:
                self.refused.append(at)
            else:
                self.window.spend(at, 1)
                self.taken.append(at)
            self._decisions[other] = wait or None
        return self._decisions.pop(number)


@dataclass(frozen=True)
class Circumstances:
    """What the processes go through. All times in seconds."""

    processes: int = 1
    seconds: float = 60.0
    stalls: Sequence[tuple[float, float]] = ()
    """When each stall of all processes begins, and how long it is."""
    own_stalls: Sequence[Sequence[tuple[float, float]]] = ()
    """The same for each process by itself."""
    preparation: tuple[float, float] = (0.002, 0.03)
    """Least and most time between being let in and being ready to be sent."""
    travel: tuple[float, float] = (0.0005, 0.004)
    latency: tuple[float, float] = (0.2, 0.4)
    seed: int = 1


@dataclass
class Result:
    """What came of it, without the first second."""

    used: float
    """Share of the vendor's limit."""
    refused: float
    """Share of the requests."""
    all_refused: int


def random_stalls(rng: random.Random, *, every: float, longest: float, until: float) -> list[tuple[float, float]]:
    stalls, at = [], 1000.5
    while (at := at + rng.expovariate(1 / every)) < 1000.0 + until:
        stalls.append((at, rng.uniform(0.0, longest)))
    return stalls


def simulate(vendor: StrictVendor, so: Circumstances) -> Result:
    """Processes with more rows than they may send."""
    world, rng = InProcess(), random.Random(so.seed)
    gates = [world.worker(rpm=60 * PER_SECOND, concurrency=200) for _ in range(so.processes)]

    async def row(process: int, gate: ProcessGate, begins: float) -> None:
        PROCESS.set(process)
        await asyncio.sleep(begins)
        while True:
            turn = await gate.enter(input_tokens=1, output_tokens=1)
            await asyncio.sleep(rng.uniform(*so.preparation))
            await turn.depart()
            sent = world.clock()
            number, arrived = vendor.send(sent + rng.uniform(*so.travel))
            await asyncio.sleep(arrived - world.clock() + 0.002)
            wait = vendor.decision(number)
            if wait is None:
                await asyncio.sleep(rng.uniform(*so.latency))
                turn.answered(usage=None, limits=None, seconds=world.clock() - sent)
            else:
                told = wait if vendor.tells_when else None
                error = VendorTransientError("x", kind="rate_limited", http_status=429, retry_after=told)
                turn.failed(error, 0.002)
            turn.leave()
            if wait is not None:
                await asyncio.sleep(rng.uniform(0.5, 1.0))

    async def story() -> None:
        loop = asyncio.get_running_loop()
        assert loop is world.loop
        for at, seconds in so.stalls:
            loop.call_at(at, world.loop._pass, seconds)
        for process, stalls in enumerate(so.own_stalls):
            for at, seconds in stalls:
                loop.call_at(at, world.loop.hold_up, process, seconds)
        rows = [
            asyncio.create_task(row(process, gate, rng.uniform(0, 0.3)))
            for process, gate in enumerate(gates)
            for _ in range(200 // len(gates))
        ]
        await asyncio.sleep(so.seconds)
        for task in rows:
            task.cancel()
        await asyncio.gather(*rows, return_exceptions=True)

    world.run(story())
    counted = so.seconds - 1.0
    taken, refused = (sum(at >= 1001.0 for at in some) for some in (vendor.taken, vendor.refused))
    return Result(taken / (PER_SECOND * counted), refused / (taken + refused), len(vendor.refused))
