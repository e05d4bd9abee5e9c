"""Verification of segments, in the archive and in the spool, and of how a writer's segments follow each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from airflow_ai_provider.audit.archive import Archive, segment_object
from airflow_ai_provider.audit.chain import NO_SEGMENT, segment_name
from airflow_ai_provider.audit.findings import VerifyReport
from airflow_ai_provider.audit.manifest import SegmentEntry
from airflow_ai_provider.audit.reader import (
    ContainerDamaged,
    HashedChunks,
    SegmentCheck,
    check_segment,
    file_chunks,
    gunzip,
)
from airflow_ai_provider.audit.recover import is_abandoned
from airflow_ai_provider.audit.spool import Spool


@dataclass(frozen=True, slots=True)
class Link:
    """What a segment says of its neighbours."""

    previous: str
    seal: str
    """Empty while open."""
    first: int
    count: int


@dataclass(slots=True)
class Seen:
    """Segments that are accounted for, by name and by writer."""

    counts: dict[str, int] = field(default_factory=dict)
    """Intact records by segment name."""
    links: dict[str, dict[int, Link]] = field(default_factory=dict)
    """By writer and number."""
    waiting: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the sealed segments in the spool, by name."""

    def add(self, name: str, check: SegmentCheck) -> None:
        self.counts[name] = check.count
        # Only an intact segment speaks for its neighbours: one changed byte is one finding.
        if check.head is not None and check.head.name == name and check.fault is None:
            link = Link(check.head.previous, check.seal_hash, check.head.first, check.count)
            self.links.setdefault(check.head.writer, {})[check.head.segment] = link


def check_spool(spool: Spool, report: VerifyReport) -> Seen:
    """Check what still waits in the spool. Files that move on meanwhile are left to the next stage."""
    seen = Seen()
    opened = spool.names("open")
    for name in spool.names("sealed"):
        _check_waiting(spool, name, "sealed", report, seen)
    for name in opened:
        if not _check_waiting(spool, name, "open", report, seen) and name not in seen.counts:
            _check_waiting(spool, name, "sealed", report, seen)
    return seen


def _check_waiting(spool: Spool, name: str, state: str, report: VerifyReport, seen: Seen) -> bool:
    path = spool.path(name, state)
    place = f"spool {name}.{state}"
    try:
        with path.open("rb") as stream:
            content = HashedChunks(file_chunks(stream))
            check = check_segment(content, sealed=state == "sealed")
            if state == "sealed":
                seen.waiting[name] = content.drain()
    except FileNotFoundError:
        return False
    _count(check, report)
    seen.add(name, check)
    if check.fault is not None:
        report.find("segment_altered", f"{place}: {check.fault.place}", check.fault.detail, check.fault.attack)
    elif check.head is not None and (check.head.name, check.head.trail) != (name, spool.trail):
        report.find("segment_replaced", place, f"holds segment {check.head.name}", "swapped or renamed")
    elif state == "sealed":
        report.note("segment_waiting", place, f"{check.count} records, waiting for the sealer")
    elif is_abandoned(spool, name):
        report.note("segment_abandoned", place, f"{check.count} records, its writer is gone; recovery will seal it")
    else:
        report.note("segment_open", place, f"{check.count} records so far")
    _note_recovery(check, place, report)
    return True


def check_archived(
    archive: Archive, objects: set[str], entries: Iterable[SegmentEntry], seen: Seen, report: VerifyReport
) -> None:
    """Check every listed segment, and that ``objects``, the names in the archive, holds nothing else."""
    listed: set[str] = set()
    for entry in entries:
        if entry.name in listed:
            report.find("segment_duplicate", entry.name, "listed twice in the manifests", "replayed")
            continue
        listed.add(entry.name)
        name = segment_name(entry.writer, entry.segment)
        try:
            check = _check_listed(archive, entry, report)
        except FileNotFoundError:
            seen.counts.setdefault(name, entry.count)
            report.find("segment_missing", entry.name, f"{entry.count} records, listed and not there", "removed")
            continue
        if seen.waiting.get(name, entry.sha256) != entry.sha256:
            report.find("segment_conflict", f"spool {name}.sealed", "differs from the archived one", "forged")
        seen.add(name, check)
    for extra in sorted(objects - listed):
        _check_unlisted(archive, extra, seen, report)


