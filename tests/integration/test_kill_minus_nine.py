"""A worker that dies at any moment costs at most the calls it had in flight, and loses no row and no cent."""

from __future__ import annotations

import random
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.map_jobs import Lab, next_try, questions, write_jsonl
from support.map_process import JobProcess

from airflow_ai_provider.core.audit.sealing.seal import seal_trail
from airflow_ai_provider.core.audit.sealing.signing import load_or_create_signing_key, public_keys
from airflow_ai_provider.core.audit.sinks.archive import FolderArchive
from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
from airflow_ai_provider.core.audit.trail.spool import Spool
from airflow_ai_provider.core.audit.verify.verify import verify
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.testing.behaviour import Latency
from airflow_ai_provider.testing.vendor import Vendor, VendorProcess

ROWS = 400
KILLS = 5
CONCURRENCY = 16


def wait_for_requests(vendor: Vendor, process: JobProcess, number: int) -> None:
    """Until the vendor has seen so many requests and is answering some."""
    while (stats := vendor.stats()).requests < number or stats.in_flight == 0:
        assert process.running, f"ended before request {number}; {stats}"
        time.sleep(0.002)


def prove(lab: Lab, seed: int) -> None:
    vendor, rng = lab.vendor, random.Random(seed)
    vendor.configure(latency=Latency(0.075, 0.025))
    rows = questions(ROWS)
    spec = lab.spec(write_jsonl(lab.folder / "in.jsonl", rows))
    lost_by_kill: list[list[str]] = []
    for moment in sorted(rng.sample(range(20, ROWS - 40), KILLS)):
        number = max(moment, vendor.stats().requests + 1)
        # However late the kill comes on a busy machine, the job is not through by then.
        vendor.configure(hold_after=number + CONCURRENCY)
        process = lab.start(spec)
        wait_for_requests(vendor, process, number)
        time.sleep(rng.uniform(0, 0.05))  # not at the beat of our own look at the vendor
        process.kill()
        vendor.configure(hold_after=None)
        with lab.books() as books:
            lost_by_kill.append([row["row_key"] for row in books.open_attempts()])
        spec = next_try(spec)
    summary = lab.start(spec).summary()
    while vendor.stats().in_flight:
        time.sleep(0.01)
    invoice = vendor.invoice()

    output = lab.output()
    assert [row["id"] for row in output] == [row["id"] for row in rows]
    assert [row["text"] for row in output] == [row["text"] for row in rows]
    assert Counter(row["status"] for row in output) == {"ok": ROWS}
    assert all(row["answer"].startswith('Answer about "Customer writes: ') for row in output)
    assert (summary["rows"], summary["ok"]) == (ROWS, ROWS)

    assert len(lost_by_kill) == KILLS
    assert any(lost_by_kill), "no kill met no call in flight"
    assert ROWS <= len(invoice) <= ROWS + KILLS * CONCURRENCY
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(invoice)
        unknown = books.requests("unknown")
        requests = {row["attempt_id"]: row for row in books.requests()}
    assert {row["error_type"] for row in unknown} == {"task_died"}
    assert len(unknown) == sum(len(lost) for lost in lost_by_kill)
    # Other open attempts had their answers safe in the store, and only waited for the trail or the ledger.
    called = {row["row_key"] for row in requests.values() if row["status"] == "ok"}
    made_again = [called.intersection(lost) for lost in lost_by_kill]
    assert all(len(keys) <= CONCURRENCY for keys in made_again), made_again
    billed = [requests[str(line.idempotency_key)] for line in invoice]
    answered = Counter(row["row_key"] for row in billed if row["status"] == "ok")
    assert set(answered.values()) == {1}, "a row was paid again although no call of it was in flight at a kill"
    assert {row["row_key"] for row in billed} == {row["id"] for row in rows}
    assert sum(row["cost_nano"] for row in requests.values()) >= sum(line.cost_nanodollars for line in invoice)


def prove_audit(lab: Lab) -> None:
    """The trail of six tries, five of them killed, is whole."""
    spool, archive = Spool(lab.home / "audit" / "spool"), FolderArchive(lab.folder / "archive")
    key = load_or_create_signing_key(lab.folder / "keys")
    with open_ledger(lab.ledger_url, lab.home) as ledger:
        store = LedgerAuditStore(ledger)
        report = seal_trail(spool, archive, store, key, datetime.now(UTC))
        assert (report.segments, report.refused) == (KILLS + 1, ())
        verdict = verify(archive, spool, store, public_keys(key))
    assert (verdict.status, verdict.findings) == (0, [])
    assert [note.kind for note in verdict.notes].count("segment_recovered") == KILLS


@pytest.mark.timeout(100)
def test_on_sqlite(tmp_path: Path, paid_vendor: VendorProcess) -> None:
    lab = Lab(tmp_path, paid_vendor, deployment={"concurrency": CONCURRENCY})
    prove(lab, seed=1)
    prove_audit(lab)


@pytest.mark.timeout(100)
def test_on_postgresql_with_redis(
    tmp_path: Path, paid_vendor: VendorProcess, postgres_url: str, empty_redis_url: str
) -> None:
    lab = Lab(
        tmp_path,
        paid_vendor,
        ledger_url=postgres_url,
        cache_url=empty_redis_url,
        deployment={"concurrency": CONCURRENCY},
    )
    prove(lab, seed=2)
    prove_audit(lab)
