"""What the trail keeps outside itself: the pins of its manifests, and the registry of opened segments.

Both belong in a database that whoever can write the archive cannot rewrite. Without pins, the newest manifest and its
segments can vanish together, or everything can be signed anew with a stolen key; without the registry, a segment can
vanish before it was ever sealed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RegisteredSegment:
    """A segment that a writer opened."""

    trail: str
    writer: str
    segment: str
    """``<writer>-<number>``, the name of its file."""
    opened_at: datetime
    spool: str | None = None
    """Id of the spool it was opened in; ``None`` by versions of this package that recorded none."""
    task: str | None = None
    """Try of a task that it was opened for, as ``task_key`` names it; ``None`` where no task wrote it."""


def task_key(dag_id: object, run_id: object, task_id: object, map_index: object, try_number: object) -> str:
    """One name for a try of a task instance, equal in registry, trail and ledger."""
    return f"{dag_id} {run_id} {task_id} {map_index} {try_number}"


@dataclass(frozen=True, slots=True)
class Pin:
    """The hash of one manifest, as it was when it was written."""

    trail: str
    sequence: int
    manifest_hash: str
    """SHA-256 of the manifest's bytes, hex."""
    pinned_at: datetime


class AuditStore(Protocol):
    """The database's side of the trail."""

    def register_segment(self, segment: RegisteredSegment) -> None:
        """Record, durably, that a segment was opened. Again for the same segment: nothing happens."""
        ...

    def registered_segments(self, trail: str, since: datetime | None = None) -> list[RegisteredSegment]:
        """Every segment registered, or those opened at a moment or later."""
        ...

    def pin_manifest(self, trail: str, sequence: int, manifest_hash: str, pinned_at: datetime) -> None:
        """Record a manifest's hash. Again with the same hash: nothing happens; with another: ``AuditError``."""
        ...

    def pins(self, trail: str) -> list[Pin]:
        """Every pin, by sequence."""
        ...

    def newest_pin(self, trail: str) -> Pin | None:
        """The pin with the highest sequence."""
        ...

    def sealer_lock(self, trail: str) -> AbstractContextManager[AuditStore | None]:
        """Give the store to one holder at a time, and ``None`` at once to the others.

        What the holder pins with the store it was given is durable when the block ends.
        """
        ...
