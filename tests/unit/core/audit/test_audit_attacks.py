"""Twelve attacks on a trail of more than 50,000 events from eight processes: each is found, placed and named.

The trail is built once, by real writers over a real ledger database; each attack is done to a copy of its own.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import orjson
import pytest
from support.audit import START, House, MemoryStore

from airflow_ai_provider.core.audit.sealing.manifest import NO_MANIFEST, SegmentEntry, read_manifest, write_manifest
from airflow_ai_provider.core.audit.sealing.seal import seal_trail
from airflow_ai_provider.core.audit.sealing.signing import SigningKey, load_or_create_signing_key, public_keys
from airflow_ai_provider.core.audit.sinks.archive import compress, manifest_object, manifest_sequence
from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore, Pin
from airflow_ai_provider.core.audit.trail.chain import (
    Head,
    Seal,
    decode_head,
    encode_head,
    encode_record,
    encode_seal,
    segment_name,
)
from airflow_ai_provider.core.audit.verify.findings import (
    DELETED,
    DROPPED,
    DUPLICATED,
    EDITED,
    INSERTED,
    NEWEST_DROPPED,
    OTHER_KEY,
    RELINKED,
    REORDERED,
    REPLAYED,
    SWAPPED,
    TRUNCATED,
    VerifyReport,
)
from airflow_ai_provider.core.audit.verify.segment_reader import check_segment
from airflow_ai_provider.core.audit.verify.verify import read_pins, verify
from airflow_ai_provider.core.ledger.database import Ledger

WRITERS, EVENTS, PER_SEGMENT, BATCH = 8, 6_400, 2_000, 200
WRITER = """
import secrets, sys
from pathlib import Path
from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
from airflow_ai_provider.core.audit.trail.spool import Spool
from airflow_ai_provider.core.audit.trail.trail import Trail
from airflow_ai_provider.core.ledger.database import Ledger

root, events, per_segment, batch = Path(sys.argv[1]), *map(int, sys.argv[2:5])
who = {"user": "ada", "dag_id": "d", "run_id": "r", "task_id": f"t{sys.argv[5]}", "try_number": 1, "team": "support"}
with Ledger.open(f"sqlite:///{root / 'ledger.db'}") as ledger:
    with Trail(Spool(root / "spool"), LedgerAuditStore(ledger), context=who, segment_events=per_segment) as trail:
        for number in range(events):
            trail.emit(
                "llm.call", "ok", request_id=secrets.token_hex(16), attempt_id=secrets.token_hex(16),
                deployment="small", model="openai/gpt-4o-mini", input_tokens=200 + number % 700,
                output_tokens=40 + number % 90, cost_nano=54_000 + number, prompt_hash=secrets.token_hex(16),
                answer_hash=secrets.token_hex(16),
            )
            if number % batch == batch - 1:
                trail.flush()
"""


@dataclass
class Estate(House):
    """A trail, what is kept apart from it, and what the auditor wrote down."""

    pin_file: str = ""

    def verify(self) -> VerifyReport:
        return verify(self.archive, self.spool, self.store, public_keys(self.key), pins=read_pins(self.pin_file))

    def path(self, name: str) -> Path:
        return self.root / "archive" / name

    def entries(self) -> list[SegmentEntry]:
        return [entry for manifest in self.manifests() for entry in manifest]

    def manifests(self) -> list[tuple[SegmentEntry, ...]]:
        names = sorted(self.archive.list("manifests/"))
        return [read_manifest(self.archive.get(name)).manifest.segments for name in names]

    def put(self, name: str, data: bytes) -> None:
        """Write over an object, as whoever owns the archive's folder can."""
        self.path(name).unlink(missing_ok=True)
        self.path(name).write_bytes(data)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Estate:
    root = tmp_path_factory.mktemp("audit")
    house = House(root)
    archive, spool, key = house.archive, house.spool, house.key
    with Ledger.open(f"sqlite:///{root / 'ledger.db'}") as ledger:
        store = LedgerAuditStore(ledger)
        for wave in ((0, 1, 2), (3, 4, 5), (6, 7)):
            sizes = [str(EVENTS), str(PER_SEGMENT), str(BATCH)]
            commands = [[sys.executable, "-c", WRITER, str(root), *sizes, str(number)] for number in wave]
            for process in [subprocess.Popen(command) for command in commands]:
                assert process.wait() == 0
            seal_trail(spool, archive, store, key, START)
        report = verify(archive, spool, store, public_keys(key))
        assert (report.findings, report.notes) == ([], [])
        assert (report.events, report.segments, report.manifests) == (WRITERS * EVENTS, 4 * WRITERS, 3)
        kept = MemoryStore(
            {each.segment: each for each in store.registered_segments("main")},
            {pin.sequence: pin for pin in store.pins("main")},
        )
    pin_file = "".join(f"{pin.sequence} {pin.manifest_hash}\n" for pin in kept.pinned.values())
    return Estate(root, kept, pin_file=f"# written down by the auditor\n\n{pin_file}")


