"""A try that was replaced while it still lives sends nothing more; the new one answers every row."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from support.map_jobs import Lab, next_try, questions, write_jsonl

from airflow_ai_provider.core.ledger.schema import llm_holds
from airflow_ai_provider.testing.vendor import VendorProcess

ROWS = 400
CONCURRENCY = 8


def prove(lab: Lab) -> None:
    vendor = lab.vendor
    vendor.configure(hold_after=60)
    rows = questions(ROWS)
    spec = lab.spec(write_jsonl(lab.folder / "in.jsonl", rows), batch_rows=20)
    old = lab.start(spec)
    while vendor.stats().in_flight < CONCURRENCY:
        assert old.running
        time.sleep(0.005)
    new = lab.start(next_try(spec))
    while not holds(lab, try_number=2):
        assert new.running, new.outcome()
        time.sleep(0.02)
    vendor.configure(hold_after=None)
    outcome, summary = old.outcome(), new.summary()
    assert outcome.get("error") == "LedgerError", outcome
    assert "a newer try of the task has taken over" in outcome["message"]
    assert (summary["rows"], summary["ok"]) == (ROWS, ROWS)
    output = lab.output()
    assert [row["id"] for row in output] == [row["id"] for row in rows]
    assert {row["status"] for row in output} == {"ok"}
    invoice = vendor.invoice()
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(invoice)
        requests = {row["attempt_id"]: row for row in books.requests()}
    tries = Counter(requests[str(line.idempotency_key)]["row_key"] for line in invoice)
    twice = [key for key, times in tries.items() if times > 1]
    assert len(twice) <= CONCURRENCY, f"{len(twice)} rows were paid by both tries; {CONCURRENCY} calls were in flight"


def holds(lab: Lab, *, try_number: int) -> int:
    """Holds that a try of the task has in the ledger now."""
    with lab.books() as books:
        return sum(row["try_number"] == try_number for row in books.rows(llm_holds))


@pytest.mark.timeout(100)
def test_on_sqlite(tmp_path: Path, paid_vendor: VendorProcess) -> None:
    prove(Lab(tmp_path, paid_vendor, deployment={"concurrency": CONCURRENCY}))


@pytest.mark.timeout(100)
def test_on_postgresql(tmp_path: Path, paid_vendor: VendorProcess, postgres_url: str) -> None:
    prove(Lab(tmp_path, paid_vendor, ledger_url=postgres_url, deployment={"concurrency": CONCURRENCY}))
