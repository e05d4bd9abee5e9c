"""Deadlines: of a row, from its first request on; of a batch, whatever its rows wait for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pipeline import House, deployment, invoiced, policy

from airflow_ai_provider.testing.vendor import VendorDouble


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with VendorDouble() as vendor:
        yield House(tmp_path, vendor)


def test_a_row_is_not_tried_beyond_its_deadline(house: House) -> None:
    """The second try would wait for longer than the row has: it is given up at once."""
    assert house.vendor is not None
    house.vendor.configure(script=["429", "ok"], retry_after=30.0)
    house.write(policy(deadline={"row": 5}, retry={"attempts": 3, "wait": 20, "max_wait": 60}))
    outcome = house.run(["late"])
    (row,) = outcome.rows
    assert row["status"] == "error"
    assert "rate_limited" in row["error"]
    assert house.vendor.stats().requests == 1
    assert house.left_over() == (0, 0)


def test_a_request_is_given_up_when_its_row_is(house: House) -> None:
    """A vendor that hangs is waited for until the deadline, not until the deployment's time-out."""
    assert house.vendor is not None
    house.vendor.configure(script=["hang_billed"])
    house.write(policy(deployments={"small": deployment(timeout=60)}, deadline={"row": 1}))
    (row,) = house.run(["slow"]).rows
    assert row["status"] == "error"
    (request,) = house.requests()
    assert (request["status"], request["error_type"]) == ("unknown", "timeout")
    assert request["latency_ms"] < 20_000
    assert house.spent() >= invoiced(house.vendor) > 0


def test_a_batch_has_a_deadline_for_what_waits(house: House) -> None:
    """Rows that still wait for their turn get an error of that name, and nothing was sent for them."""
    assert house.vendor is not None
    house.vendor.configure(script=["hang"])
    house.write(policy(deployments={"small": deployment(concurrency=1)}, deadline={"batch": 1}))
    rows = house.run(["first", "second", "third"]).rows
    assert [row["status"] for row in rows] == ["error"] * 3
    assert sorted(row["error"].partition(":")[0] for row in rows) == ["deadline", "deadline", "timeout"]
    assert house.vendor.stats().requests == 1
    assert house.left_over() == (0, 0)
