"""Two deployments of a tier: who is asked how often while one of them rests, and who waits for whom until when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.pipeline import House, deployment, policy

from airflow_ai_provider.core.pipeline import retry, transitions
from airflow_ai_provider.core.pipeline.audit_log import AuditLog
from airflow_ai_provider.errors import AuditError
from airflow_ai_provider.testing.behaviour import Faults, Latency
from airflow_ai_provider.testing.vendor import VendorDouble


@dataclass
class Pair:
    """A house whose tier asks ``first``, and then the house's own vendor."""

    house: House
    first: VendorDouble
    second: VendorDouble


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with VendorDouble() as first, VendorDouble() as second:
        house = House(tmp_path, second)
        deployments = {
            "first": deployment(connection=None, api_base=first.base_url, adapter="openai_compatible"),
            "second": deployment(),
        }
        retry = {"attempts": 3, "wait": 0.001, "max_wait": 0.002}
        house.write(policy(deployments=deployments, tiers={"simple": ["first", "second"]}, retry=retry))
        yield Pair(house, first, second)


def test_a_row_has_its_attempts_once_while_another_deployment_rests(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that always fails and is charged for it is not asked anew each time it looks for the one that rests."""
    monkeypatch.setattr(transitions, "_LOOK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(retry, "LEAST_PATIENCE", 2.0)
    pair.first.configure(faults=Faults(rate_503=1.0))
    rows = [f"question {number}" for number in range(40)] + ["poison [[double:drop_after]]"]
    outcome = pair.house.run(rows)
    *others, poison = sorted(outcome.rows, key=lambda row: row["text"].startswith("poison"))
    assert {row["status"] for row in others} == {"ok"}
    assert poison["status"] == "error"
    asked = pair.house.requests(row_key=poison["id"], deployment="second")
    assert [(row["status"], row["error_type"]) for row in asked] == [("unknown", "connection_lost")] * 3
    assert pair.house.left_over() == (0, 0)


def test_a_circuit_that_cannot_be_audited_stops_no_row(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the listener of a circuit raises is not the gate's: rows go on to the other deployment."""

    def refuse(*_: object, **__: object) -> None:
        raise AuditError("the disk is full")

    monkeypatch.setattr(AuditLog, "circuit_changed", refuse)
    pair.first.configure(faults=Faults(rate_503=1.0))
    outcome = pair.house.run([f"question {number}" for number in range(40)])
    assert outcome.summary.ok == 40
    assert {row["fallback_reason"] for row in pair.house.requests(deployment="second")} >= {"circuit_open"}


@pytest.mark.timeout(60)
def test_a_row_waits_for_anothers_answer_until_its_batch_must_be_done(tmp_path: Path) -> None:
    """The other one is answered; the row that waited for the same request says that its time was over."""
    with VendorDouble(latency=Latency(3.0)) as vendor:
        house = House(tmp_path, vendor)
        house.write(policy(deadline={"batch": 1}, reuse={"scope": "team"}))
        outcome = house.run(["the same", "the same"])
    kinds = [row["error"].partition(":")[0] for row in outcome.rows]
    assert [row["status"] for row in outcome.rows] == ["error", "error"]
    assert sorted(kinds) == ["deadline", "timeout"]
    assert len(house.requests()) == 1
    assert house.left_over() == (0, 0)
