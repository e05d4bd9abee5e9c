"""Verification of segments, in the archive and in the spool, and of how a writer's segments follow each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import pairwise

from airflow_ai_provider.core.audit.sealing.manifest import SegmentEntry
from airflow_ai_provider.core.audit.sealing.recover import is_abandoned
from airflow_ai_provider.core.audit.sinks.archive import SEGMENTS, Archive, segment_object
from airflow_ai_provider.core.audit.trail.chain import NO_SEGMENT, segment_name
from airflow_ai_provider.core.audit.trail.spool import Spool
from airflow_ai_provider.core.audit.verify.findings import (
    DAMAGED,
    DROPPED,
    EDITED,
    INSERTED,
    REPLAYED,
    REWRITTEN,
    SWAPPED,
    VerifyReport,
)
from airflow_ai_provider.core.audit.verify.segment_reader import (
    ContainerDamaged,
    HashedChunks,
    SegmentCheck,
    Visitor,
    check_segment,
    file_chunks,
    gunzip,
)


@dataclass(frozen=True, slots=True)
class Window:
    """The days (UTC, both included) whose segments are read. A segment belongs to the days it was written on: it was
    opened on the last of them or before, and sealed on the first or after."""

    since: date | None = None
    until: date | None = None

    def reads(self, name: str) -> bool:
        """Whether a segment that was sealed since the first day is read."""
        return self.until is None or _day(name) <= self.until.isoformat()

    def has(self, name: str) -> bool:
        """Whether a segment was opened on one of the days."""
        return (self.since is None or self.since.isoformat() <= _day(name)) and self.reads(name)


def _day(name: str) -> str:
    return name.removeprefix(SEGMENTS)[:10].replace("/", "-")


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
    oldest: datetime | None = None
    """No segment that is counted was opened before."""

    def add(self, name: str, check: SegmentCheck) -> None:
        self.counts[name] = check.count
        if check.head is not None:
            self.opened(datetime.fromisoformat(check.head.opened_at))
        # Only an intact segment speaks for its neighbours: one changed byte is one finding.
        if check.head is not None and check.head.name == name and check.fault is None:
            link = Link(check.head.previous, check.seal_hash, check.head.first, check.count)
            self.links.setdefault(check.head.writer, {})[check.head.segment] = link

    def listed(self, entry: SegmentEntry) -> None:
        """Count a segment that is listed and was not read."""
        self.counts.setdefault(segment_name(entry.writer, entry.segment), entry.count)
        self.opened(datetime.fromisoformat(_day(entry.name)).replace(tzinfo=UTC))

    def opened(self, moment: datetime) -> None:
        self.oldest = moment if self.oldest is None else min(self.oldest, moment)


def check_spool(spool: Spool, report: VerifyReport, visit: Visitor | None) -> Seen:
    """Check what still waits in the spool. Files that move on meanwhile are left to the next stage."""
    seen = Seen()
    opened = spool.names("open")
    for name in spool.names("sealed"):
        _check_waiting(spool, name, "sealed", report, seen, visit)
    for name in opened:
        if not _check_waiting(spool, name, "open", report, seen, visit) and name not in seen.counts:
            _check_waiting(spool, name, "sealed", report, seen, visit)
    return seen


def _check_waiting(
    spool: Spool, name: str, state: str, report: VerifyReport, seen: Seen, visit: Visitor | None
) -> bool:
    path = spool.path(name, state)
    place = f"spool {name}.{state}"
    try:
        with path.open("rb") as stream:
            content = HashedChunks(file_chunks(stream))
            check = check_segment(content, sealed=state == "sealed", visit=visit)
            if state == "sealed":
                seen.waiting[name] = content.drain()
    except FileNotFoundError:
        return False
    _count(check, report)
    seen.add(name, check)
    if check.fault is not None:
        report.find("segment_altered", f"{place}: {check.fault.place}", check.fault.detail, check.fault.attack)
    elif check.head is not None and (check.head.name, check.head.trail) != (name, spool.trail):
        report.find("segment_replaced", place, f"holds segment {check.head.name}", REPLAYED)
    elif state == "sealed":
        report.note("segment_waiting", place, f"{check.count} records, waiting for the sealer")
    elif is_abandoned(spool, name):
        report.note("segment_abandoned", place, f"{check.count} records, its writer is gone; recovery will seal it")
    else:
        report.note("segment_open", place, f"{check.count} records so far")
    _note_recovery(check, place, report)
    return True


def check_archived(
    archive: Archive,
    objects: Set[str],
    entries: Iterable[SegmentEntry],
    seen: Seen,
    report: VerifyReport,
    *,
    window: Window,
    visit: Visitor | None,
    waits: Callable[[str], bool],
) -> None:
    """Check every listed segment of the window, and that ``objects``, the names in the archive, holds nothing else.

    ``waits`` says whether a segment may still have to be sealed by another host.
    """
    listed: set[str] = set()
    held: dict[str, str] = {}
    for entry in entries:
        if entry.name in listed:
            report.find("segment_duplicate", entry.name, "listed twice in the manifests", REPLAYED)
            continue
        listed.add(entry.name)
        name = segment_name(entry.writer, entry.segment)
        if not window.reads(entry.name):
            seen.listed(entry)
            continue
        try:
            # A sealer that was at work has moved here what was read in the spool; each event is visited once.
            check = _check_listed(archive, entry, held, report, None if name in seen.counts else visit)
        except FileNotFoundError:
            seen.listed(entry)
            report.find("segment_missing", entry.name, f"{entry.count} records, listed and not there", DROPPED)
            continue
        if seen.waiting.get(name, entry.sha256) != entry.sha256:
            report.find("segment_conflict", f"spool {name}.sealed", "differs from the archived one", REWRITTEN)
        seen.add(name, check)
    for place, name in held.items():
        attack = SWAPPED if held.get(name) == place else REPLAYED
        report.find("segment_replaced", place, f"holds {name or 'another segment'}, itself intact", attack)
    for extra in sorted(name for name in objects - listed if window.has(name)):
        _check_unlisted(archive, extra, listed, seen, report, waits)


def _check_listed(
    archive: Archive, entry: SegmentEntry, held: dict[str, str], report: VerifyReport, visit: Visitor | None
) -> SegmentCheck:
    """One listed segment; where it is another, intact one, ``held`` is told which."""
    check, content, stored = _read_object(archive, entry.name, visit)
    _count(check, report)
    _note_recovery(check, entry.name, report)
    fault = check.fault
    if fault is not None:
        kind = "segment_altered" if stored != entry.stored_sha256 else "segment_sealed_broken"
        report.find(kind, f"{entry.name}: {fault.place}", fault.detail, fault.attack)
    elif check.head is None or segment_object(check.head) != entry.name or check.head.trail != report.trail:
        held[entry.name] = segment_object(check.head) if check.head is not None else ""
    elif content != entry.sha256:
        place = f"{entry.name}: record unknown"
        report.find("segment_relinked", place, "chain is whole but not the signed one", REWRITTEN)
    elif stored != entry.stored_sha256:
        place = f"{entry.name}: after record {check.count}"
        report.find("container_altered", place, "compressed file was changed, no record was", DAMAGED)
    elif _facts(check) != (entry.count, entry.head, entry.seal, entry.records):
        report.find("manifest_mismatch", entry.name, "manifest states another count, head or root", "manifest forged")
    return check


def _facts(check: SegmentCheck) -> tuple[int, str, str, str]:
    return check.count, check.chain.hex(), check.seal_hash, check.records.root().hex()


def _check_unlisted(
    archive: Archive, name: str, listed: Set[str], seen: Seen, report: VerifyReport, waits: Callable[[str], bool]
) -> None:
    """Only a sealer that is at work, or died, leaves one: its segment is still in the spool, here or on its host."""
    check, content, _ = _read_object(archive, name, None)
    segment = check.head.name if check.head is not None else ""
    if check.fault is None and seen.waiting.get(segment) == content:
        report.note("segment_unlisted", name, "archived, not yet in a manifest")
    elif check.fault is None and check.head is not None and segment_object(check.head) == name and waits(segment):
        report.note("segment_unlisted", name, "archived by another host, not yet in a manifest")
    elif check.head is not None and segment_object(check.head) in listed - {name}:
        report.find("segment_unlisted", name, f"a copy of {segment_object(check.head)}, in no manifest", REPLAYED)
    else:
        report.find("segment_unlisted", name, "in the archive and in no manifest", INSERTED)


def _read_object(archive: Archive, name: str, visit: Visitor | None) -> tuple[SegmentCheck, str, str]:
    """One reading: the chain, the hash of the content as far as it could be read, the hash as stored."""
    with archive.open(name) as stream:
        stored = HashedChunks(file_chunks(stream))
        content = HashedChunks(gunzip(stored))
        check = check_segment(content, sealed=True, visit=visit)
        try:
            digest = content.drain()
        except ContainerDamaged:
            digest = ""
        return check, digest, stored.drain()


def check_writers(seen: Seen, report: VerifyReport, window: Window) -> None:
    """Each segment of a writer follows from the one before it, in seal and in event numbers."""
    for writer, links in seen.links.items():
        numbers = sorted(links)
        lowest = links[numbers[0]]
        if numbers[0] == 1 and (lowest.previous, lowest.first) != (NO_SEGMENT.hex(), 1):
            report.find("segment_link", segment_name(writer, 1), "does not start its writer's chain", REWRITTEN)
        for number in _gaps(writer, numbers, seen, from_start=window.since is None):
            report.find("segment_gap", segment_name(writer, number), "its writer's later segments follow it", DROPPED)
        for before, after in pairwise(numbers):
            if after == before + 1 and not _follows(links[before], links[after]):
                place = segment_name(writer, after)
                report.find("segment_link", place, "does not follow from the segment before it", REWRITTEN)


def _gaps(writer: str, numbers: list[int], seen: Seen, *, from_start: bool) -> list[int]:
    """Numbers below the highest that were seen nowhere; of a long run only the first."""
    gaps = [1] if from_start and numbers[0] > 1 else []
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
            EDITED,
        )
    else:
        report.note("segment_recovered", place, f"sealed after its writer's death, {seal.torn_bytes} bytes torn")
