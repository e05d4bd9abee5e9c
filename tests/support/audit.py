"""A small real trail for tests: an in-memory store, a clock that ticks, and events like the gateway's."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow_ai_provider.core.audit.sealing.seal import SealReport, seal_trail
from airflow_ai_provider.core.audit.sealing.signing import SigningKey, load_or_create_signing_key, public_keys
from airflow_ai_provider.core.audit.sinks.archive import FolderArchive
from airflow_ai_provider.core.audit.trail.audit_store import Pin, RegisteredSegment
from airflow_ai_provider.core.audit.trail.spool import Spool
from airflow_ai_provider.core.audit.trail.trail import Trail
from airflow_ai_provider.core.audit.verify.findings import VerifyReport
from airflow_ai_provider.core.audit.verify.verify import verify
from airflow_ai_provider.errors import AuditError

START = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


class Clock:
    """One millisecond later at each look."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@dataclass
class MemoryStore:
    """The database's side of the trail, in memory."""

    registered: dict[str, RegisteredSegment] = field(default_factory=dict)
    pinned: dict[int, Pin] = field(default_factory=dict)
    sealing: threading.Lock = field(default_factory=threading.Lock)

    def register_segment(self, segment: RegisteredSegment) -> None:
        self.registered[segment.segment] = segment

    def registered_segments(self, trail: str, since: datetime | None = None) -> list[RegisteredSegment]:
        return [each for each in self.registered.values() if since is None or each.opened_at >= since]

    def pin_manifest(self, trail: str, sequence: int, manifest_hash: str, pinned_at: datetime) -> None:
        pin = self.pinned.setdefault(sequence, Pin(trail, sequence, manifest_hash, pinned_at))
        if pin.manifest_hash != manifest_hash:
            raise AuditError(f"manifest {sequence} is pinned with another hash")

    def pins(self, trail: str) -> list[Pin]:
        return [self.pinned[sequence] for sequence in sorted(self.pinned)]

    def newest_pin(self, trail: str) -> Pin | None:
        return self.pinned[max(self.pinned)] if self.pinned else None

    @contextmanager
    def sealer_lock(self, trail: str) -> Iterator[MemoryStore | None]:
        held = self.sealing.acquire(blocking=False)
        try:
            yield self if held else None
        finally:
            if held:
                self.sealing.release()


def call_fields(number: int) -> dict[str, Any]:
    """Fields of one ``llm.call``."""
    return {
        "request_id": f"{number:032x}",
        "attempt_id": f"{number + 1:032x}",
        "deployment": "small",
        "model": "openai/gpt-4o-mini",
        "input_tokens": 200 + number,
        "output_tokens": 40 + number,
        "cost_nano": 54_000 + number,
        "prompt_hash": f"{number * 7:032x}",
    }


def emit_calls(trail: Trail, count: int) -> list[str]:
    return [trail.emit("llm.call", "ok", **call_fields(number)) for number in range(count)]


@dataclass
class House:
    """Everything one trail consists of, in one folder that can be copied."""

    root: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: Clock = field(default_factory=Clock)

    @property
    def spool(self) -> Spool:
        return Spool(self.root / "spool")

    @property
    def archive(self) -> FolderArchive:
        return FolderArchive(self.root / "archive")

    @property
    def key(self) -> SigningKey:
        return load_or_create_signing_key(self.root / "keys")

    def trail(self, **options: Any) -> Trail:
        return Trail(self.spool, self.store, clock=self.clock, **options)

    def write(self, count: int, **options: Any) -> list[str]:
        """One writer's life."""
        with self.trail(**options) as trail:
            return emit_calls(trail, count)

    def seal(self) -> SealReport:
        return seal_trail(self.spool, self.archive, self.store, self.key, self.clock())

    def verify(self) -> VerifyReport:
        return verify(self.archive, self.spool, self.store, public_keys(self.key))

    def objects(self, folder: str) -> list[Path]:
        """Files of the archive, oldest name first."""
        return sorted(path for path in (self.root / "archive" / folder).rglob("*") if path.is_file())

    def copy(self, target: Path) -> House:
        shutil.copytree(self.root, target)
        store = MemoryStore(dict(self.store.registered), dict(self.store.pinned))
        return House(target, store, self.clock)


def overwrite(path: Path, data: bytes) -> None:
    """Change a file that is read-only, as an attacker with the folder's rights can."""
    path.unlink()
    path.write_bytes(data)
