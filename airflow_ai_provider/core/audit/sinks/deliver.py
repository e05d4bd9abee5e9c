"""Brings what is sealed to where it belongs: every segment to the archive, every event to the index.

    spool ──segments──▶ archive ──▶ (sealer: manifest, pin, the spool's copy goes)
      └────events, chunk by chunk───────────┬──▶ index
                    manifests ──▶ archive ──┘

Sealed segments are the spool: they stay until the sealer has them in a pinned manifest, so a sink that is down for
hours loses nothing, and neither sink waits for the other. The index takes from the spool what is there, and from the
archive what went by in the meantime; a cursor says for each sink and segment how far it got, chunk by chunk, so a
delivery that is killed again and again still goes forward. Memory does not grow with the trail.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import islice
from typing import Final

from airflow_ai_provider.core.audit.sealing.manifest import SegmentEntry, read_manifest
from airflow_ai_provider.core.audit.sinks.archive import (
    MANIFESTS,
    Archive,
    compress,
    manifest_object,
    manifest_sequence,
    segment_object,
)
from airflow_ai_provider.core.audit.sinks.progress import Cursor, DeadLetter, dead_letter
from airflow_ai_provider.core.audit.sinks.records import Record, archive_records, spool_records
from airflow_ai_provider.core.audit.sinks.search import Event, SearchIndex
from airflow_ai_provider.core.audit.trail.chain import segment_name
from airflow_ai_provider.core.audit.trail.spool import Spool, host_sign, is_from
from airflow_ai_provider.core.audit.verify.segment_reader import (
    ContainerDamaged,
    HashedChunks,
    check_segment,
    file_chunks,
    gunzip,
)
from airflow_ai_provider.core.errors import AuditError, StoreUnavailable

CHUNK: Final = 5000
"""Events between two steps of the cursor."""
ARCHIVE_SINK: Final = "archive"
LONGEST_WAIT: Final = timedelta(hours=1)
"""A sealed segment that waits longer is worth an alarm: the sealer does not run, or its archive is down."""
LEAST_FREE: Final = 2**30
"""Bytes. A full disk stops every call, since no call is made whose event cannot be written."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that stays where it is until it is looked into, and holds up nothing else."""

    place: str
    reason: str


@dataclass(slots=True)
class SinkReport:
    """What one delivery did for one sink."""

    segments: int = 0
    """Brought to their end."""
    events: int = 0
    """Delivered; to the index, those that were there already included."""
    dead: int = 0
    """Refused for good and written down as dead letters."""
    problems: list[Problem] = field(default_factory=list)
    error: str = ""
    """Why the rest waits for the next delivery."""


@dataclass(frozen=True, slots=True)
class SpoolState:
    """What waits on this host."""

    segments: int
    """Sealed, not yet in a pinned manifest."""
    bytes: int
    oldest: datetime | None
    """When the oldest of them was sealed."""
    free_bytes: int
    """On its disk."""

    def alarm(self, now: datetime) -> str:
        """What to do something about, empty if nothing."""
        if self.free_bytes < LEAST_FREE:
            return (
                f"audit spool: {self.free_bytes / 2**20:.0f} MiB left on its disk, {self.bytes / 2**20:.0f} MiB wait"
                " for the archive; without room no call is made: free the disk or mend the archive"
            )
        if self.oldest is not None and now - self.oldest > LONGEST_WAIT:
            hours = (now - self.oldest).total_seconds() / 3600
            return (
                f"audit spool: {self.segments} segments wait for the archive, the oldest for {hours:.1f} hours;"
                " see that the seal DAG runs and the archive answers"
            )
        return ""


