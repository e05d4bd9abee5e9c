"""Two hosts, one ledger, one bucket: an intact trail is intact from either, at any moment, and a changed one is not."""

from __future__ import annotations

import gzip
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.hosts import Host
from support.map_jobs import Lab, questions, write_jsonl
from support.s3 import S3Store

from airflow_ai_provider.core.administration.audit import seal_audit, verify_audit
from airflow_ai_provider.core.administration.audit_delivery import deliver_audit, open_archive
from airflow_ai_provider.core.audit.sealing.manifest import read_manifest
from airflow_ai_provider.core.audit.sinks.archive import MANIFESTS, compress, segment_object
from airflow_ai_provider.core.audit.sinks.s3_archive import s3_client
from airflow_ai_provider.core.audit.trail.audit_store import RegisteredSegment
from airflow_ai_provider.core.audit.trail.spool import Spool
from airflow_ai_provider.core.audit.trail.trail import Trail
from airflow_ai_provider.core.audit.verify.findings import VerifyReport
from airflow_ai_provider.core.audit.verify.segment_reader import Visitor, check_segment
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.schema import audit_writers, llm_requests
from airflow_ai_provider.core.privacy.crypto.keyring import fresh_keyring
from airflow_ai_provider.core.settings import Settings
from airflow_ai_provider.testing.behaviour import Faults
from airflow_ai_provider.testing.vendor import VendorProcess

VERIFICATIONS = 20
BUCKET = "two-hosts"


@dataclass
class Hosts:
    """Two installations that share everything but their home."""

    labs: dict[str, Lab]
    source: str
    client: Any
    bucket: str
    prefix: str
    archive: dict[str, Any]

    def settings(self, name: str) -> Settings:
        return replace(self.labs[name].settings, **self.archive)

    def start(self, name: str, *, seal_every: float) -> Host:
        lab = self.labs[name]
        spec = lab.spec(self.source, caller={"run_id": name}, sink=str(lab.folder / f"answers-{name}"), batch_rows=10)
        spec = replace(spec, settings=self.settings(name))
        return Host(spec, lab.folder / f"host-{name}", seal_every=seal_every)

    def verify(self, name: str, **options: Any) -> VerifyReport:
        report = verify_audit(self.settings(name), **options)
        assert report.error == ""
        return report

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    @contextmanager
    def ledger(self) -> Iterator[sa.Connection]:
        settings = self.settings("one")
        with open_ledger(settings.ledger_url, settings.home) as ledger, ledger.write() as conn:
            yield conn


@pytest.fixture
def hosts(tmp_path: Path, paid_vendor: VendorProcess, postgres_url: str, empty_redis_url: str, s3: S3Store) -> Hosts:
    client = s3_client(s3.options)
    bucket = f"{BUCKET}-{time.time_ns()}"
    client.create_bucket(Bucket=bucket)
    keyring = fresh_keyring()
    shared = {"ledger_url": postgres_url, "cache_url": empty_redis_url, "keyring": keyring}
    route = {"reuse": {"scope": "team"}}
    labs = {
        name: Lab(tmp_path, paid_vendor, home_name=f"home-{name}", route=route, **shared) for name in ("one", "two")
    }
    archive = {
        "archive_uri": f"s3://{bucket}/trail",
        "archive_lock": "none",
        "storage_options": s3.options,
        "audit_signing_key": str(tmp_path / "signing"),
    }
    return Hosts(labs, write_jsonl(tmp_path / "rows.jsonl", questions(40)), client, bucket, "trail", archive)


@contextmanager
def working(hosts: Hosts) -> Iterator[list[Host]]:
    """Both hosts run jobs; they seal at different paces, so that something is always unsealed somewhere."""
    running = [hosts.start("one", seal_every=2.5), hosts.start("two", seal_every=7)]
    try:
        yield running
    finally:
        for host in running:
            host.kill()


def kinds(report: VerifyReport) -> Counter[str]:
    return Counter(finding.kind for finding in report.findings)


