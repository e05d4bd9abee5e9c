"""From a row to its review item: what a job sends to people, and what it takes back, on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.pipeline import House, deployment, invoiced, policy
from test_pipeline_audited import events, kinds, reconciled

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.reviews import decide, list_reviews
from airflow_ai_provider.testing.vendor import VendorDouble

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
PRICE = {"input_per_mtok": 0.15, "output_per_mtok": 0.60}
FIRST = Caller("dag", "run-1", "answer")


@pytest.fixture(params=["sqlite", "postgresql"])
def house(request: pytest.FixtureRequest, tmp_path: Path, vendor: VendorDouble) -> House:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    return House(tmp_path, vendor, ledger_url=url)


def items(house: House) -> dict[str, tuple[str, str]]:
    """Kind of reason and status by row; a row has one item in these tests."""
    with open_ledger(house.settings.ledger_url, house.settings.home) as ledger, ledger.read() as conn:
        found = list_reviews(conn, status=None)
    assert len({item["row_key"] for item in found}) == len(found)
    return {item["row_key"]: (item["reason_kind"], item["status"]) for item in found}


def said(house: House) -> list[str]:
    return [event["event.action"] for event in events(house) if event["event.action"].startswith("review.")]


def again(house: House, rows: list[Any], number: int, **job: Any) -> list[str]:
    statuses: list[str] = house.run(rows, caller=replace(FIRST, try_number=number), **job).column("status")
    return statuses


def test_a_refused_row_waits_the_batch_goes_on_and_a_later_answer_ends_the_waiting(
    house: House, vendor: VendorDouble
) -> None:
    vendor.configure(script=["content_policy"])
    house.write(policy(deployments={"small": deployment(concurrency=1)}))
    statuses = again(house, ["one", "two", "three"], 1)
    assert sorted(statuses) == ["error", "ok", "ok"]
    refused = f"r{statuses.index('error')}"
    assert items(house) == {refused: ("content_policy", "open")}
    assert again(house, ["one", "two", "three"], 2) == ["ok"] * 3
    assert items(house) == {refused: ("content_policy", "answered")}
    assert said(house) == ["review.requested", "review.answered"]
    assert kinds(reconciled(house)) == []
    assert house.spent() >= invoiced(vendor)


def test_an_answer_that_no_tier_gets_right_waits_once_however_often_the_task_is_tried(
    house: House, vendor: VendorDouble
) -> None:
    """One row of the part is in error, so that the next try walks the rejected one again."""
    places = {"small": deployment(concurrency=1), "large": deployment(model="openai/large", price=PRICE)}
    tiers = {"simple": ["small"], "complex": ["large"]}
    retry = {"attempts": 1, "wait": 0.001, "max_wait": 0.002}
    house.write(policy(deployments=places, tiers=tiers, escalate={"on": ["schema"], "to": "complex"}, retry=retry))
    vendor.configure(script=["empty", "empty", "503", "empty"])
    assert sorted(again(house, ["one", "two"], 1, output_schema=SCHEMA)) == ["error", "rejected"]
    (waiting,) = before = items(house)
    assert before[waiting] == ("schema", "open")
    assert sorted(again(house, ["one", "two"], 2, output_schema=SCHEMA)) == ["ok", "rejected"]
    assert items(house) == before
    assert said(house) == ["review.requested"]


def test_rows_that_cannot_be_rendered_wait_and_those_of_an_unwell_deployment_do_not(
    house: House, vendor: VendorDouble
) -> None:
    house.write(policy(retry={"attempts": 1, "wait": 0.001, "max_wait": 0.002}))
    vendor.configure(script=["503"])
    rows = [{"text": "no number", "n": 0}, {"text": "a number", "n": 4}]
    statuses = again(house, rows, 1, prompt="{{ text }}: {{ 1 / n }}")
    assert statuses == ["error", "error"]
    assert items(house) == {"r0": ("prompt", "open")}
    assert vendor.stats().requests == 1


def test_what_was_decided_does_not_come_back_with_a_retry(house: House, vendor: VendorDouble) -> None:
    house.write(policy(deployments={"small": deployment(concurrency=1)}, retry={"attempts": 1, "wait": 0.001}))
    vendor.configure(script=["empty", "503"])
    first = again(house, ["one", "two"], 1, output_schema=SCHEMA)
    assert sorted(first) == ["error", "rejected"]
    (key,) = items(house)
    with open_ledger(house.settings.ledger_url, house.settings.home) as ledger, ledger.write() as conn:
        (item,) = list_reviews(conn)
        decide(conn, item["item_id"], "accepted", by="ada", note=None, now=datetime.now(UTC))
    assert sorted(again(house, ["one", "two"], 2, output_schema=SCHEMA)) == ["ok", "rejected"]
    assert items(house) == {key: ("empty", "decided")}
    assert kinds(reconciled(house)) == ["ledger_without_event"], "decided past the command, and so past the trail"


def test_a_row_too_large_for_every_deployment_waits(house: House, vendor: VendorDouble) -> None:
    assert again(house, ["word " * 400_000], 1) == ["error"]
    assert items(house) == {"r0": ("context_window", "open")}
    assert vendor.stats().requests == 0


def test_an_attempt_names_the_deployment_before_it_and_never_itself(house: House, vendor: VendorDouble) -> None:
    places = {"small": deployment(), "large": deployment()}
    house.write(policy(deployments=places, tiers={"simple": ["small", "large"]}, retry={"attempts": 2, "wait": 0.001}))
    vendor.configure(script=["429", "429", "429", "ok"])
    assert again(house, ["one"], 1) == ["ok"]
    way = [(row["deployment"], row["fallback_from"], row["fallback_reason"]) for row in house.requests()]
    assert way == [
        ("small", None, None),
        ("small", None, None),
        ("large", "small", "rate_limited"),
        ("large", "small", "rate_limited"),
    ]
    calls = [event for event in events(house) if event["event.action"] == "llm.call"]
    assert [call.get("airflow_ai.fallback_from") for call in calls] == [None, None, "small", "small"]
