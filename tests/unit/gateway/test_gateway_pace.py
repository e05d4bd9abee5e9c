"""Pacing on a clock that only moves when somebody sleeps."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.gateway import pace
from airflow_ai_provider.gateway.pace import Gcra, Pacer

REAL_SLEEP = asyncio.sleep


class Clock:
    """Stands where the clock and ``asyncio.sleep`` stand: time jumps to the next sleeper when all of them sleep."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._order), woken))
        await woken

    async def run(self, *walks: Coroutine[Any, Any, Any]) -> None:
        tasks = [asyncio.ensure_future(walk) for walk in walks]
        while not all(task.done() for task in tasks):
            for _ in range(20):
                await REAL_SLEEP(0)
            if self._sleepers:
                at, _, woken = heapq.heappop(self._sleepers)
                self.now = max(self.now, at)
                woken.set_result(None)
        await asyncio.gather(*tasks)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(pace.asyncio, "sleep", made.sleep)
    yield made
    monkeypatch.undo()


def pacer(clock: Clock, *, rpm: int | None = None, tpm: int | None = None, concurrency: int = 1000) -> Pacer:
    return Pacer(requests_per_minute=rpm, tokens_per_minute=tpm, concurrency=concurrency, clock=clock)


def most_in_a_minute(moments: list[float], amounts: list[int] | None = None) -> int:
    """The largest sum of amounts over any stretch of 60 s, its end left out."""
    amounts = amounts or [1] * len(moments)
    events = sorted(zip(moments, amounts, strict=True))
    return max(sum(n for at, n in events if start <= at < start + 60) for start, _ in events)


arrivals = st.lists(st.floats(0, 3), min_size=1, max_size=150)


@given(st.sampled_from([1, 7, 30, 60, 90, 600]), arrivals)
def test_no_minute_has_more_requests_than_the_limit_and_one_second_of_it(rpm: int, gaps: list[float]) -> None:
    limit, now, left = Gcra(rpm), 0.0, []
    for gap in gaps:
        now += gap
        left.append(now + limit.take(1, now))
    burst = max(1, rpm // 60)
    assert most_in_a_minute(left) <= rpm + burst
    assert left == sorted(left)


@given(st.sampled_from([1, 7, 60, 600]), arrivals)
def test_who_keeps_to_the_limit_never_waits(rpm: int, gaps: list[float]) -> None:
    limit, now = Gcra(rpm), 0.0
    for gap in gaps:
        now += gap + 60 / rpm
        assert limit.take(1, now) == pytest.approx(0, abs=1e-6)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 900)), min_size=1, max_size=80))
def test_no_minute_has_more_tokens_than_the_limit_one_second_of_it_and_a_request(
    taken: list[tuple[float, int]],
) -> None:
    tpm = 1200
    limit, now, left = Gcra(tpm), 0.0, []
    for gap, tokens in taken:
        now += gap
        left.append(now + limit.take(tokens, now))
    amounts = [tokens for _, tokens in taken]
    assert most_in_a_minute(left, amounts) <= tpm + tpm // 60 + max(amounts)


def test_a_quiet_time_is_not_saved_up() -> None:
    limit = Gcra(60)
    limit.take(1, 0.0)
    waits = [limit.take(1, 3600.0) for _ in range(3)]
    assert waits == pytest.approx([0, 1, 2])


async def test_requests_leave_at_the_pace_of_the_limit(clock: Clock) -> None:
    paced, left = pacer(clock, rpm=120), []

    async def send() -> None:
        await paced.wait(1)
        left.append(clock.now - 1000)

    await clock.run(*(send() for _ in range(6)))
    assert left == pytest.approx([0, 0, 0.5, 1.0, 1.5, 2.0])


async def test_without_limits_nobody_waits(clock: Clock) -> None:
    await clock.run(*(pacer(clock).wait(10**9) for _ in range(5)))
    assert clock.now == 1000


async def test_the_tighter_of_two_limits_decides(clock: Clock) -> None:
    paced = pacer(clock, rpm=6000, tpm=600)
    await clock.run(*(paced.wait(100) for _ in range(4)))
    assert clock.now - 1000 == pytest.approx(30, abs=1)


async def test_tokens_that_were_not_used_are_given_back(clock: Clock) -> None:
    generous, exact = pacer(clock, tpm=600), pacer(clock, tpm=600)
    for paced, used in ((generous, 100), (exact, 600)):
        await clock.run(paced.wait(600))
        paced.used(expected=600, actual=used)
    started = clock.now
    await clock.run(generous.wait(60))
    after_little = clock.now - started
    await clock.run(exact.wait(60))
    assert after_little <= 10
    assert clock.now - started >= 50


async def test_more_tokens_than_expected_slow_down_those_who_follow(clock: Clock) -> None:
    paced = pacer(clock, tpm=600)
    await clock.run(paced.wait(10))
    paced.used(expected=10, actual=310)
    await clock.run(paced.wait(10))
    assert clock.now - 1000 == pytest.approx(30, abs=2)


async def test_nobody_leaves_while_a_deployment_cools_down(clock: Clock) -> None:
    paced = pacer(clock)
    paced.cool_down(30)
    await clock.run(paced.wait(1), paced.wait(1))
    assert clock.now - 1000 == pytest.approx(30)


async def test_a_shorter_cool_down_does_not_end_a_longer_one(clock: Clock) -> None:
    paced = pacer(clock)
    paced.cool_down(30)
    paced.cool_down(1)
    await clock.run(paced.wait(1))
    assert clock.now - 1000 == pytest.approx(30)


async def test_who_is_already_waiting_heeds_a_cool_down_as_well(clock: Clock) -> None:
    """The vendor's "not for 30 s" comes while others wait for their turn within the limit."""
    paced, left = pacer(clock, rpm=60), []

    async def send() -> None:
        await paced.wait(1)
        left.append(clock.now - 1000)
        if len(left) == 2:
            paced.cool_down(30)

    await clock.run(*(send() for _ in range(5)))
    assert left[:2] == pytest.approx([0, 1])
    assert min(left[2:]) >= 31


async def test_no_more_are_out_at_once_than_there_are_slots(clock: Clock) -> None:
    paced, out, most = pacer(clock, concurrency=3), 0, 0

    async def call() -> None:
        nonlocal out, most
        async with paced.slots:
            out += 1
            most = max(most, out)
            await clock.sleep(1)
            out -= 1

    await clock.run(*(call() for _ in range(10)))
    assert most == 3
    assert clock.now - 1000 == pytest.approx(4)