def _check_listed(archive: Archive, entry: SegmentEntry, report: VerifyReport) -> SegmentCheck:
    check, content, stored = _read_object(archive, entry.name)
    _count(check, report)
    _note_recovery(check, entry.name, report)
    fault = check.fault
    if fault is not None:
        kind = "segment_altered" if stored != entry.stored_sha256 else "segment_sealed_broken"
        report.find(kind, f"{entry.name}: {fault.place}", fault.detail, fault.attack)
    elif check.head is None or segment_object(check.head) != entry.name or check.head.trail != report.trail:
        report.find("segment_replaced", entry.name, "holds another segment, itself intact", "swapped or replayed")
    elif content != entry.sha256:
        report.find(
            "segment_relinked",
            f"{entry.name}: record unknown",
            "chain is whole but not the signed one",
            "rewritten",
        )
    elif stored != entry.stored_sha256:
        place = f"{entry.name}: after record {check.count}"
        report.find("container_altered", place, "compressed file was changed, no record was", "edited or damaged")
    elif _facts(check) != (entry.count, entry.head, entry.seal, entry.records):
        report.find("manifest_mismatch", entry.name, "manifest states another count, head or seal", "manifest forged")
    return check


def _facts(check: SegmentCheck) -> tuple[int, str, str, str]:
    return check.count, check.chain.hex(), check.seal_hash, check.records.root().hex()


def _check_unlisted(archive: Archive, name: str, seen: Seen, report: VerifyReport) -> None:
    """A sealer that is at work, or died, has put a segment there that still lies in the spool. Nobody else has."""
    check, content, _ = _read_object(archive, name)
    segment = check.head.name if check.head is not None else ""
    if check.fault is None and seen.waiting.get(segment) == content:
        report.note("segment_unlisted", name, "archived, not yet in a manifest")
        return
    report.find("segment_unlisted", name, "in the archive and in no manifest", "inserted, or its manifest removed")


def _read_object(archive: Archive, name: str) -> tuple[SegmentCheck, str, str]:
    """One reading: the chain, the hash of the content as far as it could be read, the hash as stored."""
    with archive.open(name) as stream:
        stored = HashedChunks(file_chunks(stream))
        content = HashedChunks(gunzip(stored))
        check = check_segment(content, sealed=True)
        try:
            digest = content.drain()
        except ContainerDamaged:
            digest = ""
        return check, digest, stored.drain()


def check_writers(seen: Seen, report: VerifyReport) -> None:
    """Each segment of a writer follows from the one before it, in seal and in event numbers."""
    for writer, links in seen.links.items():
        numbers = sorted(links)
        lowest = links[numbers[0]]
        if numbers[0] == 1 and (lowest.previous, lowest.first) != (NO_SEGMENT.hex(), 1):
            report.find("segment_link", segment_name(writer, 1), "does not start its writer's chain", "replaced")
        for number in _gaps(writer, numbers, seen):
            report.find("segment_gap", segment_name(writer, number), "its writer's later segments follow it", "removed")
        for before, after in pairwise(numbers):
            if after == before + 1 and not _follows(links[before], links[after]):
                place = segment_name(writer, after)
                report.find("segment_link", place, "does not follow from the segment before it", "replaced or relinked")


def _gaps(writer: str, numbers: list[int], seen: Seen) -> list[int]:
    """Numbers below the highest that were seen nowhere; of a long run only the first."""
    gaps = [1] if numbers[0] > 1 else []
    gaps += [before + 1 for before, after in pairwise(numbers) if after > before + 1]
    return [number for number in gaps if segment_name(writer, number) not in seen.counts]


def _follows(before: Link, after: Link) -> bool:
    return after.previous == before.seal and after.first == before.first + before.count


def _count(check: SegmentCheck, report: VerifyReport) -> None:
    report.segments += 1
    report.events += check.count


def _note_recovery(check: SegmentCheck, place: str, report: VerifyReport) -> None:
    seal = check.seal
    if seal is None or not seal.recovered:
        return
    if seal.damaged:
        report.find(
            "segment_damaged",
            f"{place}: after record {check.count}",
            f"{seal.torn_bytes} bytes with finished lines did not follow and were cut off in recovery (.torn)",
            "edited before it was sealed, or a broken disk",
        )
    else:
        report.note("segment_recovered", place, f"sealed after its writer's death, {seal.torn_bytes} bytes torn")
