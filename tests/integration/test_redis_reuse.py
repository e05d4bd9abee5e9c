"""Answers shared over Redis; and a Redis that goes away costs reuse, nothing else."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import pytest
import redis
from support.map_jobs import Lab, questions, write_jsonl
from support.redis_server import RedisServer

from airflow_ai_provider.testing.behaviour import Latency
from airflow_ai_provider.testing.vendor import VendorProcess

KEYRING = {"version": 1, "active": "k1", "keys": {"k1": {"secret": base64.b64encode(bytes(range(32))).decode()}}}
TEAM_REUSE = {"reuse": {"scope": "team", "ttl": "1h"}}


@pytest.mark.timeout(100)
def test_two_workers_share_answers(
    tmp_path: Path, paid_vendor: VendorProcess, postgres_url: str, empty_redis_url: str
) -> None:
    """Two machines: homes of their own, one ledger, one Redis, one keyring. Each asks half of what the other asks."""
    rows = questions(300)

    def worker(name: str) -> Lab:
        return Lab(
            tmp_path / name,
            paid_vendor,
            ledger_url=postgres_url,
            cache_url=empty_redis_url,
            route=TEAM_REUSE,
            home_name=name,
            keyring=KEYRING,
        )

    one, two = worker("one"), worker("two")
    one.folder.mkdir()
    two.folder.mkdir()
    first = one.run(write_jsonl(one.folder / "in.jsonl", rows[:200]))
    second = two.run(write_jsonl(two.folder / "in.jsonl", rows[100:]), caller={"run_id": "run-2"})
    assert (first["ok"], first["reused"]) == (200, 0)
    assert (second["ok"], second["reused"]) == (200, 100)
    invoice = paid_vendor.invoice()
    assert len(invoice) == 300
    answers = {row["id"]: row["answer"] for row in one.output()}
    shared = {row["id"]: row for row in two.output() if row["reused"]}
    assert shared.keys() == {row["id"] for row in rows[100:200]}
    assert all(row["answer"] == answers[key] and row["cost_usd"] == 0 for key, row in shared.items())
    with one.books() as books:
        books.assert_settled()
        books.assert_never_below(invoice)
        reused = books.requests("reused")
        paid = {row["row_key"]: row["cost_nano"] for row in books.requests("ok")}
    assert len(reused) == 100
    assert all(row["saved_nano"] == paid[row["row_key"]] and row["cost_nano"] == 0 for row in reused)
    assert second["saved_usd"] == f"{sum(row['saved_nano'] for row in reused) / 1e9:.9f}"
    assert not (one.home / "responses.db").exists()


@pytest.mark.timeout(100)
def test_redis_dies_in_the_middle(
    tmp_path: Path, paid_vendor: VendorProcess, redis_service: RedisServer, empty_redis_url: str
) -> None:
    paid_vendor.configure(latency=Latency(0.05), hold_after=150)
    lab = Lab(tmp_path, paid_vendor, cache_url=empty_redis_url, route=TEAM_REUSE, deployment={"concurrency": 16})
    rows = questions(400)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    process = lab.start(lab.spec(source))
    try:
        while paid_vendor.stats().requests < 150:
            assert process.running
            time.sleep(0.005)
        redis_service.crash()
        paid_vendor.configure(hold_after=None)
        summary = process.summary()
        without = lab.run(source, caller={"run_id": "run-2"})
    finally:
        redis_service.start()
    assert (summary["ok"], summary["error"], summary["reused"]) == (400, 0, 0)
    assert (without["ok"], without["error"], without["reused"]) == (400, 0, 0)
    invoice = paid_vendor.invoice()
    assert len(invoice) == 800
    assert process.log_file.read_text().count("rows are answered without reuse until it is back") == 1
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(invoice)
        assert len(books.requests("ok")) == len(books.requests()) == 800


@pytest.mark.timeout(100)
def test_redis_comes_back_in_the_middle(
    tmp_path: Path, paid_vendor: VendorProcess, redis_service: RedisServer, empty_redis_url: str
) -> None:
    """A job that began without Redis uses it once it is there."""
    paid_vendor.configure(latency=Latency(0.05), hold_after=100)
    lab = Lab(tmp_path, paid_vendor, cache_url=empty_redis_url, route=TEAM_REUSE, deployment={"concurrency": 16})
    source = write_jsonl(tmp_path / "in.jsonl", questions(600))
    redis_service.crash()
    try:
        process = lab.start(lab.spec(source))
        while paid_vendor.stats().requests < 100:
            assert process.running
            time.sleep(0.005)
    finally:
        redis_service.start()
    answered = 100
    while not stored(redis_service):  # the job asks a store that was away again after a while only
        answered += 8
        assert answered < 450, "Redis is not used although it is there"
        paid_vendor.configure(hold_after=answered)
        time.sleep(0.2)
    paid_vendor.configure(hold_after=None)
    assert process.summary()["ok"] == 600
    later = lab.run(source, caller={"run_id": "run-2"})
    assert (later["ok"], later["error"]) == (600, 0)
    assert later["reused"] > 100
    assert len(paid_vendor.invoice()) == 1200 - later["reused"]
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(paid_vendor.invoice())


def stored(server: RedisServer) -> bool:
    """Whether Redis holds anything."""
    with redis.Redis.from_url(server.url) as client:
        return bool(client.dbsize())
