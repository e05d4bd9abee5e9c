"""What a job tells the audit trail: complete, durable before the ledger, and equal to the ledger on every call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, update
from support.pipeline import House, invoiced, policy

from airflow_ai_provider.core.audit.sealing.seal import seal_trail
from airflow_ai_provider.core.audit.sealing.signing import load_or_create_signing_key, public_keys
from airflow_ai_provider.core.audit.sinks.archive import FolderArchive
from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
from airflow_ai_provider.core.audit.trail.events import utc_now
from airflow_ai_provider.core.audit.verify.compare_with_ledger import Reconciliation
from airflow_ai_provider.core.audit.verify.findings import VerifyReport
from airflow_ai_provider.core.audit.verify.segment_reader import check_segment
from airflow_ai_provider.core.audit.verify.verify import verify
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.schema import llm_requests
from airflow_ai_provider.core.pipeline.audit_log import HASH_KEY_PURPOSE
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.errors import AuditError
from airflow_ai_provider.testing.vendor import VendorDouble

INVENTED = "z" + func.substr(llm_requests.c.attempt_id, 2)


@pytest.fixture
def house(tmp_path: Path, vendor: VendorDouble) -> House:
    return House(tmp_path, vendor)


def events(house: House) -> list[dict[str, Any]]:
    spool, found = house.settings.audit_spool(), []
    for state in ("sealed", "open"):
        for name in spool.names(state):
            data = spool.path(name, state).read_bytes()
            check_segment([data], sealed=state == "sealed", visit=lambda document, body: found.append(document))
    return found


def reconciled(house: House, *, since: date | None = None, until: date | None = None) -> VerifyReport:
    """Verify the house's trail, sealed first, against its ledger."""
    settings = house.settings
    spool, archive = settings.audit_spool(), FolderArchive(house.folder / "archive")
    key = load_or_create_signing_key(house.folder / "keys")
    keyring = Keyring.open(settings.home / "keyring.json")
    hash_keys = {key_id: keyring.derive(HASH_KEY_PURPOSE, key_id=key_id) for key_id in keyring.key_ids}
    days: Any = {"since": since, "until": until}
    with open_ledger(settings.ledger_url, settings.home) as ledger:
        store = LedgerAuditStore(ledger)
        seal_trail(spool, archive, store, key, utc_now())
        with Reconciliation(ledger, hash_keys=hash_keys, **days) as reconciliation:
            report = verify(archive, spool, store, public_keys(key), visit=reconciliation.visit, **days)
            reconciliation.report(report)
    return report


def change(house: House, *statements: Any) -> None:
    with open_ledger(house.settings.ledger_url, house.settings.home) as ledger, ledger.write() as conn:
        for statement in statements:
            conn.execute(statement)


def kinds(report: VerifyReport) -> list[str]:
    return [finding.kind for finding in report.findings]


def answer_in_every_way(house: House, vendor: VendorDouble) -> None:
    """Calls that went well, that were refused, that may have been billed, and answers from the store."""
    vendor.configure(script=["429", "ok", "504", "ok", "401"])
    house.run(["one", "two", "three", "one", "two"], batch_rows=2)
    house.run(["one", "two", "three"], run_id="run-2")
    house.run(["one", "four"], run_id="run-1", sink=str(house.folder / "again"))


@pytest.fixture
def answered(house: House, vendor: VendorDouble) -> House:
    answer_in_every_way(house, vendor)
    return house


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_ledger_and_trail_agree_on_every_attempt(
    tmp_path: Path, vendor: VendorDouble, database: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else None
    house = House(tmp_path, vendor, ledger_url=url)
    answer_in_every_way(house, vendor)
    assert {row["status"] for row in house.requests()} == {"ok", "error", "unknown", "reused"}
    today = utc_now().date()
    for days in ({}, {"since": today}, {"until": today}, {"since": today - timedelta(days=1), "until": today}):
        report = reconciled(house, **days)
        assert (report.findings, report.notes) == ([], []), days
        assert report.events > len(house.requests())
    assert reconciled(house, since=today + timedelta(days=1)).events == 0


def test_a_range_of_days_finds_what_is_missing_in_it(answered: House) -> None:
    (row, *_) = answered.requests(status="ok")
    change(answered, delete(llm_requests).where(llm_requests.c.attempt_id == row["attempt_id"]))
    today = utc_now().date()
    assert kinds(reconciled(answered, since=today)) == ["event_without_ledger"]
    assert kinds(reconciled(answered, until=today - timedelta(days=1))) == []


def test_every_event_says_on_whose_behalf(house: House) -> None:
    house.run(["one"])
    for event in events(house):
        assert event["airflow_ai.dag_id"], event
        assert event["host.name"] == os.uname().nodename
        assert event["airflow_ai.team"] == "support"


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        (delete(llm_requests).where(llm_requests.c.status == "ok"), "event_without_ledger"),
        (update(llm_requests).where(llm_requests.c.status == "ok").values(cost_nano=1), "ledger_differs"),
        (update(llm_requests).where(llm_requests.c.status == "unknown").values(status="ok"), "ledger_differs"),
        (delete(llm_requests).where(llm_requests.c.status == "reused"), "reuse_differs"),
        (
            update(llm_requests).where(llm_requests.c.status == "reused").values(request_id="0" * 32),
            "reuse_differs",
        ),
        (
            update(llm_requests)
            .where(llm_requests.c.status == "ok")
            .values(attempt_id="z" + func.substr(llm_requests.c.attempt_id, 2)),
            "ledger_without_event",
        ),
    ],
    ids=["deleted", "cheaper", "status", "reuse deleted", "reuse changed", "invented"],
)
def test_a_changed_ledger_is_found(answered: House, statement: Any, kind: str) -> None:
    change(answered, statement)
    report = reconciled(answered)
    assert report.status == 1
    assert kind in kinds(report)


