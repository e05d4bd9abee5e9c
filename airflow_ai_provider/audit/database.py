"""The database's side of the trail, in the ledger's database: apart from the trail, so each testifies to the other."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select, text

from airflow_ai_provider.audit.pins import Pin, RegisteredSegment
from airflow_ai_provider.errors import AuditError
from airflow_ai_provider.ledger.database import Ledger, insert_ignore
from airflow_ai_provider.ledger.schema import audit_pins, audit_writers


class LedgerAuditStore:
    """``AuditStore`` over the tables ``audit_pins`` and ``audit_writers``."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def register_segment(self, segment: RegisteredSegment) -> None:
        with self._ledger.write() as conn:
            conn.execute(insert_ignore(conn, audit_writers), asdict(segment))

    def registered_segments(self, trail: str, since: datetime | None = None) -> list[RegisteredSegment]:
        query = select(audit_writers).where(audit_writers.c.trail == trail).order_by(audit_writers.c.segment)
        if since is not None:
            query = query.where(audit_writers.c.opened_at >= since)
        with self._ledger.read() as conn:
            return [
                RegisteredSegment(trail, row.writer, row.segment, _aware(row.opened_at), row.spool, row.task)
                for row in conn.execute(query)
            ]

    def pin_manifest(self, trail: str, sequence: int, manifest_hash: str, pinned_at: datetime) -> None:
        row = {"trail": trail, "sequence": sequence, "manifest_hash": manifest_hash, "pinned_at": pinned_at}
        mine = (audit_pins.c.trail == trail) & (audit_pins.c.sequence == sequence)
        with self._ledger.write() as conn:
            conn.execute(insert_ignore(conn, audit_pins), row)
            pinned = conn.execute(select(audit_pins.c.manifest_hash).where(mine)).scalar_one()
        if pinned != manifest_hash:
            raise AuditError(
                f"trail {trail}: manifest {sequence} is pinned with another hash; run airflow ai audit verify"
            )

    def pins(self, trail: str) -> list[Pin]:
        query = select(audit_pins).where(audit_pins.c.trail == trail).order_by(audit_pins.c.sequence)
        with self._ledger.read() as conn:
            return [Pin(trail, row.sequence, row.manifest_hash, _aware(row.pinned_at)) for row in conn.execute(query)]

    @contextmanager
    def sealer_lock(self, trail: str) -> Iterator[bool]:
        """``True`` for one holder at a time: an advisory lock of PostgreSQL, or a locked file beside SQLite."""
        if self._ledger.sqlite:
            with _file_lock(Path(f"{self._ledger.engine.url.database}.sealer")) as held:
                yield held
            return
        key = int.from_bytes(hashlib.sha256(f"sealer:{trail}".encode()).digest()[:8], signed=True)
        with self._ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            held = bool(conn.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar())
            try:
                yield held
            finally:
                if held:
                    conn.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})


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
