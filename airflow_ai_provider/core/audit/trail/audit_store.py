"""What the trail keeps in the ledger's database: pins of manifests, and opened segments.

What the trail keeps outside itself: the pins of its manifests, and the registry of opened segments.

Both belong in a database that writers of the archive cannot rewrite. Without pins, the newest manifest and its
segments can vanish together, or everything can be signed anew with a stolen key; without the registry, a segment can
vanish before it was ever sealed.

The database's side of the trail, in the ledger's database: apart from the trail, so each testifies to the other.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import Connection, select, text

from airflow_ai_provider.core.errors import AuditError
from airflow_ai_provider.core.ledger.database import Ledger, insert_ignore
from airflow_ai_provider.core.ledger.schema import audit_pins, audit_writers


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


T = TypeVar("T")


class LedgerAuditStore:
    """``AuditStore`` over the tables ``audit_pins`` and ``audit_writers``.

    Like every write of a run, each waits for a database that is away. May be called again after a commit whose reply
    was lost: what is there already stays.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def register_segment(self, segment: RegisteredSegment) -> None:
        self._write(lambda conn: conn.execute(insert_ignore(conn, audit_writers), asdict(segment)))

    def registered_segments(self, trail: str, since: datetime | None = None) -> list[RegisteredSegment]:
        query = select(audit_writers).where(audit_writers.c.trail == trail).order_by(audit_writers.c.segment)
        if since is not None:
            query = query.where(audit_writers.c.opened_at >= since)
        rows = self._read(lambda conn: conn.execute(query).all())
        return [
            RegisteredSegment(trail, row.writer, row.segment, _aware(row.opened_at), row.spool, row.task)
            for row in rows
        ]

    def pin_manifest(self, trail: str, sequence: int, manifest_hash: str, pinned_at: datetime) -> None:
        pin = Pin(trail, sequence, manifest_hash, pinned_at)
        self._write(lambda conn: _pin(conn, pin))

    def pins(self, trail: str) -> list[Pin]:
        query = select(audit_pins).where(audit_pins.c.trail == trail).order_by(audit_pins.c.sequence)
        rows = self._read(lambda conn: conn.execute(query).all())
        return [Pin(trail, row.sequence, row.manifest_hash, _aware(row.pinned_at)) for row in rows]

    def newest_pin(self, trail: str) -> Pin | None:
        query = select(audit_pins).where(audit_pins.c.trail == trail).order_by(audit_pins.c.sequence.desc()).limit(1)
        row = self._read(lambda conn: conn.execute(query).one_or_none())
        return Pin(trail, row.sequence, row.manifest_hash, _aware(row.pinned_at)) if row else None

    @contextmanager
    def sealer_lock(self, trail: str) -> Iterator[LedgerAuditStore | None]:
        """The store for one holder at a time: under an advisory lock of PostgreSQL, or a locked file beside SQLite.

        PostgreSQL's lock belongs to a transaction, in which the holder also pins: a lock of the session would stay
        behind in a pooler's, and keep every later sealer out.
        """
        if self._ledger.sqlite:
            with _file_lock(Path(f"{self._ledger.engine.url.database}.sealer")) as held:
                yield self if held else None
            return
        key = int.from_bytes(hashlib.sha256(f"sealer of {trail}".encode()).digest()[:8], signed=True)
        with self._ledger.write() as conn:
            conn.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))  # the archive may take its time
            taken = conn.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": key}).scalar()
            yield _SealingStore(self._ledger, conn) if taken else None

    def _write(self, work: Callable[[Connection], T]) -> T:
        return self._ledger.run(lambda conn, _again: work(conn))

    def _read(self, work: Callable[[Connection], T]) -> T:
        return self._ledger.run(lambda conn, _again: work(conn), read=True)


class _SealingStore(LedgerAuditStore):
    """All in the transaction that holds the sealer's lock: what it writes is durable when that ends."""

    def __init__(self, ledger: Ledger, conn: Connection) -> None:
        super().__init__(ledger)
        self._conn = conn

    def _write(self, work: Callable[[Connection], T]) -> T:
        return work(self._conn)

    _read = _write


def _pin(conn: Connection, pin: Pin) -> None:
    mine = (audit_pins.c.trail == pin.trail) & (audit_pins.c.sequence == pin.sequence)
    conn.execute(insert_ignore(conn, audit_pins), asdict(pin))
    if conn.execute(select(audit_pins.c.manifest_hash).where(mine)).scalar_one() != pin.manifest_hash:
        raise AuditError(
            f"trail {pin.trail}: manifest {pin.sequence} is pinned with another hash; run airflow ai audit verify"
        )


@contextmanager
def _file_lock(path: Path) -> Iterator[bool]:
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _aware(moment: datetime) -> datetime:
    """SQLite gives moments back without their zone; they were stored as UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
