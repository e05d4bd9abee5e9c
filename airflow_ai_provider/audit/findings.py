"""What a verification says."""

from __future__ import annotations

from dataclasses import dataclass, field

from airflow_ai_provider.audit.pins import RegisteredSegment


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
