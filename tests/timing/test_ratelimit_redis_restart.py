"""What a restart of Redis does to the rate; on an idle machine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.redis_server import RedisServer, redis_server

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "core" / "ratelimit"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from support.ratelimit import OnRedis
from test_call_path import run_over_a_killed_redis
from test_ratelimit_redis import PER_SECOND, drive, stop


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of this test's own, to be killed."""
    with redis_server() as started:
        yield started


def most_in_a_second(moments: list[float]) -> int:
    moments = sorted(moments)
    return max(sum(start <= at < start + 1 for at in moments) for start in moments)


def test_redis_that_is_killed_and_comes_back_empty_stops_nobody_and_lets_nobody_be_faster(
    server: RedisServer,
) -> None:
    world = OnRedis(server.url)

    async def story() -> None:
        gates = [world.worker(rpm=60 * PER_SECOND) for _ in range(2)]
        left: list[float] = []
        tasks = [asyncio.create_task(drive(world, gate, left)) for gate in gates for _ in range(10)]
        await asyncio.sleep(0.7)
        await asyncio.to_thread(server.crash)
        gone = world.clock()
        await asyncio.sleep(1.5)
        back = world.clock()
        await asyncio.to_thread(server.start)
        await asyncio.sleep(2.0)
        end = world.clock()
        await stop(tasks)
        assert most_in_a_second(left) <= PER_SECOND * 1.08  # jitter of a busy machine
        assert sum(gone + 0.5 <= at < back for at in left) > 0.5 * PER_SECOND * (back - gone - 0.5)
        assert sum(end - 1 <= at for at in left) > 0.7 * PER_SECOND
        assert all(gate._desk._alone is None for gate in gates)  # type: ignore[attr-defined]

    world.run(story())


@pytest.mark.timeout(200)
def test_jobs_whose_redis_is_killed_never_exceed_the_vendors_limit(
    tmp_path: Path, postgres_url: str, redis_service: RedisServer, empty_redis_url: str
) -> None:
    assert run_over_a_killed_redis(tmp_path, postgres_url, redis_service, empty_redis_url) == 0