@pytest.fixture
def estate(original: Estate, tmp_path: Path) -> Estate:
    """A copy; its files are links, and every attack removes a file before it writes one."""
    root = tmp_path / "copy"
    shutil.copytree(original.root, root, copy_function=os.link)
    store = MemoryStore(dict(original.store.registered), dict(original.store.pinned))
    return Estate(root, store, pin_file=original.pin_file)


def test_the_clean_trail_has_no_findings(estate: Estate) -> None:
    report = estate.verify()
    assert (report.status, report.findings, report.notes) == (0, [], [])
    assert report.events == WRITERS * EVENTS >= 50_000


Lines = list[bytes]
AT = 1234
"""The record that is attacked; its line has the same index, since the head comes first."""


def _edited(lines: Lines) -> Lines:
    return [*lines[:AT], lines[AT].replace(b'"airflow_ai.cost_nano":5', b'"airflow_ai.cost_nano":4'), *lines[AT + 1 :]]


def _inserted(lines: Lines) -> Lines:
    stranger = lines[AT + 500].replace(b"gpt-4o-mini", b"gpt-4o-maxi")
    return [*lines[:AT], stranger, *lines[AT:]]


RECORDS: dict[str, tuple[Callable[[Lines], Lines], str, str]] = {
    # name: (what is done to the lines of one segment, where it is found, what it is called)
    "edit a record": (_edited, f"record {AT}", EDITED),
    "delete a record": (lambda lines: lines[:AT] + lines[AT + 1 :], f"record {AT}", DELETED),
    "reorder records": (
        lambda lines: [*lines[:AT], *lines[AT + 9 : AT - 1 : -1], *lines[AT + 10 :]],
        f"record {AT}",
        REORDERED,
    ),
    "truncate a segment": (lambda lines: lines[:AT], f"after record {AT - 1}", TRUNCATED),
    "insert a record": (_inserted, f"record {AT}", INSERTED),
    "duplicate a record": (lambda lines: [*lines[:AT], lines[AT - 1], *lines[AT:]], f"record {AT}", DUPLICATED),
}


@pytest.mark.parametrize("name", RECORDS)
def test_an_attack_on_records(estate: Estate, name: str) -> None:
    attack, place, called = RECORDS[name]
    victim = estate.entries()[5].name
    lines = gzip.decompress(estate.path(victim).read_bytes()).splitlines(keepends=True)
    changed = attack(lines)
    assert changed != lines
    estate.put(victim, compress(b"".join(changed)))
    report = estate.verify()
    (finding,) = report.findings
    assert (report.status, finding.kind, finding.attack) == (1, "segment_altered", called)
    assert finding.place == f"{victim}: {place}"


def test_a_segment_dropped(estate: Estate) -> None:
    victim = estate.entries()[7].name
    estate.path(victim).unlink()
    (finding,) = estate.verify().findings
    assert (finding.kind, finding.place, finding.attack) == ("segment_missing", victim, DROPPED)


def test_two_segments_swapped(estate: Estate) -> None:
    one, two = estate.entries()[3].name, estate.entries()[20].name
    first, second = estate.path(one).read_bytes(), estate.path(two).read_bytes()
    estate.put(one, second)
    estate.put(two, first)
    found = estate.verify().findings
    assert {(each.kind, each.place, each.attack) for each in found} == {
        ("segment_replaced", one, SWAPPED),
        ("segment_replaced", two, SWAPPED),
    }