def test_while_both_hosts_work_verification_finds_nothing_but_what_was_changed(hosts: Hosts) -> None:
    for name in ("one", "two"):
        seal_audit(hosts.settings(name))  # from now on both have the verify key
    noted: Counter[str] = Counter()
    with working(hosts) as running:
        for number in range(VERIFICATIONS):
            report = hosts.verify("two" if number % 2 else "one")
            assert report.findings == [], f"verification {number}"
            noted.update(note.kind for note in report.notes)
        assert noted["segment_elsewhere"]
        assert noted["ledger_elsewhere"]
        sealed = wait_until_sealed(hosts)
        for change in (forget_row, invent_row, change_cost, flip_byte, remove_segment, insert_segment):
            with change(hosts, sealed) as (expected, place):
                for name in ("one", "two"):
                    report = hosts.verify(name)
                    assert set(kinds(report)) == set(expected), (change.__name__, report.findings)
                    assert any(place in f"{finding.place} {finding.detail}" for finding in report.findings)
            assert hosts.verify("two").findings == [], change.__name__
        for host in running:
            host.check()
            host.stop()
    for name in ("one", "two"):
        seal_audit(hosts.settings(name))
    for name in ("one", "two"):
        report = hosts.verify(name)
        assert report.findings == []
        assert not [note for note in report.notes if note.kind.endswith("elsewhere")]
        assert report.events > 100


@dataclass(frozen=True)
class Sealed:
    """A call whose event is in a manifest."""

    row: dict[str, Any]
    """Of the ledger."""
    segment: str
    """Name of its object."""
    key: str
    data: bytes


def wait_until_sealed(hosts: Hosts) -> Sealed:
    """The first call that was sealed."""
    deadline = time.monotonic() + 60
    while (sealed := first_sealed(hosts)) is None:
        assert time.monotonic() < deadline, "nothing was sealed within a minute"
        time.sleep(0.2)
    return sealed


def first_sealed(hosts: Hosts) -> Sealed | None:
    archive = open_archive(hosts.settings("one"))
    for manifest in sorted(archive.list(MANIFESTS)):
        for entry in read_manifest(archive.get(manifest)).manifest.segments:
            attempts: list[str] = []
            check_segment([gzip.decompress(data := archive.get(entry.name))], sealed=True, visit=collect(attempts))
            if attempts:
                with hosts.ledger() as conn:
                    query = sa.select(llm_requests).where(llm_requests.c.attempt_id == attempts[0])
                    row = dict(conn.execute(query).mappings().one())
                return Sealed(row, entry.name, f"{hosts.prefix}/{entry.name}", data)
    return None


def collect(attempts: list[str]) -> Visitor:
    def visit(document: dict[str, Any], body: bytes) -> None:
        if document["event.action"] == "llm.call":
            attempts.append(document["airflow_ai.attempt_id"])

    return visit


Change = Iterator[tuple[tuple[str, ...], str]]
"""Kinds of the findings that a change makes, and what one of them names."""


def _insert(conn: sa.Connection, row: dict[str, Any]) -> None:
    made = {column.name for column in llm_requests.c if column.computed is not None}
    conn.execute(sa.insert(llm_requests).values({name: value for name, value in row.items() if name not in made}))


@contextmanager
def forget_row(hosts: Hosts, sealed: Sealed) -> Change:
    attempt = sealed.row["attempt_id"]
    with hosts.ledger() as conn:
        conn.execute(sa.delete(llm_requests).where(llm_requests.c.attempt_id == attempt))
    yield ("event_without_ledger",), attempt
    with hosts.ledger() as conn:
        _insert(conn, sealed.row)


@contextmanager
def invent_row(hosts: Hosts, sealed: Sealed) -> Change:
    """A row of a try that is sealed, written now, while both hosts have unsealed segments."""
    row = {**sealed.row, "attempt_id": "f" * 32, "created_at": datetime.now(UTC)}
    with hosts.ledger() as conn:
        _insert(conn, row)
    yield ("ledger_without_event",), "f" * 32
    with hosts.ledger() as conn:
        conn.execute(sa.delete(llm_requests).where(llm_requests.c.attempt_id == "f" * 32))


@contextmanager
def change_cost(hosts: Hosts, sealed: Sealed) -> Change:
    attempt, cost = sealed.row["attempt_id"], sealed.row["cost_nano"]
    mine = sa.update(llm_requests).where(llm_requests.c.attempt_id == attempt)
    with hosts.ledger() as conn:
        conn.execute(mine.values(cost_nano=cost + 1))
    yield ("ledger_differs",), attempt
    with hosts.ledger() as conn:
        conn.execute(mine.values(cost_nano=cost))