@dataclass(slots=True)
class DeliveryReport:
    """What one delivery did."""

    sinks: dict[str, SinkReport] = field(default_factory=dict)
    """``archive`` and ``index``."""
    busy: bool = False
    """Another delivery is at work; nothing was done."""

    def deliver(self, sink: str, run: Callable[[], SinkReport]) -> None:
        """Run towards one sink; what it cannot reach does not keep the other from its own."""
        try:
            self.sinks[sink] = run()
        except (StoreUnavailable, AuditError) as error:
            self.sinks[sink] = SinkReport(error=str(error))

    @property
    def is_good(self) -> bool:
        """Everything that was sealed is where it belongs."""
        return not any(each.error or each.dead or each.problems for each in self.sinks.values())


@dataclass(frozen=True, slots=True)
class _Source:
    """A segment and where its records can be read."""

    segment: str
    records: Callable[[], Iterator[Record]]


def deliver_to_archive(spool: Spool, archive: Archive, cursor: Cursor) -> SinkReport:
    """Put every sealed segment into the archive and read it back. The sealer lists it, and clears the spool."""
    report = SinkReport()
    names = spool.names("sealed")
    cursor.keep_only(ARCHIVE_SINK, names)
    try:
        for name in names:
            if not cursor.progress(ARCHIVE_SINK, name).finished:
                _archive(spool, archive, cursor, name, report)
    except (StoreUnavailable, AuditError) as error:
        report.error = str(error)
    return report


def _archive(spool: Spool, archive: Archive, cursor: Cursor, name: str, report: SinkReport) -> None:
    try:
        data = spool.path(name, "sealed").read_bytes()
    except FileNotFoundError:
        return  # the sealer was here
    check = check_segment([data], sealed=True)
    if check.fault is not None or check.head is None or check.head.name != name:
        report.problems.append(Problem(name, "its chain is broken; run airflow ai audit verify"))
        return
    target = segment_object(check.head)
    archive.put(target, compress(data))
    if _content_hash(archive, target) != sha256(data).hexdigest():
        report.problems.append(Problem(name, f"{target} in the archive holds other bytes; run airflow ai audit verify"))
        return
    cursor.arrived(ARCHIVE_SINK, name, check.count, finished=True)
    report.segments += 1
    report.events += check.count


def _content_hash(archive: Archive, name: str) -> str:
    """Of what an archived segment holds, read back; empty when it cannot be read to its end."""
    with archive.open(name) as stream:
        try:
            return HashedChunks(gunzip(file_chunks(stream))).drain()
        except ContainerDamaged:
            return ""


def deliver_to_index(
    spool: Spool,
    archive: Archive,
    index: SearchIndex,
    cursor: Cursor,
    now: datetime,
    *,
    chunk: int = CHUNK,
    beside_others: bool = True,
) -> SinkReport:
    """Index every event that is sealed and not yet there.

    ``beside_others`` says that other hosts deliver to this index as well: what they wrote may be there already.
    """
    report = SinkReport()
    try:
        delivery = _IndexDelivery(index, cursor, now, chunk, report)
        delivery.of_spool(spool)
        delivery.of_archive(archive, beside_others=beside_others)
        if report.events:
            index.refresh()
    except (StoreUnavailable, AuditError) as error:
        report.error = str(error)
    return report


