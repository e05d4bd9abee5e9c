"""The gate's behaviour, the same in one process and on Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.ratelimit import InProcess, OnRedis, World

from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.providers import base
from airflow_ai_provider.core.providers.base import RateLimits
from airflow_ai_provider.core.ratelimit.limits import AIM
from airflow_ai_provider.core.ratelimit.queue import GatePass as Pass
from airflow_ai_provider.core.ratelimit.queue import ProcessGate
from airflow_ai_provider.errors import DeploymentResting, VendorError, VendorPermanentError, VendorTransientError

LATE = 0.03
"""Seconds by which a real clock may run late where that helps a call to be early: BURST and a timer."""
FREE: dict[str, Any] = {"rpm": "unlimited"}


@pytest.fixture(params=["in process", "redis"])
def world(request: pytest.FixtureRequest) -> World:
    return InProcess() if request.param == "in process" else OnRedis(request.getfixturevalue("redis_url"))


def down(retry_after: float | None = None) -> VendorError:
    return VendorTransientError("x", kind="server_error", http_status=503, retry_after=retry_after)


def limited(retry_after: float | None) -> VendorError:
    return VendorTransientError("x", kind="rate_limited", http_status=429, retry_after=retry_after)


async def enter(gate: ProcessGate, tokens: tuple[int, int] = (1, 1)) -> Pass:
    return await gate.enter(input_tokens=tokens[0], output_tokens=tokens[1])


async def call(gate: ProcessGate, *, tokens: tuple[int, int] = (1, 1), usage: Usage | None = None) -> None:
    passed = await enter(gate, tokens)
    passed.answered(usage=usage, limits=None, seconds=0.1)
    passed.leave()


async def fail(gate: ProcessGate, error: VendorError, *, times: int = 1) -> None:
    for _ in range(times):
        passed = await enter(gate)
        passed.failed(error, 0.0)
        passed.leave()


async def break_it(world: World, gate: ProcessGate) -> None:
    """Let the deployment fail until it rests."""
    await fail(gate, down(), times=5)
    await until(world, lambda: gate.resting)


async def moments_of(world: World, *calls: Awaitable[Any]) -> list[float]:
    """When each of the calls, made together, was through, from now."""
    begun = world.clock()

    async def timed(one: Awaitable[Any]) -> float:
        await one
        return world.clock() - begun

    return list(await asyncio.gather(*(timed(one) for one in calls)))


async def for_a_while(seconds: float, *work: Any) -> None:
    tasks = [asyncio.create_task(one) for one in work]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended


async def while_warm(calls: Counter[Any], seconds: float, *work: Any) -> None:
    """Count only once the workers know of each other."""

    async def forget() -> None:
        await asyncio.sleep(0.3)
        calls.clear()
        await asyncio.sleep(3600)

    await for_a_while(0.3 + seconds, forget(), *work)


async def until(world: World, condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = world.clock() + seconds
    while not condition():
        assert world.clock() < end, "it never came to that"
        await asyncio.sleep(0.02)


def assert_not_faster(moments: list[float], per_second: float) -> None:
    """However late it runs: the n-th is not before its place in the schedule, but for one burst."""
    for place, moment in enumerate(sorted(moments)):
        assert moment >= place / (per_second * AIM) - LATE


# -- limits


def test_requests_leave_at_the_pace_of_the_limit_and_in_the_order_in_which_they_came(world: World) -> None:
    async def story() -> None:
        gate = world.worker(rpm=3000)
        moments = await moments_of(world, *(call(gate) for _ in range(40)))
        assert moments == sorted(moments)
        assert_not_faster(moments, 50)

    world.run(story())


@pytest.mark.parametrize(
    ("limit", "tokens"), [("tpm", (600, 400)), ("input_tpm", (1000, 1)), ("output_tpm", (1, 1000))]
)
def test_each_limit_on_tokens_holds(world: World, limit: str, tokens: tuple[int, int]) -> None:
    async def story() -> None:
        gate = world.worker(rpm="unlimited", **{limit: 60 * 50_000})
        assert_not_faster(await moments_of(world, *(call(gate, tokens=tokens) for _ in range(30))), 50)

    world.run(story())


@pytest.mark.parametrize("limit", ["input_tpm", "tpm"])
def test_a_call_that_uses_none_of_a_limit_does_not_wait_for_it(world: World, limit: str) -> None:
    async def story() -> None:
        gate = world.worker(**FREE, **{limit: 600})
        await call(gate, tokens=(20, 0))
        waits = await moments_of(world, *(call(gate, tokens=(0, 0)) for _ in range(20)))
        assert max(waits) < 0.5
        between = await moments_of(world, call(gate, tokens=(20, 0)), call(gate, tokens=(0, 0)))
        assert between[0] > 1.0  # ten a second

    world.run(story())


def test_a_call_that_uses_none_of_a_limit_waits_for_a_cool_down(world: World) -> None:
    async def story() -> None:
        gate = world.worker(**FREE, input_tpm=600)
        await fail(gate, limited(0.7))
        (moment,) = await moments_of(world, call(gate, tokens=(0, 1)))
        assert moment > 0.6

    world.run(story())


def test_workers_share_a_limit(world: World) -> None:
    async def story() -> None:
        gates = [world.worker(rpm=6000) for _ in range(4)]
        moments = await moments_of(world, *(call(gate) for gate in gates for _ in range(20)))
        assert_not_faster(moments, 100)

    world.run(story())


def test_workers_that_are_equally_busy_get_equally_much(world: World) -> None:
    async def story() -> None:
        gates = [world.worker(rpm=12_000) for _ in range(4)]
        calls = Counter[int]()

        async def work(number: int) -> None:
            while True:
                await call(gates[number])
                calls[number] += 1

        await while_warm(calls, 1.5, *(work(number) for number in range(4) for _ in range(20)))
        assert max(calls.values()) - min(calls.values()) <= 0.2 * sum(calls.values()) / 4

    world.run(story())


def test_busy_teams_hold_their_shares_of_the_rate(world: World) -> None:
    async def story() -> None:
        shares = {"search": 0.6, "support": 0.3}
        gates = {team: world.worker(team, rpm=24_000, shares=shares) for team in ("search", "support", "any", "other")}
        calls = Counter[str]()

        async def work(team: str) -> None:
            while True:
                await call(gates[team])
                calls[team] += 1

        await while_warm(calls, 2.0, *(work(team) for team in gates for _ in range(40)))
        total = sum(calls.values())
        assert calls["search"] / total == pytest.approx(0.6, rel=0.05)
        assert calls["support"] / total == pytest.approx(0.3, rel=0.05)
        assert (calls["any"] + calls["other"]) / total == pytest.approx(0.1, rel=0.15)

    world.run(story())


def test_the_share_of_an_idle_team_is_lent(world: World) -> None:
    async def story() -> None:
        gate = world.worker("support", rpm=6000, shares={"search": 0.9, "support": 0.1})
        moments = await moments_of(world, *(call(gate) for _ in range(100)))
        assert_not_faster(moments, 100)
        assert sorted(moments)[60] < 3  # alone with its share it would take 6 s

    world.run(story())


def test_tokens_that_were_not_used_are_given_back(world: World) -> None:
    async def story() -> None:
        generous, exact = world.worker(rpm="unlimited", tpm=60_000), world.worker(rpm="unlimited", tpm=60_000)
        await call(generous, tokens=(500, 500), usage=Usage(100, 100))
        await asyncio.sleep(0.3)  # the next visit tells
        (soon,) = await moments_of(world, call(exact, tokens=(300, 300), usage=Usage(300, 300)))
        (late,) = await moments_of(world, call(exact, tokens=(500, 500), usage=Usage(500, 500)))
        assert soon < 0.3
        assert late > 0.6

    world.run(story())


def test_more_tokens_than_expected_slow_down_those_who_follow(world: World) -> None:
    async def story() -> None:
        gate = world.worker(rpm="unlimited", tpm=60_000)
        await call(gate, tokens=(5, 5), usage=Usage(500, 510))
        (moment,) = await moments_of(world, call(gate, tokens=(5, 5)))
        assert moment > 0.9

    world.run(story())


def test_a_call_that_was_never_sent_gives_everything_back(world: World) -> None:
    async def story() -> None:
        gate = world.worker(rpm=60, tpm=60_000, concurrency=1)
        passed = await enter(gate, (500, 500))
        passed.unused()
        passed.leave()
        (moment,) = await moments_of(world, call(gate, tokens=(500, 500)))
        assert moment < 0.5

    world.run(story())


def test_a_call_that_is_cancelled_as_it_may_leave_takes_no_place_of_another() -> None:
    world = InProcess()

    async def leave_cancelled(passed: Pass) -> None:
        try:
            await passed.depart()
        finally:
            passed.unused()
            passed.leave()

    async def story() -> None:
        gate = world.worker(rpm=6000)
        first = await enter(gate)
        await asyncio.sleep(0.09)  # so that the next are let in before their places
        await first.depart()
        first.leave()
        passes = [await enter(gate) for _ in range(3)]
        leaving = asyncio.create_task(leave_cancelled(passes[0]))
        await asyncio.sleep(0)
        timer = gate._departure_timer
        assert timer is not None
        assert not leaving.done()
        asyncio.get_running_loop().call_at(timer.when(), leaving.cancel)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        for passed in passes[1:]:
            await asyncio.wait_for(passed.depart(), 5)
            passed.leave()
        assert gate._in_use == 0

    world.run(story())


def test_who_gives_up_waiting_leaves_his_place_to_the_next(world: World) -> None:
    async def story() -> None:
        gate = world.worker(rpm=120, concurrency=5)
        await call(gate)
        given_up = [asyncio.create_task(call(gate)) for _ in range(3)]
        await asyncio.sleep(0.1)
        last = asyncio.create_task(call(gate))
        for task in given_up:
            task.cancel()
        (moment,) = await moments_of(world, last)
        assert moment < 0.9

    world.run(story())


def test_a_quiet_time_is_not_saved_up(world: World) -> None:
    async def story() -> None:
        gate = world.worker(rpm=3000)
        await moments_of(world, *(call(gate) for _ in range(20)))
        await asyncio.sleep(0.5)
        assert_not_faster(await moments_of(world, *(call(gate) for _ in range(20))), 50)

    world.run(story())


def test_the_first_call_after_a_quiet_time_does_not_wait(world: World) -> None:
    async def story() -> None:
        gate = world.worker(rpm=10, tpm=100_000)
        (moment,) = await moments_of(world, call(gate, tokens=(4000, 1000)))
        assert moment < 0.5

    world.run(story())


# -- cool-down


def test_nobody_sends_while_a_deployment_cools_down(world: World) -> None:
    async def story() -> None:
        told, other = world.worker(rpm=60_000), world.worker(rpm=60_000)
        await moments_of(world, call(told), call(other))
        begun = world.clock()
        await fail(told, limited(1.0))
        await asyncio.sleep(0.3)  # the other hears of it
        await moments_of(world, call(other), call(other), call(told))
        assert world.clock() - begun >= 1.0 - LATE

    world.run(story())


def test_a_shorter_cool_down_does_not_end_a_longer_one(world: World) -> None:
    async def story() -> None:
        gate = world.worker(rpm=60_000)
        first, second = await enter(gate), await enter(gate)
        first.failed(limited(1.0), 0.1)
        second.failed(limited(0.2), 0.1)
        first.leave()
        second.leave()
        (moment,) = await moments_of(world, call(gate))
        assert moment >= 1.0 - LATE

    world.run(story())


def test_who_is_already_waiting_heeds_a_cool_down_as_well(world: World) -> None:
    async def story() -> None:
        gate = world.worker(rpm=600)
        passed = await enter(gate)
        waiting = [asyncio.create_task(call(gate)) for _ in range(3)]
        await asyncio.sleep(0)
        passed.failed(limited(1.0), 0.0)
        passed.leave()
        moments = await moments_of(world, *waiting)
        assert min(moments) >= 1.0 - LATE
        assert_not_faster([moment - min(moments) for moment in moments], 10)

    world.run(story())


def test_headers_that_say_nothing_is_left_hold_everybody_back(world: World) -> None:
    async def story() -> None:
        gate = world.worker(rpm=60_000)
        passed = await enter(gate)
        said = RateLimits(requests=60, requests_remaining=0, requests_reset=60.0)
        passed.answered(usage=None, limits=said, seconds=0.1)
        passed.leave()
        (moment,) = await moments_of(world, call(gate))
        assert 1.0 - LATE <= moment < 5

    world.run(story())


def test_a_quota_that_comes_back_as_a_whole_holds_everybody_back_until_it_does(world: World) -> None:
    async def story() -> None:
        gate = world.worker(rpm=60_000)
        passed = await enter(gate)
        said = RateLimits(requests=60, requests_remaining=0, requests_reset=2.0, at_once=True)
        passed.answered(usage=None, limits=said, seconds=0.1)
        passed.leave()
        (moment,) = await moments_of(world, call(gate))
        assert moment >= 2.0 - LATE

    world.run(story())


def test_after_ten_minutes_one_call_finds_out_before_all_go() -> None:
    """Whatever a vendor says, here that its quota is back in seven hours."""
    world = InProcess()

    async def story() -> None:
        gates = [world.worker(rpm=60_000, concurrency=8) for _ in range(2)]
        begun = world.clock()
        await moments_of(world, *(call(gate) for gate in gates))
        await fail(gates[0], limited(26_784.0))
        left: list[float] = []

        async def work(gate: ProcessGate) -> None:
            passed = await enter(gate)
            left.append(world.clock() - begun)
            await asyncio.sleep(1.0)
            passed.answered(usage=None, limits=None, seconds=1.0)
            passed.leave()

        await asyncio.sleep(0.5)
        await asyncio.gather(*(work(gate) for gate in gates for _ in range(8)))
        first, second, *_ = sorted(left)
        assert 600 <= first < 606
        assert second > first + 0.99
        assert max(left) < first + 5

    world.run(story())


# -- how many at once


def test_no_more_are_out_at_once_than_there_are_slots(world: World) -> None:
    async def story() -> None:
        gates = [world.worker(concurrency=6, **FREE) for _ in range(3)]
        out, most, done = 0, 0, Counter[int]()

        async def work(number: int) -> None:
            nonlocal out, most
            passed = await enter(gates[number])
            out += 1
            most = max(most, out)
            await asyncio.sleep(0.02)
            out -= 1
            done[number] += 1
            passed.leave()

        await asyncio.gather(*(work(number) for number in range(3) for _ in range(30)))
        assert most <= 6
        assert done == {0: 30, 1: 30, 2: 30}

    world.run(story())


def test_a_single_worker_may_use_every_slot(world: World) -> None:
    async def story() -> None:
        gate = world.worker(concurrency=20, **FREE)
        passes = await asyncio.gather(*(enter(gate) for _ in range(20)))
        late = asyncio.create_task(enter(gate))
        await asyncio.sleep(0.3)
        assert not late.done()
        passes[0].leave()
        (await asyncio.wait_for(late, 1)).leave()
        for passed in passes[1:]:
            passed.leave()

    world.run(story())


def test_who_comes_later_gets_a_fair_part_of_the_slots(world: World) -> None:
    async def story() -> None:
        early, late = world.worker(concurrency=8, **FREE), world.worker(concurrency=8, **FREE)
        done = Counter[str]()

        async def work(name: str, gate: ProcessGate) -> None:
            while True:
                passed = await enter(gate)
                await asyncio.sleep(0.02)
                done[name] += 1
                passed.leave()

        first = [asyncio.create_task(work("early", early)) for _ in range(8)]
        await asyncio.sleep(0.3)
        begun = done["early"]
        await for_a_while(1.5, *(work("late", late) for _ in range(8)))
        assert done["late"] > 0.6 * (done["early"] - begun)
        for task in first:
            task.cancel()
        await asyncio.gather(*first, return_exceptions=True)

    world.run(story())


def test_without_a_known_limit_429s_bring_concurrency_down(world: World) -> None:
    async def story() -> None:
        gate = world.worker(concurrency=10, **FREE)
        passes = await asyncio.gather(*(enter(gate) for _ in range(10)))
        passes[0].failed(limited(0.01), 0.1)
        passes[0].leave()
        await asyncio.sleep(0.1)
        for passed in passes[1:]:
            passed.leave()
        entered = [asyncio.create_task(enter(gate)) for _ in range(10)]
        await asyncio.sleep(0.4)
        assert sum(task.done() for task in entered) == 7
        for task in entered:
            if task.done():
                task.result().leave()
        for task in entered:
            passed = await task
            passed.leave()

    world.run(story())


# -- the circuit


def test_a_deployment_that_fails_rests_for_everybody(world: World) -> None:
    async def story() -> None:
        sender, waiter = world.worker(rpm=600), world.worker(rpm=600)
        await moments_of(world, call(sender), call(waiter))
        begun = world.clock()
        waiting = asyncio.gather(*(enter(waiter) for _ in range(50)), return_exceptions=True)
        pausing = asyncio.create_task(waiter.pause(60))
        await break_it(world, sender)
        ends = await waiting
        await pausing
        assert isinstance(ends[-1], DeploymentResting)
        assert world.clock() - begun < 3.0
        assert waiter.resting
        with pytest.raises(DeploymentResting, match="deployment small rests"):
            await enter(waiter)
        for end in ends:
            if isinstance(end, Pass):
                end.leave()

    world.run(story())


def test_one_probe_at_a_time_finds_out_that_it_is_back(world: World) -> None:
    async def story() -> None:
        gates = [world.worker(**FREE) for _ in range(3)]
        await moments_of(world, *(call(gate) for gate in gates))
        await break_it(world, gates[0])
        await asyncio.sleep(0.3)  # the idle ones ask before they send again
        probes: list[Pass] = []

        async def try_to_send(gate: ProcessGate) -> None:
            while not any(change.state == "closed" for change in world.changes):
                try:
                    probes.append(await enter(gate))
                except DeploymentResting:
                    await asyncio.sleep(0.02)
                    continue
                await asyncio.sleep(0.3)
                assert len(probes) == 1
                probes[0].answered(usage=None, limits=None, seconds=0.1)
                probes[0].leave()
                return

        await asyncio.wait_for(asyncio.gather(*(try_to_send(gate) for gate in gates)), 10)
        assert len(probes) == 1
        await until(world, lambda: not any(gate.resting for gate in gates))
        await moments_of(world, *(call(gate) for gate in gates))

    world.run(story())


def test_a_probe_that_fails_lets_it_rest_on(world: World) -> None:
    async def story() -> None:
        gate = world.worker(**FREE)
        await break_it(world, gate)
        await until(world, lambda: not gate.resting)
        await fail(gate, down())
        await until(world, lambda: len(world.changes) == 3)
        assert [change.state for change in world.changes] == ["open", "half_open", "open"]
        assert [change.reason for change in world.changes] == [
            "5 failures in a row",
            "time for a probe",
            "the probe failed",
        ]
        assert all(change.here for change in world.changes)

    world.run(story())


def test_a_probe_that_is_not_sent_is_given_back(world: World) -> None:
    async def story() -> None:
        gate = world.worker(breaker={"probe_every": 3600}, **FREE)
        await break_it(world, gate)
        await until(world, lambda: not gate.resting)
        passed = await enter(gate)
        passed.leave()  # cancelled before it said anything
        await until(world, lambda: gate.resting)
        await until(world, lambda: not gate.resting)
        await call(gate)
        await until(world, lambda: world.changes[-1].state == "closed")

    world.run(story())


@pytest.mark.parametrize(
    "error",
    [
        limited(0.001),
        VendorPermanentError("x", kind="bad_request", http_status=400),
        VendorPermanentError("x", kind="unauthorized", http_status=401),
        VendorTransientError("x", kind="conflict", http_status=409),
    ],
    ids=lambda error: error.kind,
)
def test_refusals_that_are_no_outage_open_no_circuit(world: World, error: VendorError) -> None:
    async def story() -> None:
        gate = world.worker(rpm=60_000)
        await fail(gate, error, times=30)
        await call(gate)
        assert not gate.resting
        assert world.changes == []

    world.run(story())


@pytest.mark.parametrize(
    "error",
    [
        down(),
        VendorTransientError("x", kind="timeout", billed=True),
        VendorTransientError("x", kind="connection_refused"),
        base.http_error("small", 408),
        base.http_error("small", 504),
    ],
    ids=lambda error: error.kind,
)
def test_outages_open_it(world: World, error: VendorError) -> None:
    async def story() -> None:
        gate = world.worker(**FREE)
        await fail(gate, error, times=5)
        await until(world, lambda: gate.resting)

    world.run(story())


def test_a_good_share_of_failures_opens_it_too(world: World) -> None:
    async def story() -> None:
        gate = world.worker(breaker={"failures": 1000, "calls": 10}, **FREE)

        async def half_fail() -> None:
            for _ in range(40):
                await call(gate)
                await fail(gate, down())
                await asyncio.sleep(0.01)

        with pytest.raises(DeploymentResting):
            await half_fail()
        assert world.changes[0].reason in {f"50% of {calls} calls failed" for calls in range(10, 41)}

    world.run(story())


# -- retries


def test_an_outage_is_not_multiplied_by_retries(world: World) -> None:
    async def story() -> None:
        gate = world.worker(**FREE)
        await moments_of(world, *(call(gate) for _ in range(100)))
        retries = 0
        while gate.may_retry():
            retries += 1
            assert retries < 100
        assert 10 <= retries <= 30

    world.run(story())


# -- the end


def test_who_still_waits_when_the_gate_closes_is_turned_away(world: World) -> None:
    async def story() -> None:
        gate = world.worker(rpm=1)
        await call(gate)
        waiting = asyncio.create_task(enter(gate))
        await asyncio.sleep(0.1)
        await gate.close()
        with pytest.raises(DeploymentResting):
            await waiting

    world.run(story())


def test_a_worker_that_leaves_gives_its_slots_back(world: World) -> None:
    async def story() -> None:
        leaving, staying = world.worker(concurrency=1, **FREE), world.worker(concurrency=1, **FREE)
        (await enter(leaving)).leave()
        await leaving.close()
        (moment,) = await moments_of(world, call(staying))
        assert moment < 2

    world.run(story())


def test_the_next_try_of_a_task_has_the_slots_of_a_dead_one(world: World) -> None:
    """Others wait until the dead one is believed dead."""

    async def story() -> None:
        dead, stranger = world.worker(called="task", concurrency=1, **FREE), world.worker(concurrency=1, **FREE)
        await enter(dead)
        assert dead._messenger is not None
        dead._messenger.cancel()  # nothing is heard of it any more
        dead._messenger = None
        waiting = asyncio.create_task(enter(stranger))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        waiting.cancel()
        (moment,) = await moments_of(world, call(world.worker(called="task", concurrency=1, **FREE)))
        assert moment < 2

    world.run(story())