@contextmanager
def flip_byte(hosts: Hosts, sealed: Sealed) -> Change:
    plain = bytearray(gzip.decompress(sealed.data))
    plain[plain.index(b"llm.call") + 1] ^= 1
    hosts.put(sealed.key, gzip.compress(bytes(plain)))
    yield ("segment_altered", "ledger_without_event"), sealed.segment
    hosts.put(sealed.key, sealed.data)


@contextmanager
def remove_segment(hosts: Hosts, sealed: Sealed) -> Change:
    hosts.client.delete_object(Bucket=hosts.bucket, Key=sealed.key)
    yield ("segment_missing", "ledger_without_event"), sealed.segment
    hosts.put(sealed.key, sealed.data)


class NoRegistry:
    def register_segment(self, segment: RegisteredSegment) -> None: ...


@contextmanager
def insert_segment(hosts: Hosts, sealed: Sealed) -> Change:
    """A whole segment of a writer that never registered, put beside the others."""
    spool = Spool(hosts.labs["one"].folder / "forged")
    with Trail(spool, NoRegistry()) as trail:  # type: ignore[arg-type]
        trail.emit("keys.rotated", key_id="k1")
    (name,) = spool.names("sealed")
    data = spool.path(name, "sealed").read_bytes()
    head = check_segment([data], sealed=True).head
    assert head is not None
    key = f"{hosts.prefix}/{segment_object(head)}"
    hosts.put(key, compress(data))
    yield ("segment_unlisted",), name
    hosts.client.delete_object(Bucket=hosts.bucket, Key=key)


LOST = {
    "open": {"segment_unaccounted", "ledger_without_event"},
    "sealed": {"segment_unaccounted", "ledger_without_event"},
    "archived": {"segment_unaccounted", "ledger_without_event", "segment_unlisted"},
}
"""Findings when a segment that no manifest lists is deleted from its spool, by the state it was in. A copy in the
archive does not replace it: until a manifest lists the copy, nothing signed says that it is the original."""


@pytest.mark.parametrize("state", LOST)
def test_an_unlisted_segment_that_vanishes_is_found_at_once_here_and_within_a_day_elsewhere(
    hosts: Hosts, state: str
) -> None:
    for name in ("one", "two"):
        seal_audit(hosts.settings(name))
    lost = write_segment(hosts, "two", state)
    assert hosts.verify("one").findings == []
    assert hosts.verify("two").findings == []
    lost.unlink()
    assert set(kinds(hosts.verify("two"))) == LOST[state]
    from_one = hosts.verify("one")
    assert from_one.findings == []
    (told,) = [note for note in from_one.notes if note.kind == "ledger_elsewhere"]
    assert int(told.detail.split()[0]) > 0
    with hosts.ledger() as conn:
        aged = sa.update(audit_writers).values(opened_at=audit_writers.c.opened_at - timedelta(hours=25))
        conn.execute(aged.where(audit_writers.c.segment == lost.stem))
    late = hosts.verify("one")
    assert set(kinds(late)) == LOST[state]
    assert "within 24 hours" in next(each.detail for each in late.findings if each.kind == "segment_unaccounted")


def write_segment(hosts: Hosts, name: str, state: str) -> Path:
    """The file in a host's spool of a segment with calls whose writer was killed (open) or ended (sealed, archived)."""
    lab, spool = hosts.labs[name], hosts.settings(name).audit_spool()
    if state == "open":
        # Some calls are answered; the others hang, so that the job cannot end before it is killed.
        lab.deployment = {"timeout": 250}
        lab.vendor.configure(script=["ok"] * 10, faults=Faults(rate_hang=1.0))
    job = lab.start(replace(lab.spec(hosts.source, sink=str(lab.folder / "answers")), settings=hosts.settings(name)))
    if state == "open":
        while not answered(hosts):
            assert job.running, job.outcome()
            time.sleep(0.05)
        job.kill()
    else:
        job.summary()
    if state == "archived":
        assert deliver_audit(hosts.settings(name)).is_good
    (path,) = [path for path in spool.folder.glob("*.*") if b"llm.call" in path.read_bytes()]
    assert path.suffix == (".open" if state == "open" else ".sealed")
    return path


def answered(hosts: Hosts) -> int:
    """Calls that the ledger lists as answered. Each is in the trail by then."""
    with hosts.ledger() as conn:
        query = sa.select(sa.func.count()).select_from(llm_requests).where(llm_requests.c.status == "ok")
        return conn.execute(query).scalar_one()
