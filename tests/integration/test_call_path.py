"""The call path over several processes: one answer for equal requests, an outage of a deployment, a Redis that dies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.map_jobs import PRICE, Lab, questions, write_jsonl
from support.map_process import JobProcess
from support.redis_server import RedisServer

from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.testing.behaviour import Behaviour, Faults, Latency
from airflow_ai_provider.testing.vendor import VendorProcess

PROCESSES = 4
TEAM_REUSE = {"reuse": {"scope": "team", "ttl": "1h"}}
ANSWERS_PER_SECOND = 60
UP, DOWN = Faults(), Faults(rate_503=1.0)


def start_shards(lab: Lab, source: str) -> list[JobProcess]:
    """The same job, dealt over four processes that start together."""
    specs = [lab.spec(source, shard=Shard(n, PROCESSES), caller={"map_index": n}) for n in range(PROCESSES)]
    return [lab.start(spec) for spec in specs]


def with_duplicates(count: int, share: float) -> list[dict[str, Any]]:
    """Rows of which a share asks what another row asks, far from it, so that another process has that one."""
    distinct = questions(int(count * (1 - share)))
    again = [
        {"id": f"again-{n}", "text": distinct[n * 7 % len(distinct)]["text"]} for n in range(count - len(distinct))
    ]
    rows: list[dict[str, Any]] = []
    for number in range(count):  # evenly mixed
        rows.append(again.pop() if again and (number * 3) % 10 < 3 else (distinct or again).pop())
    return rows


@pytest.mark.timeout(150)
@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_equal_requests_of_four_processes_are_billed_once(
    tmp_path: Path, paid_vendor: VendorProcess, postgres_url: str, empty_redis_url: str, store: str
) -> None:
    """2,000 rows, 30 % of them duplicates, four processes started together: each distinct request once."""
    paid_vendor.configure(latency=Latency(0.05, 0.04))
    cache = empty_redis_url if store == "redis" else None
    lab = Lab(tmp_path, paid_vendor, ledger_url=postgres_url, cache_url=cache, route=TEAM_REUSE)
    rows = with_duplicates(2000, 0.3)
    distinct = len({row["text"] for row in rows})
    assert distinct == 1400
    summaries = [process.summary() for process in start_shards(lab, write_jsonl(tmp_path / "in.jsonl", rows))]
    assert sum(summary["ok"] for summary in summaries) == 2000
    assert sum(summary["reused"] for summary in summaries) == 600
    invoice = paid_vendor.invoice()
    assert len(invoice) == distinct
    assert paid_vendor.stats().requests == distinct
    texts = {row["id"]: row["text"] for row in rows}
    answers: dict[str, set[str]] = {}
    for row in lab.output():
        answers.setdefault(texts[row["id"]], set()).add(row["answer"])
    assert Counter(map(len, answers.values())) == {1: distinct}
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(invoice)


def sent_until(vendors: Sequence[VendorProcess], requests: int) -> None:
    """Wait until the vendors together have seen so many requests."""
    while sum(vendor.stats().requests for vendor in vendors) < requests:
        time.sleep(0.05)


@pytest.mark.timeout(150)
def test_an_outage_is_left_and_come_back_from(
    tmp_path: Path, paid_vendor: VendorProcess, postgres_url: str, empty_redis_url: str
) -> None:
    """While the first deployment is down all workers use the second, but for a probe now and then; they come back."""
    with VendorProcess(prices={"*": PRICE}, latency=Latency(0.1)) as second:
        paid_vendor.configure(latency=Latency(0.1))
        lab = two_deployments(tmp_path, paid_vendor, second, postgres_url, empty_redis_url)
        rows = questions(ANSWERS_PER_SECOND * 40)
        processes = start_shards(lab, write_jsonl(tmp_path / "in.jsonl", rows))
        sent_until([paid_vendor], 200)
        before = paid_vendor.stats().requests
        paid_vendor.configure(faults=DOWN)
        down_at = time.monotonic()
        sent_until([second], ANSWERS_PER_SECOND * 12)
        during = paid_vendor.stats().requests - before
        # What was out when it went down, and probes: a few at first, then one in five seconds.
        assert during <= 40 + 10 + (time.monotonic() - down_at) / 5
        paid_vendor.configure(faults=UP)
        back = paid_vendor.stats().requests
        sent_until([paid_vendor], back + 100)
        summaries = [process.summary() for process in processes]
        invoices = [*paid_vendor.invoice(), *second.invoice()]
    assert sum(summary["ok"] for summary in summaries) == len(rows)
    assert len(invoices) == len(rows)
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(invoices)
        paid = books.requests("ok")
        assert sum(row["cost_nano"] for row in books.requests()) == sum(line.cost_nanodollars for line in invoices)
    reasons = Counter(row["fallback_reason"] for row in paid if row["deployment"] == "second")
    assert reasons["circuit_open"] > ANSWERS_PER_SECOND * 6
    assert all(row["fallback_from"] == "small" for row in paid if row["deployment"] == "second")
    assert all(
        row["fallback_from"] is None for row in paid if row["deployment"] == "small" and row["error_type"] is None
    )


def two_deployments(folder: Path, first: VendorProcess, second: VendorProcess, ledger_url: str, cache_url: str) -> Lab:
    """A tier of two deployments, paced so that a job of some thousand rows lasts."""
    limits = {"rpm": ANSWERS_PER_SECOND * 60, "concurrency": 10}

    class TwoDeployments(Lab):
        def policy(self) -> dict[str, Any]:
            made = super().policy()
            small = made["deployments"]["small"]
            made["deployments"]["second"] = {**small, "api_base": second.base_url}
            made["routes"]["support"]["tiers"] = {"simple": ["small", "second"]}
            return made

    return TwoDeployments(
        folder, first, ledger_url=ledger_url, cache_url=cache_url, deployment=limits, route=TEAM_REUSE
    )


@pytest.mark.timeout(200)
def test_a_redis_that_is_killed_and_started_again_in_mid_run(
    tmp_path: Path, postgres_url: str, redis_service: RedisServer, empty_redis_url: str
) -> None:
    """No row is lost, nothing is overspent. That the limit holds as well is shown in tests/timing."""
    run_over_a_killed_redis(tmp_path, postgres_url, redis_service, empty_redis_url)


def run_over_a_killed_redis(tmp_path: Path, postgres_url: str, redis_service: RedisServer, empty_redis_url: str) -> int:
    """Answer every row while Redis is killed and comes back empty; returns how many calls were over the limit."""
    limits = Behaviour().limits
    with VendorProcess(
        prices={"*": PRICE},
        latency=Latency(0.05, 0.04),
        limits=type(limits)(requests_per_minute=250, window_s=5.0),
    ) as vendor:
        lab = Lab(
            tmp_path,
            vendor,
            ledger_url=postgres_url,
            cache_url=empty_redis_url,
            route=TEAM_REUSE,
            deployment={"rpm": 3000},
        )
        rows = questions(1200)
        processes = start_shards(lab, write_jsonl(tmp_path / "in.jsonl", rows))
        sent_until([vendor], 200)
        redis_service.crash()
        sent_until([vendor], 350)
        redis_service.start()
        summaries = [process.summary(150) for process in processes]
        invoice, stats = vendor.invoice(), vendor.stats()
    assert sum(summary["ok"] for summary in summaries) == len(rows)
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(invoice)
        assert books.budget()["spent_nano"] <= books.budget()["limit_nano"]
        assert sum(row["cost_nano"] for row in books.requests()) == sum(line.cost_nanodollars for line in invoice)
    return stats.outcomes.get("over_limit", 0)
