"""A Redis that answers and refuses: told once as what it is, asked again seldom, and no row the worse for it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from support.redis_server import RedisServer, redis_server

from airflow_ai_provider.core.cache.backend import StoreRefused
from airflow_ai_provider.core.cache.redis_backend import RedisResponses
from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.ratelimit import open_gates
from airflow_ai_provider.core.redis_errors import refusal_of
from airflow_ai_provider.errors import StoreUnavailable

SECRET = "s3cret-pass"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of this test's own, to be set up wrongly."""
    with redis_server() as started:
        yield started


def full(client: Any, server: RedisServer) -> str:
    client.set("other", b"x" * 2_000_000)
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1mb")
    return server.url


def no_scripts(client: Any, server: RedisServer) -> str:
    client.execute_command("ACL", "SETUSER", "jane", "on", f">{SECRET}", "~ai:*", "+@all", "-@scripting")
    return server.url.replace("redis://", f"redis://jane:{SECRET}@")


def other_keys(client: Any, server: RedisServer) -> str:
    client.execute_command("ACL", "SETUSER", "jane", "on", f">{SECRET}", "~other:*", "+@all")
    return server.url.replace("redis://", f"redis://jane:{SECRET}@")


def replica(client: Any, server: RedisServer) -> str:
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    return server.url


def password_needed(client: Any, server: RedisServer) -> str:
    client.config_set("requirepass", SECRET)
    return server.url


def wrong_password(client: Any, server: RedisServer) -> str:
    client.config_set("requirepass", "another")
    return server.url.replace("redis://", f"redis://:{SECRET}@")


def no_disk(client: Any, server: RedisServer) -> str:
    shutil.rmtree(server.folder)
    client.config_set("save", "1 1")
    client.set("other", 1)
    client.bgsave()
    while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
        time.sleep(0.02)
    return server.url


WAYS: dict[Callable[[Any, RedisServer], str], str] = {
    full: "memory is full",
    no_scripts: "lacks a permission",
    other_keys: "lacks a permission",
    replica: "read-only replica",
    password_needed: "check user and password",
    wrong_password: "check user and password",
    no_disk: "cannot save to its disk",
}


@pytest.mark.parametrize("spoil", WAYS, ids=lambda way: way.__name__)
def test_pacing_says_once_what_it_is_and_goes_on(
    server: RedisServer, spoil: Callable[[Any, RedisServer], str], caplog: pytest.LogCaptureFixture
) -> None:
    url = spoil(redis.Redis.from_url(server.url), server)
    calls = 0

    async def story() -> None:
        nonlocal calls
        named = {name: Deployment(model="openai/x", rpm=60_000, concurrency=200) for name in "ab"}
        gates = open_gates(named, team="t", cache_url=url)
        for _ in range(20):
            for gate in gates.values():
                (await gate.enter(input_tokens=1, output_tokens=1)).leave()
                calls += 1
        for gate in gates.values():
            assert gate._desk._alone is not None  # type: ignore[attr-defined]
            await gate.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(story())
    said = [record.getMessage() for record in caplog.records if "pacing" in record.getMessage()]
    assert calls == 40
    assert len(said) == 1
    assert WAYS[spoil] in said[0]
    assert "cache_conn_id" in said[0]
    assert SECRET not in caplog.text
    assert "jane" not in caplog.text


@pytest.mark.parametrize("spoil", WAYS, ids=lambda way: way.__name__)
async def test_the_response_store_says_what_it_is(
    server: RedisServer, spoil: Callable[[Any, RedisServer], str]
) -> None:
    responses = RedisResponses(spoil(redis.Redis.from_url(server.url), server))
    with pytest.raises(StoreRefused, match=WAYS[spoil]) as refused:
        await responses.claim([b"k" * 32], "owner")
    assert SECRET not in str(refused.value)
    await responses.close()


async def test_a_redis_cluster_is_told_as_one(tmp_path: Any) -> None:
    class Cluster(RedisServer):
        def command(self) -> list[str]:
            return [*super().command(), "--cluster-enabled", "yes"]

    with ExitStack() as stack:
        server = Cluster(tmp_path)
        stack.callback(server.stop)
        server.start()
        responses = RedisResponses(server.url)
        with pytest.raises(StoreRefused, match="Redis Cluster, which is not supported"):
            await responses.claim([b"k" * 32], "owner")
        await responses.close()


async def test_one_that_is_away_is_no_refusal(server: RedisServer) -> None:
    responses = RedisResponses(server.url)
    server.stop()
    with pytest.raises(StoreUnavailable) as away:
        await responses.claim([b"k" * 32], "owner")
    assert not isinstance(away.value, StoreRefused)
    assert refusal_of(redis.exceptions.TimeoutError("slow")) is None
    assert refusal_of(redis.exceptions.NoScriptError("gone")) is None
    await responses.close()
