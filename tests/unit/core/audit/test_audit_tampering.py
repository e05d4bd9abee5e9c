"""Every tampering we know of, done to a copy of a small real trail, is found and named."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from support.audit import House, call_fields, overwrite

from airflow_ai_provider.core.audit.sealing.manifest import NO_MANIFEST, SegmentEntry, read_manifest, write_manifest
from airflow_ai_provider.core.audit.sealing.signing import public_keys
from airflow_ai_provider.core.audit.sinks.archive import compress
from airflow_ai_provider.core.audit.trail.chain import (
    HEAD_TAG,
    Seal,
    canonical,
    encode_record,
    encode_seal,
    event_id,
    link,
)
from airflow_ai_provider.core.audit.trail.events import build_event
from airflow_ai_provider.core.audit.verify.segment_reader import check_segment
from airflow_ai_provider.core.audit.verify.verify import verify

Lines = list[bytes]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Three manifests; a writer with three segments, two writers with one, and one segment still in the spool."""
    house = House(tmp_path_factory.mktemp("audit") / "house")
    house.write(15, segment_events=6)
    house.seal()
    house.write(4)
    house.seal()
    house.write(3)
    house.seal()
    house.write(5)
    return house


@pytest.fixture
def copy(original: House, tmp_path: Path) -> House:
    return original.copy(tmp_path / "copy")


def place_kinds(house: House) -> list[tuple[str, str]]:
    return [(finding.kind, finding.place.rpartition(": ")[2]) for finding in house.verify().findings]


def test_a_clean_trail_has_no_findings(copy: House) -> None:
    report = copy.verify()
    assert (report.status, report.findings) == (0, [])
    assert (report.manifests, report.segments, report.events) == (3, 6, 27)


def _edit(lines: Lines) -> Lines:
    return [*lines[:3], lines[3].replace(b"gpt-4o-mini", b"gpt-4o-maxi"), *lines[4:]]


def _insert(lines: Lines) -> Lines:
    forged = lines[3].replace(b'-3",', b'-99",')
    return [*lines[:4], forged, *lines[4:]]


RECORDS: dict[str, tuple[Callable[[Lines], Lines], str, str]] = {
    # name: (what is done to the lines of a six-record segment, first bad place, what is guessed)
    "edit": (_edit, "record 3", "edited"),
    "delete": (lambda lines: lines[:3] + lines[4:], "record 3", "deleted"),
    "delete the first": (lambda lines: lines[:1] + lines[2:], "record 1", "deleted"),
    "delete the last": (lambda lines: lines[:-2] + lines[-1:], "seal", "truncated"),
    "reorder": (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], "record 2", "reordered"),
    "truncate": (lambda lines: lines[:4], "after record 3", "truncated"),
    "truncate inside a line": (lambda lines: [*lines[:4], lines[4][:50]], "after record 3", "truncated"),
    "insert": (_insert, "record 4", "inserted"),
    "duplicate": (lambda lines: [*lines[:4], lines[3], *lines[4:]], "record 4", "duplicated"),
    "append behind the seal": (lambda lines: [*lines, lines[-2]], "after the seal", "inserted"),
    "replace by rubbish": (lambda lines: [*lines[:3], b"rubbish\n", *lines[4:]], "record 3", "damaged"),
    "drop the head": (lambda lines: lines[1:], "head", "damaged"),
    "empty": (lambda lines: [], "head", "damaged"),
}


@pytest.mark.parametrize("where", ["archive", "spool"])
@pytest.mark.parametrize("name", RECORDS)
def test_a_changed_record_is_named(copy: House, where: str, name: str) -> None:
    tamper, place, attack = RECORDS[name]
    if where == "archive":
        path = copy.objects("segments")[0]
        lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
        assert len(lines) == 8
        overwrite(path, compress(b"".join(tamper(lines))))
    else:
        copy.write(6)
        path = copy.spool.path(copy.spool.names("sealed")[-1], "sealed")
        path.write_bytes(b"".join(tamper(path.read_bytes().splitlines(keepends=True))))
    report = copy.verify()
    assert report.status == 1
    (finding,) = report.findings
    assert path.name in finding.place
    assert finding.place.endswith(f": {place}")
    assert finding.kind == "segment_altered"
    assert finding.attack == attack


