"""Prices on the one path: what a row is billed at, what it stays billed at, and what it is measured against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.pipeline import House, deployment, invoiced, policy

from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.reports.reprice import policy_book, reprice
from airflow_ai_provider.core.pipeline.deployments import as_called
from airflow_ai_provider.core.policy import Deployment, load_policy
from airflow_ai_provider.core.settings import Endpoint, Settings
from airflow_ai_provider.testing.behaviour import Latency
from airflow_ai_provider.testing.invoice import Price
from airflow_ai_provider.testing.vendor import VendorDouble

LARGE = {"input_per_mtok": 10, "output_per_mtok": 20}
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


@pytest.fixture
def house(tmp_path: Path, vendor: VendorDouble) -> House:
    return House(tmp_path, vendor)


def two_tiers(**changes: Any) -> dict[str, Any]:
    deployments = {"small": deployment(), "large": deployment(model="openai/large", price=LARGE)}
    return policy(deployments=deployments, tiers={"simple": ["small"], "complex": ["large"]}, **changes)


def priced(row: dict[str, Any], *, input_nano: int, output_nano: int) -> int:
    return int(row["input_tokens"] * input_nano + row["output_tokens"] * output_nano)


def test_reads_and_writes_of_the_vendors_cache_are_charged_as_the_vendor_does(
    house: House, vendor: VendorDouble
) -> None:
    vendor.configure(
        prices={"*": Price("3", "15", cached_input="0.3", cache_write="3.75")}, cached_share=0.4, cache_write_share=0.7
    )
    own = {"input_per_mtok": 3, "output_per_mtok": 15, "cached_input_per_mtok": 0.3, "cache_write_per_mtok": 3.75}
    house.write(policy(deployments={"small": deployment(price=own)}))
    house.run([f"row {n} with a few more words than that" for n in range(20)])
    assert house.spent() == invoiced(vendor)
    lines = vendor.invoice()
    for name, said in (("cached_input_tokens", "cached_tokens"), ("cache_write_tokens", "cache_write_tokens")):
        assert sum(row[name] for row in house.requests()) == sum(getattr(line, said) for line in lines) > 20


def test_a_row_keeps_the_price_it_was_billed_at(house: House) -> None:
    cheap, dear = {"input_per_mtok": 1, "output_per_mtok": 1}, {"input_per_mtok": 3, "output_per_mtok": 3}
    house.write(policy(deployments={"small": deployment(price=cheap)}))
    house.run(["one", "two"], run_id="before")
    before = house.requests()
    house.write(policy(deployments={"small": deployment(price=dear)}))
    house.run(["one", "two"], run_id="after")
    assert house.requests(run_id="before") == before
    after = house.requests(run_id="after")
    assert sum(row["cost_nano"] for row in after) == 3 * sum(row["cost_nano"] for row in before)
    versions = [{row["price_version"] for row in rows} for rows in (before, after)]
    assert len(versions[0]) == len(versions[1]) == 1
    assert versions[0] != versions[1]
    now = load_policy(house.settings.policy_path)
    with open_ledger(house.settings.ledger_url, house.settings.home) as ledger:
        (sums,) = reprice(ledger, policy_book(now.deployments.get, now.digest)).groups.values()
    assert sums.repriced == 2 * sum(row["cost_nano"] for row in after)


def test_a_model_paid_by_time_costs_its_seconds_and_no_more_than_the_longest_timeout(
    house: House, vendor: VendorDouble
) -> None:
    vendor.configure(latency=Latency(0.05))
    timed = deployment(model="hosted_vllm/own", price={"per_second": 0.001}, timeout=20, timeout_max=30)
    house.write(policy(deployments={"small": timed}))
    house.run(["one", "two [[double:no_usage]]"])
    (ok,), (unknown,) = house.requests(status="ok"), house.requests(status="unknown")
    assert ok["latency_ms"] >= 50
    assert ok["cost_nano"] == ok["latency_ms"] * 1000
    assert unknown["cost_nano"] == 30 * 1_000_000


def test_the_baseline_is_what_the_highest_tier_would_have_charged(house: House) -> None:
    house.write(two_tiers(reuse={"scope": "team", "ttl": "1h"}))
    house.run(["one", "two"])
    house.run(["one"], run_id="again")
    for row in house.requests(status="ok"):
        assert row["baseline_nano"] == priced(row, input_nano=10_000, output_nano=20_000) > row["cost_nano"]
    assert [row["baseline_nano"] for row in house.requests(status="reused")] == [0]


def test_an_escalated_row_counts_once_in_the_baseline(house: House, vendor: VendorDouble) -> None:
    house.write(two_tiers(escalate={"on": ["schema"], "to": "complex"}))
    vendor.configure(script=["empty"])
    house.run(["hi"], output_schema=SCHEMA)
    first, second = house.requests()
    assert (first["tier"], second["tier"], second["baseline_nano"]) == ("simple", "complex", 0)
    assert first["baseline_nano"] == priced(first, input_nano=10_000, output_nano=20_000)


def test_rows_carry_the_vendors_name_of_their_answer(house: House, vendor: VendorDouble) -> None:
    house.run(["one", "two"])
    names = {f"chatcmpl-{line.request_id.removeprefix('req_')}" for line in vendor.invoice()}
    assert {row["vendor_request_id"] for row in house.requests()} == names


def test_a_price_follows_what_the_connection_adds(tmp_path: Path) -> None:
    endpoint = Endpoint(api_base="https://eu.api.openai.com/v1", extra={"vertex_location": "global", "seed": 1})
    settings = Settings(home=tmp_path, policy_path=tmp_path / "p", endpoint=lambda _: endpoint)
    called = as_called(Deployment(model="openai/x", connection="c", params={"seed": 2}), settings)
    assert called.api_base == "https://eu.api.openai.com/v1"
    assert called.params == {"vertex_location": "global", "seed": 2}
    own = Deployment(model="openai/x", connection="c", api_base="https://h/v1")
    assert as_called(own, settings).api_base == "https://h/v1"
    assert as_called(Deployment(model="openai/x"), settings) == Deployment(model="openai/x")