def test_a_segment_replayed(estate: Estate) -> None:
    """Once in the place of another, and once under a name of its own."""
    old, victim = estate.entries()[3].name, estate.entries()[20].name
    estate.put(victim, estate.path(old).read_bytes())
    extra = old.replace("-000", "-009")
    estate.put(extra, estate.path(old).read_bytes())
    found = {(each.kind, each.place, each.attack) for each in estate.verify().findings}
    assert found == {("segment_replaced", victim, REPLAYED), ("segment_unlisted", extra, REPLAYED)}


def test_the_newest_manifest_dropped_with_its_segments(estate: Estate) -> None:
    newest = estate.manifests()[-1]
    for entry in newest:
        estate.path(entry.name).unlink()
    estate.path(manifest_object(3)).unlink()
    found = estate.verify().findings
    assert [(each.place, each.attack) for each in found if each.kind == "manifest_missing"] == [
        ("manifest 3", NEWEST_DROPPED)
    ]
    lost = {each.place for each in found if each.kind == "segment_unaccounted"}
    assert lost == {segment_name(entry.writer, entry.segment) for entry in newest}


def test_signed_with_another_key(estate: Estate, tmp_path: Path) -> None:
    """Every manifest, chained and signed anew by somebody who has no access to the sealer's key."""
    resign(estate, load_or_create_signing_key(tmp_path / "stranger"))
    found = estate.verify().findings
    assert {each.place for each in found if each.attack == OTHER_KEY} == {f"manifest {n}" for n in (1, 2, 3)}


def test_everything_relinked_with_the_stolen_key_against_a_pin(estate: Estate) -> None:
    """One record changed, and all that follows from it made anew: seals, roots, manifests, signatures, and the pins in
    the database. Nothing in the trail and the database is wrong; what the auditor wrote down tells."""
    relinked: dict[str, SegmentEntry] = {}
    victim = estate.entries()[0].writer
    previous = ""
    for entry in sorted(estate.entries(), key=lambda each: each.segment):
        if entry.writer == victim:
            relinked[entry.name], previous = relink(estate, entry, previous)
    resign(estate, estate.key, relinked)
    estate.store.pinned = {
        number: Pin("main", number, read_manifest(estate.archive.get(manifest_object(number))).hash, START)
        for number in (1, 2, 3)
    }
    without = verify(estate.archive, estate.spool, estate.store, public_keys(estate.key))
    assert without.findings == [], "a flawless forgery, if nobody had written down the pins"
    found = estate.verify().findings
    assert {each.place for each in found if each.attack == RELINKED} == {f"manifest {n}" for n in (1, 2, 3)}
    assert {each.kind for each in found} == {"pin_mismatch", "pin_changed"}


def resign(estate: Estate, key: SigningKey, entries: dict[str, SegmentEntry] | None = None) -> None:
    """Write every manifest anew, with other entries for some segments."""
    previous = NO_MANIFEST
    for name in sorted(estate.archive.list("manifests/")):
        number = manifest_sequence(name)
        assert number is not None
        old = read_manifest(estate.archive.get(name)).manifest
        segments = [(entries or {}).get(entry.name, entry) for entry in old.segments]
        data = write_manifest(old.trail, number, previous, segments, key, START)
        estate.put(name, data)
        previous = sha256(data).hexdigest()


def relink(estate: Estate, entry: SegmentEntry, previous: str) -> tuple[SegmentEntry, str]:
    """Change a record of a writer's first segment; chain it, and every later segment, anew."""
    lines = gzip.decompress(estate.path(entry.name).read_bytes()).splitlines()
    bodies = [line.rpartition(b',"h":"')[0] + b"}" for line in lines]
    head: Head = decode_head(orjson.loads(bodies[0]))
    if head.segment == 1:
        bodies[AT] = bodies[AT].replace(b"gpt-4o-mini", b"gpt-4o-maxi")
    line, chain = encode_head(replace(head, previous=previous) if previous else head)
    made = [line]
    for body in bodies[1:-1]:
        line, chain = encode_record(chain, body)
        made.append(line)
    seal = orjson.loads(bodies[-1])
    line, value = encode_seal(chain, Seal(seal["count"], chain.hex(), seal["sealed_at"]))
    data = b"".join([*made, line])
    stored = compress(data)
    estate.put(entry.name, stored)
    forged = replace(
        entry,
        head=chain.hex(),
        seal=value.hex(),
        sha256=sha256(data).hexdigest(),
        stored_sha256=sha256(stored).hexdigest(),
        records=check_segment([data], sealed=True).records.root().hex(),
    )
    return forged, value.hex()
