"""Findings of a verification, and the attack that each suggests.

What a verification says.

What was probably done to a trail: one word or phrase for each attack, the same everywhere.

A guess from the numbers in event ids and from where the chain goes on. Only a help for the reader: the chain, the
manifests and the pins are the proof, and anyone who changes a file can change the numbers in it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from airflow_ai_provider.core.audit.trail.audit_store import RegisteredSegment


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where the trail is not what was written, or, among the notes, something worth knowing."""

    kind: str
    """Short stable name, such as ``segment_altered``."""
    place: str
    """Manifest, or segment and record."""
    detail: str
    attack: str = ""
    """What was probably done."""


@dataclass(slots=True)
class VerifyReport:
    """The outcome of ``verify``."""

    trail: str
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    """Not faults: open segments, recoveries, checks that were not possible."""
    elsewhere: list[RegisteredSegment] = field(default_factory=list)
    """Segments that other hosts opened lately and have not sealed: their events could not be read."""
    manifests: int = 0
    segments: int = 0
    """Read, in archive and spool."""
    events: int = 0
    """Intact records read."""
    error: str = ""
    """Why the verification could not run to its end."""

    @property
    def status(self) -> int:
        """0 good, 1 findings, 2 could not run to the end without finding anything."""
        if self.findings:
            return 1
        return 2 if self.error else 0

    def find(self, kind: str, place: str, detail: str, attack: str = "") -> None:
        self.findings.append(Finding(kind, place, detail, attack))

    def note(self, kind: str, place: str, detail: str) -> None:
        self.notes.append(Finding(kind, place, detail))


EDITED: Final = "edited"
DELETED: Final = "deleted"
REORDERED: Final = "reordered"
TRUNCATED: Final = "truncated"
INSERTED: Final = "inserted"
DUPLICATED: Final = "duplicated"
DAMAGED: Final = "damaged"
DROPPED: Final = "segment dropped"
SWAPPED: Final = "segments swapped"
REPLAYED: Final = "segment replayed"
REWRITTEN: Final = "segment rewritten"
MANIFEST_DROPPED: Final = "manifest dropped"
NEWEST_DROPPED: Final = "newest manifest dropped, with its segments"
OTHER_KEY: Final = "signed with another key"
RELINKED: Final = "relinked and signed with the sealer's key"
MANIFEST_REPLACED: Final = "manifest replaced"
NEVER_WRITTEN: Final = "event deleted, or never written"
FORGED: Final = "event forged, or ledger row deleted"
LEDGER_CHANGED: Final = "ledger row or event changed"


def likely_attack(writer: str, expected: int, claimed: Iterable[str]) -> str:
    """``claimed`` are the event ids from the first bad line on, ``""`` where unreadable; ``expected`` is its number."""
    ids = iter(claimed)
    first = next(ids, None)
    if first is None:
        return TRUNCATED
    number = event_number(writer, first)
    if number is None:
        return INSERTED if first else DAMAGED
    if number == expected:
        return EDITED
    if number < expected:
        return DUPLICATED
    return REORDERED if any(event_number(writer, each) == expected for each in ids) else DELETED


def event_number(writer: str, claimed: str) -> int | None:
    """The number in an event id of this writer; ``None`` when it is not one."""
    prefix, _, digits = claimed.rpartition("-")
    return int(digits) if prefix == writer and digits.isascii() and digits.isdigit() and len(digits) < 20 else None
