"""The proof that one event is in the trail: two Merkle paths and a signed statement, and nothing of other events.

    event ──path──▶ root of its segment's records ──path──▶ root of the manifest's segments ◀── signature

``scripts/verify_proof.py`` checks one with nothing but the sealer's public key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any, Final

from airflow_ai_provider.core.audit.sealing.manifest import (
    SegmentEntry,
    SignedManifest,
    inclusion_path,
    leaf_hash,
    read_manifest,
)
from airflow_ai_provider.core.audit.sinks.archive import MANIFESTS, Archive, manifest_object, manifest_sequence
from airflow_ai_provider.core.audit.verify.manifests import first_since
from airflow_ai_provider.core.audit.verify.segment_reader import check_segment, file_chunks, gunzip
from airflow_ai_provider.core.errors import AuditError

FORMAT: Final = "airflow-ai audit proof 1"
_DAY_BEFORE: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class _Place:
    signed: SignedManifest
    index: int
    """Of the segment in its manifest."""

    @property
    def entry(self) -> SegmentEntry:
        return self.signed.manifest.segments[self.index]


def prove(archive: Archive, event_id: str) -> dict[str, Any]:
    """The proof for one event, as JSON values.

    Raises ``AuditError`` where no manifest lists the event's segment (it is not sealed yet, or never was), or where
    the segment is not what was signed; ``StoreUnavailable`` where the archive cannot be reached.
    """
    writer, number = _parts(event_id)
    for place in _segments_of(archive, writer):
        if place.entry.count < number:
            number -= place.entry.count
            continue
        body, leaves = _read_records(archive, place.entry, number)
        entries = [entry.leaf() for entry in place.signed.manifest.segments]
        return {
            "format": FORMAT,
            "event": body.decode(),
            "record": {"index": number - 1, "path": _hex(inclusion_path(leaves, number - 1))},
            "segment": asdict(place.entry),
            "entry": {"index": place.index, "path": _hex(inclusion_path(entries, place.index))},
            "statement": place.signed.manifest.statement(),
            "signature": place.signed.signature,
        }
    raise AuditError(f"event {event_id}: no manifest lists its segment; it is not sealed yet, or does not exist")


def _parts(event_id: str) -> tuple[str, int]:
    writer, _, digits = event_id.rpartition("-")
    if not writer or not digits.isdecimal() or int(digits) < 1:
        raise AuditError(f"event id {event_id!r}: expected a writer and a number, such as 01a203b3b29c7d29dda9-17")
    return writer, int(digits)


def _segments_of(archive: Archive, writer: str) -> Iterator[_Place]:
    """The segments of a writer, in order: its events are numbered across them without gaps."""
    found: list[_Place] = []
    numbers = {number for name in archive.list(MANIFESTS) if (number := manifest_sequence(name))}
    first = first_since(archive, numbers, _day_before(writer))
    for sequence in sorted(number for number in numbers if number >= first):
        signed = read_manifest(archive.get(manifest_object(sequence)))
        for index, entry in enumerate(signed.manifest.segments):
            if entry.writer == writer:
                found.append(_Place(signed, index))
    yield from sorted(found, key=lambda place: place.entry.segment)


def _day_before(writer: str) -> date | None:
    """A writer's id begins with the moment it was made, in milliseconds; a day is left for clocks that differ."""
    try:
        milliseconds = int(writer[:12], 16) - _DAY_BEFORE
        return datetime.fromtimestamp(milliseconds / 1000, UTC).date()
    except (ValueError, OverflowError, OSError):
        return None


def _read_records(archive: Archive, entry: SegmentEntry, number: int) -> tuple[bytes, list[bytes]]:
    """The ``number``-th record's body, and the leaf hashes of all."""
    leaves: list[bytes] = []
    wanted = b""

    def visit(document: dict[str, Any], body: bytes) -> None:
        nonlocal wanted
        leaves.append(leaf_hash(body))
        if len(leaves) == number:
            wanted = body

    try:
        with archive.open(entry.name) as stream:
            check = check_segment(gunzip(file_chunks(stream)), sealed=True, visit=visit)
    except FileNotFoundError:
        raise AuditError(f"{entry.name} is not in the archive; run airflow ai audit verify") from None
    if check.fault is not None or check.records.root().hex() != entry.records:
        raise AuditError(f"{entry.name} is not what was signed; run airflow ai audit verify")
    return wanted, leaves


def _hex(path: list[bytes]) -> list[str]:
    return [each.hex() for each in path]
