"""PostgreSQL restarts in mid-run: no call is made while it is away, the run goes on by itself, the sums are right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.map_jobs import Lab, questions, write_jsonl
from support.postgres import PostgresServer, postgres_server

from airflow_ai_provider.testing.behaviour import Latency
from airflow_ai_provider.testing.vendor import Vendor, VendorProcess

ROWS = 600
RESTARTS = 3
CONCURRENCY = 16


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server of this test's own: others must not lose theirs."""
    with postgres_server() as server:
        yield server


@pytest.mark.timeout(150)
def test_no_call_is_made_while_the_ledger_is_away(
    tmp_path: Path, paid_vendor: VendorProcess, own_postgres: PostgresServer
) -> None:
    url = own_postgres.create_database("ledger")
    lab = Lab(tmp_path, paid_vendor, ledger_url=url, deployment={"concurrency": CONCURRENCY})
    vendor = lab.vendor
    vendor.configure(latency=Latency(0.05, 0.02))
    spec = lab.spec(write_jsonl(tmp_path / "in.jsonl", questions(ROWS)))
    for number in range(1, RESTARTS + 1):
        moment = ROWS // (RESTARTS + 1) * number
        vendor.configure(hold_after=moment)
        if number == 1:
            process = lab.start(spec)
        else:
            own_postgres.start()
        wait_for_requests(vendor, moment)
        # In order, as for an upgrade, and all at once, as when a machine is lost.
        (own_postgres.crash if number % 2 else own_postgres.stop)()
        vendor.configure(hold_after=None)
        before = vendor.stats().requests
        time.sleep(1.5)  # in which hundreds of calls could be made
        assert vendor.stats().requests - before <= CONCURRENCY, "more than can have been opened before it went away"
        assert process.running
    own_postgres.start()
    summary = process.summary()
    assert (summary["rows"], summary["ok"]) == (ROWS, ROWS)
    invoice = vendor.invoice()
    assert len(invoice) == ROWS, "a row was paid twice, or never"
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(invoice)
        assert {row["status"] for row in books.requests()} == {"ok"}
        assert sum(row["cost_nano"] for row in books.requests()) == sum(line.cost_nanodollars for line in invoice)


def wait_for_requests(vendor: Vendor, number: int) -> None:
    while vendor.stats().requests < number:
        time.sleep(0.005)
