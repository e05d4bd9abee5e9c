"""Four worker processes before one vendor, on an idle machine: its limit, shares, an outage, a dead worker, no Redis.

What takes a minute to show, such as how much of the limit is used, is in benchmarks/bench_pacing.py.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.redis_server import RedisServer, redis_server

from airflow_ai_provider.testing.behaviour import Faults, Latency, Limits
from airflow_ai_provider.testing.journal import read_requests
from airflow_ai_provider.testing.vendor import VendorProcess

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from pacing_worker import Load, Report, Worker, start

PER_SECOND = 100
PACED = {"model": "openai/m", "rpm": 60 * PER_SECOND, "concurrency": 64}
REFUSED = 0.01
"""Over a minute it is half of that (bench_pacing.py); a test is short, and one pause of the machine weighs more."""
JITTER = 1.05
"""Requests that leave evenly do not arrive evenly at a vendor that shares two busy cores with its clients."""


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis of this test's own, to be killed."""
    with redis_server() as server:
        yield server


@pytest.fixture
def strict_vendor(tmp_path: Path) -> Iterator[VendorProcess]:
    """Takes 100 requests in any second."""
    limits = Limits(PER_SECOND, None, 1.0)
    with VendorProcess(limits=limits, latency=Latency(0.05), requests_file=tmp_path / "requests.jsonl") as double:
        yield double


def load(vendor: VendorProcess, redis_url: str, seconds: float, **said: Any) -> Load:
    rest: dict[str, Any] = {"deployments": {"m": PACED}, "rows_at_once": 12, "cache_url": redis_url} | said
    return Load({"m": vendor.base_url}, seconds=seconds, **rest)


def arrivals(vendor: VendorProcess) -> list[float]:
    assert vendor.requests_file is not None
    return sorted(request.at for request in read_requests(vendor.requests_file))


def most_in(moments: Sequence[float], window: float) -> int:
    return max(bisect_left(moments, moment + window) - place for place, moment in enumerate(moments))


def added_up(reports: Sequence[Report], deployment: str = "m") -> Counter[str]:
    return sum((Counter(report.statuses[deployment]) for report in reports), Counter[str]())


def reports_of(workers: Sequence[Worker]) -> list[Report]:
    try:
        return [worker.report() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


def assert_limit_held(vendor: VendorProcess, reports: Sequence[Report]) -> None:
    statuses = added_up(reports)
    assert statuses.keys() <= {"200", "429"}
    assert statuses["429"] <= REFUSED * statuses.total()
    moments = arrivals(vendor)
    assert most_in(moments, 1.0) <= PER_SECOND * JITTER
    assert most_in(moments, 4.0) <= 4 * PER_SECOND


def test_four_workers_of_two_teams_keep_within_a_vendors_limit_and_their_shares(
    strict_vendor: VendorProcess, own_redis: RedisServer
) -> None:
    shares = {"search": 0.7, "support": 0.3}
    said = {"deployments": {"m": PACED | {"shares": shares}}}
    teams = ("search", "support", "search", "support")
    reports = reports_of(start([load(strict_vendor, own_redis.url, 10, team=team, **said) for team in teams]))
    assert_limit_held(strict_vendor, reports)
    assert strict_vendor.requests_file is not None
    sent = Counter(request.headers["x-team"] for request in read_requests(strict_vendor.requests_file))
    for team, share in shares.items():
        assert sent[team] / sent.total() == pytest.approx(share, rel=0.05)


def test_redis_that_is_killed_and_restarted_stops_nobody_and_exceeds_no_limit(
    strict_vendor: VendorProcess, own_redis: RedisServer
) -> None:
    workers = start([load(strict_vendor, own_redis.url, 9) for _ in range(4)])
    time.sleep(3)
    own_redis.crash()
    gone = time.time()
    time.sleep(2.5)
    back = time.time()
    own_redis.start()
    reports = reports_of(workers)
    assert_limit_held(strict_vendor, reports)
    moments = arrivals(strict_vendor)
    meanwhile = bisect_left(moments, back) - bisect_left(moments, gone)
    assert meanwhile > 0.25 * PER_SECOND * (back - gone)
    assert len(moments) - bisect_left(moments, back + 1.5) > PER_SECOND / 2
    assert min(report.statuses["m"]["200"] for report in reports) > 0.5 * added_up(reports)["200"] / 4


def test_an_outage_makes_everybody_fall_back_and_sends_next_to_nothing_there(own_redis: RedisServer) -> None:
    said = {name: {"model": f"openai/{name}", "rpm": 60 * PER_SECOND, "concurrency": 64} for name in ("a", "b")}
    with VendorProcess(latency=Latency(0.02)) as first, VendorProcess(latency=Latency(0.02)) as second:
        urls = {"a": first.base_url, "b": second.base_url}
        workers = start([Load(urls, said, 16, 8, own_redis.url) for _ in range(4)])
        time.sleep(2)
        first.configure(faults=Faults(rate_503=1.0))
        time.sleep(5)
        before = first.stats().outcomes
        first.configure(faults=Faults())
        reports = reports_of(workers)
        after = first.stats().outcomes
    failures = before["503"]
    assert 5 <= failures <= 30  # what was under way, and a probe now and then; unbroken it would be 500
    assert after["ok"] - before["ok"] > PER_SECOND
    for report in reports:
        states = [state for _, name, state in report.changes if name == "a"]
        assert states[0] == "open"
        assert states[-1] == "closed"
        assert report.unanswered == 0
        assert report.statuses["b"]["200"] > PER_SECOND / 4
        assert not [change for change in report.changes if change[1] == "b"]


def test_the_slots_of_a_worker_that_is_killed_come_back(own_redis: RedisServer, tmp_path: Path) -> None:
    narrow = {"deployments": {"m": {"model": "openai/m", "rpm": "unlimited", "concurrency": 4}}}
    with VendorProcess(latency=Latency(60.0), requests_file=tmp_path / "requests.jsonl") as vendor:
        (doomed,) = start([load(vendor, own_redis.url, 60, **narrow)])
        while vendor.stats().requests < 4:
            time.sleep(0.05)
        (heir,) = start([load(vendor, own_redis.url, 14, **narrow)])
        time.sleep(1.5)
        assert vendor.stats().requests == 4
        doomed.kill()
        killed = time.time()
        vendor.configure(latency=Latency(0.05))
        (report,) = reports_of([heir])
        moments = arrivals(vendor)
    assert moments[4] > killed
    assert report.statuses["m"]["200"] > 20