class _IndexDelivery:
    """One run towards the index."""

    def __init__(self, index: SearchIndex, cursor: Cursor, now: datetime, chunk: int, report: SinkReport) -> None:
        self._index = index
        self._cursor = cursor
        self._now = now
        self._chunk = chunk
        self._report = report
        self._sink = index_sink(index)

    def of_spool(self, spool: Spool) -> None:
        for name in spool.names("sealed"):
            path = spool.path(name, "sealed")
            # Moved on to the archive meanwhile: it comes back with its manifest.
            self._deliver(_Source(name, lambda path=path: spool_records(path)))  # type: ignore[misc]

    def of_archive(self, archive: Archive, *, beside_others: bool) -> None:
        """What the manifests list, in their order, from where the last delivery ended."""
        done, here = self._cursor.manifest(self._sink), host_sign()
        numbers = sorted(number for name in archive.list(MANIFESTS) if (number := manifest_sequence(name)))
        for number in (number for number in numbers if number > done):
            entries = self._entries(archive, number)
            names = [segment_name(entry.writer, entry.segment) for entry in entries]
            for name, entry in zip(names, entries, strict=True):
                source = _Source(name, lambda entry=entry: archive_records(archive, entry.name))  # type: ignore[misc]
                replay = beside_others and not is_from(entry.writer, here)
                found = self._deliver(source, replay=replay)
                if not found:
                    self._report.problems.append(Problem(entry.name, "is not in the archive; run audit verify"))
            self._cursor.manifest_arrived(self._sink, number, names)

    def _entries(self, archive: Archive, number: int) -> tuple[SegmentEntry, ...]:
        name = manifest_object(number)
        try:
            data = archive.get(name)
        except FileNotFoundError:
            self._report.problems.append(Problem(name, "vanished while it was read; run airflow ai audit verify"))
            return ()
        try:
            return read_manifest(data).manifest.segments
        except AuditError as error:
            self._report.problems.append(Problem(name, f"{error}; run airflow ai audit verify"))
            return ()

    def _deliver(self, source: _Source, *, replay: bool = False) -> bool:
        """Deliver a segment to its end; false when it is not there."""
        progress = self._cursor.progress(self._sink, source.segment)
        if progress.finished:
            return True
        done = progress.done
        try:
            records = islice(source.records(), done, None)
            while batch := list(islice(records, self._chunk)):
                # What was sent and not seen to arrive may be there.
                self._send(source.segment, batch, done, replay=replay or progress.sent > done)
                done += len(batch)
        except FileNotFoundError:
            return False
        self._cursor.arrived(self._sink, source.segment, done, finished=True)
        self._report.segments += 1
        return True

    def _send(self, segment: str, batch: list[Record], done: int, *, replay: bool) -> None:
        end = done + len(batch)
        self._cursor.sending(self._sink, segment, done, end)
        events = {record.number: record.event for record in batch if record.event is not None}
        refused = self._index.add(list(events.values()), replay=replay)
        dead = [
            *self._unreadable(segment, batch),
            *self._refused(segment, events, {r.event_id: r.reason for r in refused}),
        ]
        self._cursor.arrived(self._sink, segment, end, dead)
        self._report.events += len(batch) - len(dead)
        self._report.dead += len(dead)

    def _unreadable(self, segment: str, batch: list[Record]) -> Iterator[DeadLetter]:
        for record in batch:
            if record.event is None:
                yield dead_letter(segment, record.number, "", "cannot be read as an event", self._now)

    def _refused(self, segment: str, events: dict[int, Event], reasons: dict[str, str]) -> Iterator[DeadLetter]:
        for number, event in events.items():
            if (reason := reasons.get(event["event.id"])) is not None:
                yield dead_letter(segment, number, event["event.id"], reason, self._now)


def index_sink(index: SearchIndex) -> str:
    """The index' name in the cursor."""
    return f"index {index.identity()}"


def rebuild_index(spool: Spool, archive: Archive, index: SearchIndex, cursor: Cursor, now: datetime) -> SinkReport:
    """Empty the index and fill it from the archive. Killed, the next delivery goes on where it was."""
    cursor.forget(index_sink(index))
    index.clear()
    cursor.forget(index_sink(index))  # an index that is made anew has another identity
    return deliver_to_index(spool, archive, index, cursor, now, beside_others=False)


def spool_state(spool: Spool) -> SpoolState:
    """What waits on this host, and how much room there is."""
    sizes, times = [], []
    for name in spool.names("sealed"):
        try:
            found = spool.path(name, "sealed").stat()
        except FileNotFoundError:
            continue
        sizes.append(found.st_size)
        times.append(found.st_mtime)
    folder = next(each for each in (spool.folder, *spool.folder.parents) if each.exists())
    oldest = datetime.fromtimestamp(min(times)).astimezone() if times else None
    return SpoolState(len(sizes), sum(sizes), oldest, shutil.disk_usage(folder).free)