def test_a_truncated_container_is_named(copy: House) -> None:
    path = copy.objects("segments")[0]
    data = path.read_bytes()
    overwrite(path, data[: len(data) // 2])
    ((kind, place),) = place_kinds(copy)
    assert kind == "segment_altered"
    assert place.startswith("record ")


def test_a_dropped_segment(copy: House) -> None:
    path = copy.objects("segments")[1]
    path.unlink()
    assert [finding.kind for finding in copy.verify().findings] == ["segment_missing"]
    assert copy.verify().findings[0].place.endswith(path.name)


def test_swapped_segments(copy: House) -> None:
    one, two = copy.objects("segments")[:2]
    first, second = one.read_bytes(), two.read_bytes()
    overwrite(one, second)
    overwrite(two, first)
    kinds = [finding.kind for finding in copy.verify().findings]
    assert kinds == ["segment_replaced", "segment_replaced"]


def test_a_segment_replayed_under_another_name(copy: House) -> None:
    path = copy.objects("segments")[0]
    shutil.copy(path, path.with_name(f"{'0' * 28}-000001.jsonl.gz"))
    ((kind, _),) = place_kinds(copy)
    assert kind == "segment_unlisted"


def test_an_archived_segment_replayed_into_the_spool_is_listed_once(copy: House) -> None:
    path = copy.objects("segments")[0]
    name = path.name.removesuffix(".jsonl.gz")
    copy.spool.path(name, "sealed").write_bytes(gzip.decompress(path.read_bytes()))
    assert copy.verify().findings == []
    assert copy.seal().segments == 1
    assert copy.verify().findings == []


def test_a_spool_segment_dropped_before_it_was_sealed(copy: House) -> None:
    (name,) = copy.spool.names("sealed")
    copy.spool.path(name, "sealed").unlink()
    assert place_kinds(copy) == [("segment_unaccounted", name)]


def test_a_segment_nobody_registered(copy: House, tmp_path: Path) -> None:
    """A forger who can write the spool, but not the database."""
    forger = House(tmp_path / "forger", clock=copy.clock)
    forger.write(2)
    (name,) = forger.spool.names("sealed")
    shutil.copy(forger.spool.path(name, "sealed"), copy.spool.folder)
    assert place_kinds(copy) == [("segment_unregistered", name)]
    copy.seal()
    assert place_kinds(copy) == [("segment_unregistered", name)]


def copy_names(house: House) -> set[str]:
    archived = {path.name.removesuffix(".jsonl.gz") for path in house.objects("segments")}
    return archived | set(house.spool.names("sealed"))


def test_the_newest_manifest_dropped_with_its_segments(copy: House) -> None:
    newest = copy.objects("manifests")[-1]
    for entry in read_manifest(newest.read_bytes()).manifest.segments:
        (copy.root / "archive" / entry.name).unlink()
    newest.unlink()
    kinds = [kind for kind, _ in place_kinds(copy)]
    assert kinds == ["manifest_missing", "segment_unaccounted"]
    copy.store.pinned.clear()
    copy.store.registered = {name: each for name, each in copy.store.registered.items() if name in copy_names(copy)}
    assert "manifest_missing" not in [kind for kind, _ in place_kinds(copy)], "only the pin shows it"


def test_a_manifest_from_the_middle_dropped(copy: House) -> None:
    copy.objects("manifests")[1].unlink()
    kinds = dict(place_kinds(copy))
    assert kinds["manifest_missing"] == "manifest 2"
    assert "segment_unlisted" in kinds


def test_manifests_swapped(copy: House) -> None:
    one, two = copy.objects("manifests")[:2]
    first, second = one.read_bytes(), two.read_bytes()
    overwrite(one, second)
    overwrite(two, first)
    kinds = {kind for kind, _ in place_kinds(copy)}
    assert {"pin_mismatch", "manifest_sequence", "manifest_chain"} <= kinds


def test_signed_with_another_key(copy: House, tmp_path: Path) -> None:
    stranger = House(tmp_path / "stranger").key
    newest = copy.objects("manifests")[-1]
    old = read_manifest(newest.read_bytes()).manifest
    forged = write_manifest(old.trail, old.sequence, old.previous, old.segments, stranger, copy.clock())
    overwrite(newest, forged)
    assert place_kinds(copy) == [("pin_mismatch", "manifest 3"), ("manifest_key", "manifest 3")]


def test_a_signature_that_does_not_fit(copy: House) -> None:
    newest = copy.objects("manifests")[-1]
    data = newest.read_bytes()
    signature = read_manifest(data).signature
    overwrite(newest, data.replace(signature.encode(), signature[::-1].encode()))
    assert place_kinds(copy) == [("pin_mismatch", "manifest 3"), ("manifest_signature", "manifest 3")]


def relink(data: bytes) -> bytes:
    """Change record 2 of a segment and recompute everything that follows, as the chain takes no key."""
    lines = data.splitlines(keepends=True)
    check = check_segment([data], sealed=True)
    assert check.head is not None
    assert check.seal is not None
    writer, first = check.head.writer, check.head.first
    head_body = lines[0].rpartition(b',"h":"')[0] + b"}"
    chain = link(HEAD_TAG, bytes.fromhex(check.head.previous), head_body)
    output = [lines[0]]
    for index, line in enumerate(lines[1:-1], 1):
        body = line.rpartition(b',"h":"')[0] + b"}"
        if index == 2:
            fields = call_fields(999)
            body = canonical(
                build_event("llm.call", "ok", event_id(writer, first + 1), "2025-03-01T12:00:00.000Z", fields)
            )
        encoded, chain = encode_record(chain, body)
        output.append(encoded)
    seal, _ = encode_seal(chain, Seal(check.count, chain.hex(), check.seal.sealed_at))
    return b"".join([*output, seal])


def fresh_entry(name: str, stored: bytes, data: bytes) -> SegmentEntry:
    check = check_segment([data], sealed=True)
    assert check.head is not None
    return SegmentEntry(
        name=name,
        writer=check.head.writer,
        segment=check.head.segment,
        count=check.count,
        head=check.chain.hex(),
        seal=check.seal_hash,
        sha256=sha256(data).hexdigest(),
        stored_sha256=sha256(stored).hexdigest(),
        records=check.records.root().hex(),
    )


def test_a_relinked_segment_is_not_the_signed_one(copy: House) -> None:
    path = copy.objects("segments")[-1]
    overwrite(path, compress(relink(gzip.decompress(path.read_bytes()))))
    assert place_kinds(copy) == [("segment_relinked", "record unknown")]


def test_everything_relinked_with_the_stolen_key(copy: House) -> None:
    """Flawless within the archive; the pins know better."""
    previous = NO_MANIFEST
    for path in copy.objects("manifests"):
        old = read_manifest(path.read_bytes()).manifest
        entries = []
        for entry in old.segments:
            target = copy.root / "archive" / entry.name
            data = gzip.decompress(target.read_bytes())
            if old.sequence > 1:  # writers of one segment: no neighbour has to be relinked as well
                data = relink(data)
            overwrite(target, compress(data))
            entries.append(fresh_entry(entry.name, target.read_bytes(), data))
        overwrite(path, write_manifest(old.trail, old.sequence, previous, entries, copy.key, copy.clock()))
        previous = read_manifest(path.read_bytes()).hash
    assert place_kinds(copy) == [("pin_mismatch", f"manifest {n}") for n in (1, 2, 3)]
    assert verify(copy.archive, copy.spool, None, public_keys(copy.key)).findings == []


def test_a_manifest_that_lists_a_segment_twice(copy: House) -> None:
    """Signed with the stolen key and not yet pinned: what it says is checked all the same."""
    newest = read_manifest(copy.objects("manifests")[-1].read_bytes())
    forged = write_manifest("main", 4, newest.hash, newest.manifest.segments, copy.key, copy.clock())
    copy.archive.put("manifests/000000000004.json", forged)
    ((kind, _),) = place_kinds(copy)
    assert kind == "segment_duplicate"


def test_a_segment_left_out_of_its_writers_row(copy: House) -> None:
    """Removed from archive, manifests, pins and registry; its neighbours still speak of it."""
    middle = copy.objects("segments")[1]
    middle.unlink()
    previous = NO_MANIFEST
    copy.store.pinned.clear()
    for path in copy.objects("manifests"):
        old = read_manifest(path.read_bytes()).manifest
        entries = [entry for entry in old.segments if not entry.name.endswith(middle.name)]
        overwrite(path, write_manifest(old.trail, old.sequence, previous, entries, copy.key, copy.clock()))
        previous = read_manifest(path.read_bytes()).hash
        copy.store.pin_manifest("main", old.sequence, previous, copy.clock())
    name = middle.name.removesuffix(".jsonl.gz")
    del copy.store.registered[name]
    assert place_kinds(copy) == [("segment_gap", name)]


@pytest.mark.parametrize("name", ["manifests/note.txt", "manifests/4.json", "segments/2025/03/01/x.jsonl.gz"])
def test_foreign_objects_are_named(copy: House, name: str) -> None:
    copy.archive.put(name, b"x")
    (finding,) = copy.verify().findings
    assert finding.place == name
