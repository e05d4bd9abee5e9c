"""Verification of the manifests: numbers without gaps, pins, signatures, links, Merkle roots."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_ai_provider.audit.archive import MANIFESTS, Archive, manifest_object, manifest_sequence
from airflow_ai_provider.audit.findings import VerifyReport
from airflow_ai_provider.audit.keys import PublicKeys
from airflow_ai_provider.audit.manifest import (
    NO_MANIFEST,
    SegmentEntry,
    SignedManifest,
    manifest_hash,
    read_manifest,
)
from airflow_ai_provider.errors import AuditError


def check_manifests(
    archive: Archive, listed: set[int], pins: Mapping[int, str] | None, keys: PublicKeys, report: VerifyReport
) -> list[SegmentEntry]:
    """Check every manifest and return what they list.

    ``listed`` are the numbers in the archive; ``pins`` hashes by number, ``None`` when they cannot be had.
    """
    pinned = pins or {}
    entries: list[SegmentEntry] = []
    expected, previous = 1, NO_MANIFEST
    for sequence in sorted(listed | set(pinned)):
        if sequence > expected:
            _missing(report, expected, sequence - 1, "manifest removed")
            previous = ""
        try:
            data = archive.get(manifest_object(sequence))
        except FileNotFoundError:
            newest = sequence > max(listed, default=0)
            _missing(report, sequence, sequence, "newest manifest removed" if newest else "manifest removed")
            previous = pinned.get(sequence, "")
        else:
            entries += _check_one(data, sequence, previous, pins, keys, report)
            previous = manifest_hash(data)
        expected = sequence + 1
    return entries


def manifest_numbers(archive: Archive, report: VerifyReport) -> set[int]:
    """Numbers of the manifests in the archive; any other name among them is a finding."""
    numbers = set()
    for name in archive.list(MANIFESTS):
        number = manifest_sequence(name)
        if number is None:
            report.find("foreign_object", name, "is not a manifest's name", "inserted")
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
    if pins is not None:
        _check_pin(sequence, manifest_hash(data), pins, report)
    try:
        signed = read_manifest(data)
    except AuditError as error:
        report.find("manifest_unreadable", place, str(error), "edited or damaged")
        return ()
    manifest = signed.manifest
    _check_signature(signed, keys, place, report)
    if (manifest.trail, manifest.sequence) != (report.trail, sequence):
        detail = f"says it is {manifest.sequence} of trail {manifest.trail}"
        report.find("manifest_sequence", place, detail, "replayed or renamed")
    if previous and manifest.previous != previous:
        report.find("manifest_chain", place, "does not follow from the manifest before it", "replaced or removed")
    if not manifest.is_whole:
        report.find("merkle_root", place, "its Merkle root is not that of the segments it lists", "list edited")
    return manifest.segments


def _check_pin(sequence: int, digest: str, pins: Mapping[int, str], report: VerifyReport) -> None:
    place = f"manifest {sequence}"
    newest = max(pins, default=0)
    if sequence in pins:
        if pins[sequence] != digest:
            report.find("pin_mismatch", place, "is not the manifest that was pinned", "rewritten, perhaps signed anew")
    elif sequence == newest + 1:
        # A sealer is between writing and pinning, or died there; what the manifest claims is checked all the same.
        report.note("manifest_unpinned", place, "not pinned yet; the next seal pins it")
    else:
        report.find("manifest_unpinned", place, "was never pinned", "inserted, or pins removed")


def _check_signature(signed: SignedManifest, keys: PublicKeys, place: str, report: VerifyReport) -> None:
    key_id = signed.manifest.key_id
    try:
        if not signed.is_signed_by(keys):
            report.find("manifest_signature", place, f"signature does not fit key {key_id}", "edited")
    except KeyError:
        report.find("manifest_key", place, f"signed with key {key_id}, which is not trusted", "signed with another key")