def test_old_rows_that_retention_dropped_are_a_note(house: House) -> None:
    house.run(["one"])
    house.run(["two"], run_id="run-2")
    (old,) = (row for row in house.requests(run_id="run-1"))
    change(house, delete(llm_requests).where(llm_requests.c.attempt_id == old["attempt_id"]))
    report = reconciled(house)
    assert (kinds(report), [note.kind for note in report.notes]) == ([], ["ledger_starts_later"])


def test_a_policy_that_changed_is_an_event_with_both_hashes(house: House) -> None:
    house.run(["one"])
    house.run(["two"], run_id="run-2")
    house.write(policy(limit_usd="2"))
    house.run(["three"], run_id="run-3")
    loaded = [event["airflow_ai.policy_hash"] for event in events(house) if event["event.action"] == "policy.loaded"]
    (changed,) = (event for event in events(house) if event["event.action"] == "policy.changed")
    assert len(set(loaded)) == 2
    assert (changed["airflow_ai.old_policy_hash"], changed["airflow_ai.policy_hash"]) == (loaded[0], loaded[2])


# Nothing goes unaudited


def test_a_full_spool_stops_calls_before_they_are_made_and_raises_an_alarm(
    tmp_path: Path, vendor: VendorDouble, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, vendor, audit_spool_bytes=4000)

    def run_until_full() -> None:
        for run in range(20):
            house.run(["one", f"row {run}"], run_id=f"run-{run}")

    with pytest.raises(AuditError, match=r"no call is made.*limit is 4,000.*audit_spool_limit_mb"):
        run_until_full()
    sent = vendor.stats().requests
    assert 0 < sent < 20
    assert [record.levelname for record in caplog.records if "AUDIT SPOOL FULL" in record.message] == ["ERROR"]
    with pytest.raises(AuditError):
        house.run(["more"], run_id="later")
    assert vendor.stats().requests == sent
    assert house.left_over() == (0, 0)
    report = reconciled(house)
    assert report.findings == []  # sealing made room
    house.run(["more"], run_id="later")
    assert house.spent() >= invoiced(vendor)


def test_verify_says_that_the_spool_is_full(tmp_path: Path, vendor: VendorDouble) -> None:
    house = House(tmp_path, vendor, audit_spool_bytes=100)
    with pytest.raises(AuditError):
        house.run(["one"])
    spool = house.settings.audit_spool()
    report = verify(FolderArchive(tmp_path / "a"), spool, None, public_keys(load_or_create_signing_key(tmp_path)))
    assert kinds(report) == ["spool_full"]


@contextlib.contextmanager
def broken_disk(after: int) -> Iterator[list[int]]:
    """From the ``after``-th flush on the disk refuses; everything is put back at the end."""
    flushes: list[int] = []
    real = os.fdatasync

    def refuse(fd: int) -> None:
        flushes.append(fd)
        if len(flushes) > after:
            raise OSError(28, "No space left on device")
        real(fd)

    os.fdatasync = refuse
    try:
        yield flushes
    finally:
        os.fdatasync = real


def test_a_disk_that_refuses_stops_calls_and_what_was_paid_stays_open_in_the_ledger(
    house: House, vendor: VendorDouble
) -> None:
    """One call is under way when the disk fails: it is not settled without its event, and the next try captures it."""
    house.write(policy(deployments={"small": {**policy()["deployments"]["small"], "concurrency": 1}}))
    with broken_disk(after=2), pytest.raises(AuditError, match="No space left"):
        house.run([f"row {number}" for number in range(30)])
    assert vendor.stats().requests < 5
    house.run([f"row {number}" for number in range(30)])
    assert house.left_over() == (0, 0)
    assert house.spent() >= invoiced(vendor)
    assert house.settings.audit_spool().names("open") == []
    assert kinds(reconciled(house)) == []
