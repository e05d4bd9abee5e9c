"""Verification of the manifests: numbers without gaps, pins, signatures, links, Merkle roots."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Set
from datetime import date, datetime

from airflow_ai_provider.core.audit.sealing.manifest import (
    NO_MANIFEST,
    SegmentEntry,
    SignedManifest,
    manifest_hash,
    read_manifest,
)
from airflow_ai_provider.core.audit.sealing.signing import PublicKeys
from airflow_ai_provider.core.audit.sinks.archive import MANIFESTS, Archive, manifest_object, manifest_sequence
from airflow_ai_provider.core.audit.trail.chain import segment_name
from airflow_ai_provider.core.audit.trail.events import format_time
from airflow_ai_provider.core.audit.verify.findings import (
    EDITED,
    INSERTED,
    MANIFEST_DROPPED,
    MANIFEST_REPLACED,
    NEWEST_DROPPED,
    OTHER_KEY,
    RELINKED,
    VerifyReport,
)
from airflow_ai_provider.core.errors import AuditError


def check_manifests(
    archive: Archive,
    listed: Set[int],
    pins: Mapping[int, str] | None,
    keys: PublicKeys,
    report: VerifyReport,
    *,
    first: int = 1,
) -> Iterator[SegmentEntry]:
    """Check the manifests from number ``first`` on, and yield what they list.

    ``listed`` are the numbers in the archive; ``pins`` hashes by number, ``None`` when they cannot be had.
    """
    pinned = pins or {}
    newest_listed = max(listed, default=0)
    expected, previous = first, NO_MANIFEST if first == 1 else pinned.get(first - 1, "")
    for sequence in sorted(number for number in listed | set(pinned) if number >= first):
        if sequence > expected:
            _missing(report, expected, sequence - 1, MANIFEST_DROPPED)
            previous = ""
        try:
            data = archive.get(manifest_object(sequence))
        except FileNotFoundError:
            _missing(report, sequence, sequence, NEWEST_DROPPED if sequence > newest_listed else MANIFEST_DROPPED)
            previous = pinned.get(sequence, "")
        else:
            yield from _check_one(data, sequence, previous, pins, keys, report)
            previous = manifest_hash(data)
        expected = sequence + 1


def first_since(archive: Archive, listed: Set[int], since: date | None) -> int:
    """The first manifest written on the day ``since`` or later: manifests are in the order of time.

    One that cannot be read counts as later, so that nothing is left out because of it.
    """
    numbers = sorted(listed)
    if since is None or not numbers:
        return 1
    index = bisect_left(numbers, since.isoformat(), key=lambda number: _created_at(archive, number))
    return numbers[index] if index < len(numbers) else numbers[-1] + 1


def listed_before(archive: Archive, listed: Set[int], first: int, moment: datetime) -> set[str]:
    """Names of the segments in manifests with numbers below ``first`` that were written since a moment."""
    names: set[str] = set()
    for sequence in sorted((number for number in listed if number < first), reverse=True):
        try:
            manifest = read_manifest(archive.get(manifest_object(sequence))).manifest
        except (AuditError, FileNotFoundError):
            continue  # a verification of the days it is from names it
        if manifest.created_at < format_time(moment):
            break
        names.update(segment_name(entry.writer, entry.segment) for entry in manifest.segments)
    return names


def _created_at(archive: Archive, sequence: int) -> str:
    try:
        return read_manifest(archive.get(manifest_object(sequence))).manifest.created_at
    except (AuditError, FileNotFoundError):
        return "9999"


def manifest_numbers(archive: Archive, report: VerifyReport) -> set[int]:
    """Numbers of the manifests in the archive; any other name among them is a finding."""
    numbers = set()
    for name in archive.list(MANIFESTS):
        number = manifest_sequence(name)
        if number is None:
            report.find("foreign_object", name, "is not a manifest's name", INSERTED)
        else:
            numbers.add(number)
    return numbers


def _missing(report: VerifyReport, first: int, last: int, attack: str) -> None:
    place = f"manifest {first}" if first == last else f"manifests {first} to {last}"
    report.find("manifest_missing", place, "not in the archive, though a later manifest or a pin shows it was", attack)


def _check_one(
    data: bytes,
    sequence: int,
    previous: str,
    pins: Mapping[int, str] | None,
    keys: PublicKeys,
    report: VerifyReport,
) -> tuple[SegmentEntry, ...]:
    """Check one manifest and return what it lists. ``previous`` is the hash of the one before, empty if unknown."""
    place = f"manifest {sequence}"
    report.manifests += 1
    try:
        signed = read_manifest(data)
    except AuditError as error:
        if pins is not None:
            _check_pin(sequence, manifest_hash(data), pins, MANIFEST_REPLACED, report)
        report.find("manifest_unreadable", place, str(error), EDITED)
        return ()
    manifest = signed.manifest
    fault = _signature_fault(signed, keys)
    if pins is not None:
        _check_pin(sequence, signed.hash, pins, MANIFEST_REPLACED if fault else RELINKED, report)
    if fault:
        kind, detail, attack = fault
        report.find(kind, place, detail, attack)
    if (manifest.trail, manifest.sequence) != (report.trail, sequence):
        detail = f"says it is {manifest.sequence} of trail {manifest.trail}"
        report.find("manifest_sequence", place, detail, MANIFEST_REPLACED)
    if previous and manifest.previous != previous:
        report.find("manifest_chain", place, "does not follow from the manifest before it", MANIFEST_REPLACED)
    if not manifest.is_whole:
        report.find("merkle_root", place, "its Merkle root is not that of the segments it lists", EDITED)
    return manifest.segments


def _check_pin(sequence: int, digest: str, pins: Mapping[int, str], attack: str, report: VerifyReport) -> None:
    place = f"manifest {sequence}"
    newest = max(pins, default=0)
    if sequence in pins:
        if pins[sequence] != digest:
            report.find("pin_mismatch", place, "is not the manifest that was pinned", attack)
    elif sequence == newest + 1:
        # A sealer is between writing and pinning, or died there; what the manifest claims is checked all the same.
        report.note("manifest_unpinned", place, "not pinned yet; the next seal pins it")
    else:
        report.find("manifest_unpinned", place, "was never pinned", "manifest inserted, or pins removed")


def _signature_fault(signed: SignedManifest, keys: PublicKeys) -> tuple[str, str, str] | None:
    """Kind, detail and attack of a finding, or nothing where a trusted key signed."""
    key_id = signed.manifest.key_id
    try:
        if signed.is_signed_by(keys):
            return None
    except KeyError:
        return "manifest_key", f"signed with key {key_id}, which is not trusted", OTHER_KEY
    return "manifest_signature", f"signature does not fit key {key_id}", EDITED
