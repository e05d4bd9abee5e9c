"""A job that is told to stop: nothing more is sent, what is out is settled, and the next try pays nothing twice."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.pipeline import House, deployment, invoiced, policy

from airflow_ai_provider.core.jobs import runner
from airflow_ai_provider.testing.behaviour import Latency
from airflow_ai_provider.testing.vendor import VendorDouble

ROWS = [f"question {number}" for number in range(60)]


class TaskTimeout(BaseException):
    """What Airflow raises in the main thread when a task's time is over: no ``Exception``."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with VendorDouble(latency=Latency(0.4)) as vendor:
        made = House(tmp_path, vendor)
        made.write(policy(deployments={"small": deployment(concurrency=5)}))
        yield made


@contextmanager
def raised_once_sent(house: House, requests: int, error: Callable[[], BaseException]) -> Iterator[None]:
    """A signal handler raises the error in the main thread once the vendor has seen so many requests."""
    vendor = house.vendor
    assert vendor is not None

    def handler(*_: Any) -> None:
        raise error()

    def watch() -> None:
        while vendor.stats().requests < requests:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("error", [TaskTimeout, SystemExit, KeyboardInterrupt])
def test_what_is_out_comes_back_and_nothing_more_is_sent(house: House, error: type[BaseException]) -> None:
    """The calls in flight are settled at what they cost; the rows that waited were never sent."""
    assert house.vendor is not None
    with raised_once_sent(house, 8, error), pytest.raises(error):
        house.run(ROWS)
    rows = house.requests()
    assert 0 < len(rows) < len(ROWS)
    # An attempt may be in the ledger already, and not sent, when the job is told to stop.
    sent = [row for row in rows if row["error_type"] != "stopped"]
    assert {row["status"] for row in sent} == {"ok"}
    assert house.spent() == invoiced(house.vendor)
    assert house.vendor.stats().requests == len(sent)
    assert house.left_over() == (0, 0)


def test_the_next_try_pays_nothing_twice(house: House) -> None:
    """Every row of the rerun is answered, each was charged once."""
    assert house.vendor is not None
    with raised_once_sent(house, 8, TaskTimeout), pytest.raises(TaskTimeout):
        house.run(ROWS)
    house.vendor.configure(latency=Latency(0.0))
    outcome = house.run(ROWS)
    assert outcome.summary.ok == len(ROWS)
    assert len(house.vendor.invoice()) == len(ROWS)
    assert house.spent() == invoiced(house.vendor)


def test_what_does_not_come_back_in_time_is_unknown(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole hold of each such call is captured before the process ends: the ledger is not below the invoice."""
    assert house.vendor is not None
    monkeypatch.setattr(runner, "GRACE_SECONDS", 1.5)
    house.vendor.configure(script=["hang_billed"] * 60)
    with raised_once_sent(house, 5, TaskTimeout), pytest.raises(TaskTimeout):
        house.run(ROWS)
    rows = house.requests()
    assert [(row["status"], row["error_type"]) for row in rows] == [("unknown", "stopped")] * 5
    assert house.spent() >= invoiced(house.vendor) > 0
    assert house.left_over() == (0, 0)


def test_a_job_can_be_run_where_a_loop_runs_already(house: House) -> None:
    """As in a notebook."""

    async def cell() -> int:
        return house.run(ROWS[:3]).summary.ok

    assert asyncio.run(cell()) == 3


@pytest.mark.timeout(60)
def test_one_that_comes_back_to_a_retry_is_not_waited_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused row would wait for its second attempt: it ends at once, and not with the grace."""
    assert house.vendor is not None
    retry = {"attempts": 3, "wait": 600, "max_wait": 600}
    house.write(policy(deployments={"small": deployment(concurrency=5)}, retry=retry))
    house.vendor.configure(script=["500"] * 60)
    monkeypatch.setattr(runner, "GRACE_SECONDS", 3600.0)
    with raised_once_sent(house, 5, TaskTimeout), pytest.raises(TaskTimeout):
        house.run(ROWS)
    assert {row["status"] for row in house.requests()} == {"error"}
    assert house.spent() == invoiced(house.vendor) == 0
    assert house.left_over() == (0, 0)
