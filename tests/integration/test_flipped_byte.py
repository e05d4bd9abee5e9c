"""One changed byte in the trail of a real run is found, and the finding names the segment and the record."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.map_jobs import Lab, questions, write_jsonl

from airflow_ai_provider.core.audit.sealing.seal import SealReport, seal_trail
from airflow_ai_provider.core.audit.sealing.signing import SigningKey, load_or_create_signing_key, public_keys
from airflow_ai_provider.core.audit.sinks.archive import SEGMENTS, FolderArchive, compress
from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
from airflow_ai_provider.core.audit.trail.spool import Spool
from airflow_ai_provider.core.audit.verify.findings import VerifyReport
from airflow_ai_provider.core.audit.verify.verify import verify
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.testing.vendor import VendorProcess

ROWS = 30


@dataclass
class House:
    """The audit side of an installation."""

    spool: Spool
    archive: FolderArchive
    store: LedgerAuditStore
    key: SigningKey

    @classmethod
    def of(cls, lab: Lab, ledger: Ledger) -> House:
        return cls(
            Spool(lab.home / "audit" / "spool"),
            FolderArchive(lab.folder / "archive"),
            LedgerAuditStore(ledger),
            load_or_create_signing_key(lab.folder / "keys"),
        )

    def seal(self) -> SealReport:
        return seal_trail(self.spool, self.archive, self.store, self.key, datetime.now(UTC))

    def verify(self) -> VerifyReport:
        return verify(self.archive, self.spool, self.store, public_keys(self.key))


def flip(data: bytes, offset: int) -> bytes:
    changed = bytearray(data)
    changed[offset] ^= 0x01
    return bytes(changed)


def middle_of_line(data: bytes, number: int) -> int:
    """Offset in the middle of a line; line 0 is the head, line n is record n."""
    lines = data.splitlines(keepends=True)
    return sum(map(len, lines[:number])) + len(lines[number]) // 2


def assert_found(house: House, path: Path, changed: bytes, segment: str, record: str) -> None:
    """``path`` with other bytes is one finding that names segment and record; put back, there is none."""
    original = path.read_bytes()
    path.unlink()  # archived objects are read-only
    path.write_bytes(changed)
    report = house.verify()
    path.write_bytes(original)
    assert report.status == 1
    (finding,) = report.findings
    assert segment in finding.place
    assert finding.place.endswith(f": {record}"), finding
    assert house.verify().status == 0


def in_content(data: bytes, offset: int) -> bytes:
    return flip(data, offset)


def in_container(data: bytes, offset: int) -> bytes:
    return compress(flip(gzip.decompress(data), offset))


@pytest.mark.timeout(100)
def test_flips_before_and_after_sealing(tmp_path: Path, paid_vendor: VendorProcess) -> None:
    lab = Lab(tmp_path, paid_vendor)
    source = write_jsonl(tmp_path / "in.jsonl", questions(ROWS))
    lab.run(source)
    with lab.books() as books:
        house = House.of(lab, books.ledger)
        assert house.verify().status == 0
        first = flip_in_spool(house)
        assert house.seal().segments == 1
        flip_in_archive(house, first)
        lab.run(source, caller={"run_id": "run-2"})
        second = flip_in_spool(house)
        assert second != first
        flip_in_archive(house, first)
        assert house.seal().segments == 1
        flip_in_archive(house, second)
        verdict = house.verify()
        assert (verdict.status, verdict.manifests, verdict.segments) == (0, 2, 2)
        # Both runs: policy, start, batch, the calls, end.
        assert verdict.events == 2 * (ROWS + 4) + 2


def flip_in_spool(house: House) -> str:
    """The segment that waits for the sealer: at its head, at records, at its seal."""
    (name,) = house.spool.names("sealed")
    path = house.spool.path(name, "sealed")
    data = path.read_bytes()
    for record, line in (("head", 0), ("record 1", 1), ("record 20", 20), (f"record {ROWS + 4}", ROWS + 4)):
        assert_found(house, path, flip(data, middle_of_line(data, line)), f"{name}.sealed", record)
    return name


def flip_in_archive(house: House, name: str) -> None:
    (path,) = [house.archive.root / each for each in house.archive.list(SEGMENTS) if name in each]
    content = gzip.decompress(path.read_bytes())
    changes: list[tuple[str, Callable[[bytes, int], bytes], int]] = [
        ("head", in_container, middle_of_line(content, 0)),
        ("record 1", in_container, middle_of_line(content, 1)),
        ("record 17", in_container, middle_of_line(content, 17)),
        (f"record {ROWS + 4}", in_container, middle_of_line(content, ROWS + 4)),
    ]
    for record, change, offset in changes:
        assert_found(house, path, change(path.read_bytes(), offset), f"{name}.jsonl.gz", record)
    flip_compressed(house, path, name)


def flip_compressed(house: House, path: Path, name: str) -> None:
    """A byte of the object as it is stored: found, and placed in the segment at or after some record."""
    original = path.read_bytes()
    for offset in range(0, len(original), max(1, len(original) // 12)):
        path.unlink()
        path.write_bytes(in_content(original, offset))
        report = house.verify()
        assert report.status == 1, offset
        assert all(f"{name}.jsonl.gz" in finding.place for finding in report.findings), offset
        assert all("record" in f.place or f.place.endswith(("head", "seal")) for f in report.findings), report.findings
        path.unlink()
        path.write_bytes(original)
    assert house.verify().status == 0
