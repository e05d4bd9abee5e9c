"""The gate when Redis goes, comes back empty, or forgets the script; and what it keeps there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from support.ratelimit import OnRedis
from support.redis_server import RedisServer, redis_server
from support.server import free_port

from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.ratelimit import open_gates
from airflow_ai_provider.core.ratelimit.limiter import UNSEEN_WORKERS, RemoteClock
from airflow_ai_provider.core.ratelimit.queue import ProcessGate
from airflow_ai_provider.errors import DeploymentResting, PolicyError, StoreUnavailable, VendorTransientError

PER_SECOND = 100
DOWN = VendorTransientError("x", kind="server_error", http_status=503)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis of this module's own, to be stopped at will."""
    with redis_server() as started:
        yield started


@pytest.fixture
def world(server: RedisServer) -> OnRedis:
    server.start()
    server.flush()
    return OnRedis(server.url)


async def drive(world: OnRedis, gate: ProcessGate, left: list[float], *, stay: float = 0.0) -> None:
    """Calls, one after the other, without end."""
    while True:
        passed = await gate.enter(input_tokens=1, output_tokens=1)
        left.append(world.clock())
        await asyncio.sleep(stay)
        passed.answered(usage=None, limits=None, seconds=stay)
        passed.leave()


async def stop(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel them; whoever ended before, ended in error."""
    for task in tasks:
        assert not task.done(), task.exception()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_redis_that_is_killed_and_comes_back_empty_stops_nobody(world: OnRedis, server: RedisServer) -> None:
    """That nobody is faster for it is in tests/timing."""

    async def story() -> None:
        gates = [world.worker(rpm=60 * PER_SECOND) for _ in range(2)]
        left: list[float] = []
        tasks = [asyncio.create_task(drive(world, gate, left)) for gate in gates for _ in range(10)]

        async def until(happened: Callable[[], bool]) -> None:
            while not happened():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

        async def more_leave() -> None:
            calls = len(left) + 20
            await until(lambda: len(left) >= calls)

        desks: list[Any] = [gate._desk for gate in gates]
        await more_leave()
        await asyncio.to_thread(server.crash)
        await until(lambda: all(desk._alone is not None for desk in desks))
        await more_leave()
        await asyncio.to_thread(server.start)
        await until(lambda: all(desk._alone is None for desk in desks))
        await more_leave()
        await stop(tasks)

    world.run(story())


def test_left_alone_a_worker_keeps_to_its_part_of_the_slots(world: OnRedis, server: RedisServer) -> None:
    async def story() -> None:
        gates = [world.worker(rpm="unlimited", concurrency=8) for _ in range(2)]
        left: list[float] = []
        tasks = [asyncio.create_task(drive(world, gate, left, stay=0.05)) for gate in gates for _ in range(8)]
        await asyncio.sleep(0.6)
        await asyncio.to_thread(server.crash)
        await asyncio.sleep(1.0)
        for _ in range(20):
            assert sum(gate._in_use for gate in gates) <= 8
            await asyncio.sleep(0.013)
        before = len(left)
        await asyncio.sleep(0.5)
        assert len(left) > before
        await stop(tasks)

    world.run(story())


def test_a_resting_deployment_rests_on_without_redis(world: OnRedis, server: RedisServer) -> None:
    async def story() -> None:
        gate = world.worker(rpm="unlimited", breaker={"probe_every": 60})
        for _ in range(5):
            passed = await gate.enter(input_tokens=1, output_tokens=1)
            passed.failed(DOWN, 0.1)
            passed.leave()
        while not gate.resting:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await asyncio.to_thread(server.crash)
        for _ in range(20):
            if not gate.resting:  # a probe of our own
                passed = await gate.enter(input_tokens=1, output_tokens=1)
                passed.failed(DOWN, 0.1)
                passed.leave()
            with pytest.raises(DeploymentResting):
                await gate.enter(input_tokens=1, output_tokens=1)
            await asyncio.sleep(0.1)

    world.run(story())


def test_who_never_reached_redis_takes_a_small_part() -> None:
    world = OnRedis(f"redis://127.0.0.1:{free_port()}/0")

    async def story() -> None:
        gate = world.worker(rpm=60 * PER_SECOND, concurrency=20)
        left: list[float] = []
        tasks = [asyncio.create_task(drive(world, gate, left)) for _ in range(10)]
        await asyncio.sleep(1.5)
        await stop(tasks)
        assert 5 <= len(left) <= 1.7 * PER_SECOND / UNSEEN_WORKERS

    world.run(story())


def test_a_script_that_redis_forgot_is_sent_again(world: OnRedis) -> None:
    async def story() -> None:
        gate = world.worker(rpm=60 * PER_SECOND)
        left: list[float] = []
        tasks = [asyncio.create_task(drive(world, gate, left)) for _ in range(4)]
        await asyncio.sleep(0.3)
        redis.Redis.from_url(world.url).script_flush()
        before = len(left)
        await asyncio.sleep(0.5)
        await stop(tasks)
        assert len(left) - before > 0.3 * PER_SECOND
        assert gate._desk._alone is None  # type: ignore[attr-defined]

    world.run(story())


def test_a_call_costs_a_small_part_of_a_round_trip(world: OnRedis) -> None:
    async def story() -> None:
        gates = [world.worker(rpm=60 * 2000, tpm=60 * 2_000_000, concurrency=200) for _ in range(2)]
        left: list[float] = []
        tasks = [asyncio.create_task(drive(world, gate, left, stay=0.05)) for gate in gates for _ in range(40)]
        await asyncio.sleep(1.5)
        await stop(tasks)
        stats: Any = redis.Redis.from_url(world.url).info("commandstats")
        assert len(left) > 300
        assert stats["cmdstat_evalsha"]["calls"] < len(left) / 5

    server_stats: Any = redis.Redis.from_url(world.url)
    server_stats.config_resetstat()
    world.run(story())


def test_idle_gates_leave_redis_alone(world: OnRedis) -> None:
    async def story() -> None:
        gate = world.worker(rpm=60 * PER_SECOND)
        (await gate.enter(input_tokens=1, output_tokens=1)).leave()
        await asyncio.sleep(0.8)
        client.config_resetstat()
        await asyncio.sleep(0.8)
        stats: Any = client.info("commandstats")
        assert "cmdstat_evalsha" not in stats

    client = redis.Redis.from_url(world.url)
    world.run(story())


def test_keys_go_when_nobody_uses_them_and_name_no_person(server: RedisServer) -> None:
    server.start()
    server.flush()
    deployment = Deployment(
        model="openai/gpt-4o-mini", api_base="https://jane.doe@vendor.example/v1", connection="jane_doe"
    )

    async def story() -> None:
        gates = open_gates({"small": deployment}, team="support", cache_url=server.url)
        passed = await gates["small"].enter(input_tokens=1, output_tokens=1)
        passed.leave()
        await gates["small"].close()

    asyncio.run(story())
    client = redis.Redis.from_url(server.url)
    keys: Any = client.keys("*")
    assert len(keys) == 1
    assert keys[0].startswith(b"ai:traffic:small:")
    assert b"jane" not in keys[0]
    assert b"jane" not in client.get(keys[0])  # type: ignore[operator]
    assert 3500 < client.ttl(keys[0]) <= 3601  # type: ignore[operator]


def test_gates_of_one_process_share_one_connection_and_part_by_place(server: RedisServer) -> None:
    server.start()
    server.flush()
    client = redis.Redis.from_url(server.url)
    names = {
        "a": Deployment(model="openai/x"),
        "b": Deployment(model="openai/x"),
        "c": Deployment(model="openai/x", api_base="http://c/v1"),
    }

    async def story() -> None:
        before: Any = client.info("clients")
        gates = open_gates(names, team="t", cache_url=server.url)
        for gate in gates.values():
            (await gate.enter(input_tokens=1, output_tokens=1)).leave()
        now: Any = client.info("clients")
        assert now["connected_clients"] - before["connected_clients"] == 1
        for gate in gates.values():
            await gate.close()
        while client.info("clients")["connected_clients"] != before["connected_clients"]:  # type: ignore[index] # noqa: ASYNC110
            await asyncio.sleep(0.02)

    asyncio.run(story())
    keys: Any = client.keys("*")
    assert len(keys) == 3


def test_what_is_no_redis_url_is_said_so_before_anything_starts() -> None:
    with pytest.raises(StoreUnavailable, match="not a Redis URL"):
        open_gates({"a": Deployment(model="openai/x")}, team="t", cache_url="postgresql://x")
    with pytest.raises(PolicyError, match="nothing is left for team 't'"):
        open_gates({"a": Deployment(model="openai/x", shares={"u": 1})}, team="t", cache_url=None)


async def test_without_redis_a_team_has_just_its_share() -> None:
    deployment = Deployment(model="openai/x", rpm="unlimited", concurrency=10, shares={"a": 0.3})
    (gate,) = open_gates({"d": deployment}, team="a", cache_url=None).values()
    entered = [asyncio.create_task(gate.enter(input_tokens=1, output_tokens=1)) for _ in range(10)]
    await asyncio.sleep(0.1)
    inside = [task.result() for task in entered if task.done()]
    assert len(inside) == 3
    for passed in inside:
        passed.leave()
    await gate.close()
    assert sum(isinstance(task.exception(), DeploymentResting) for task in entered if task.exception()) <= 7
    await asyncio.gather(*entered, return_exceptions=True)


def test_a_slow_reply_moves_no_permit_and_a_clock_set_back_is_noticed() -> None:
    clock = RemoteClock()
    assert clock.here(1000.0, received=5.001) == pytest.approx(5.001)
    assert clock.here(1001.0, received=6.4) == pytest.approx(6.001, abs=1e-3)
    assert clock.here(1002.0, received=7.0005) == pytest.approx(7.0005)
    assert clock.here(500.0, received=8.0) == pytest.approx(8.0)
    assert clock.here(501.0, received=9.2) == pytest.approx(9.0, abs=1e-3)


def test_the_script_is_plain_enough_to_read(server: RedisServer) -> None:
    """What is kept of a deployment is one packed value; its worker names are random."""
    server.start()
    server.flush()
    world = OnRedis(server.url)

    async def story() -> None:
        gate = world.worker("support")
        (await gate.enter(input_tokens=1, output_tokens=1)).leave()
        await asyncio.sleep(0.05)
        client = redis.Redis.from_url(server.url)
        keys: Any = client.keys("*")
        packed = client.eval("return cjson.encode(cmsgpack.unpack(redis.call('GET', KEYS[1])))", 1, *keys)
        state = json.loads(packed)  # type: ignore[arg-type]
        assert set(state) == {
            "adaptive",
            "caution",
            "circuit",
            "cool_until",
            "epoch",
            "hold_until",
            "schedules",
            "testing",
            "workers",
        }
        assert list(state["workers"]) == [gate._worker]

    world.run(story())
