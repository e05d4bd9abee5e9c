"""Seal what dead writers left open, and notice changes on this host.

What this host saw last, to notice a change: one small file for each thing that is watched.

Seals what dead writers left open, so that a killed task's events reach the archive.

A writer holds a flock on its segment as long as it lives; the kernel drops it however the process ends. A crash can
leave an unfinished last line: it is cut off, and the seal says so. If a finished line does not follow from the one
before it, that is no crash: the segment is sealed before it, the seal says ``damaged``, and the bytes cut off are kept
beside it in a ``.torn`` file. Nothing that a ``flush`` had made durable is lost.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from airflow_ai_provider.core.audit.trail.chain import Seal, encode_seal
from airflow_ai_provider.core.audit.trail.events import format_time
from airflow_ai_provider.core.audit.trail.segment import finish
from airflow_ai_provider.core.audit.trail.spool import Spool, sync_folder, write_at
from airflow_ai_provider.core.audit.verify.segment_reader import SegmentCheck, check_segment, file_chunks
from airflow_ai_provider.core.errors import AuditError


def last_seen(folder: Path, name: str) -> str | None:
    """The digest last remembered under a name."""
    try:
        return _path(folder, name).read_text(encoding="ascii").strip() or None
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise AuditError(f"{_path(folder, name)} cannot be read: {error.strerror}") from error


def remember(folder: Path, name: str, digest: str) -> None:
    """Remember a digest under a name, whole or not at all."""
    path = _path(folder, name)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_text(digest, encoding="ascii")
        os.replace(temporary, path)
    except OSError as error:
        raise AuditError(f"{path} cannot be written: {error.strerror}") from error


def _path(folder: Path, name: str) -> Path:
    return folder / sha256(name.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Recovery:
    """What became of one segment whose writer is gone."""

    segment: str
    events: int
    torn_bytes: int
    damaged: bool
    sealed: bool
    """False when its head is unreadable or lines follow its seal; it stays as it is, and ``verify`` names it."""

    def fields(self) -> dict[str, Any]:
        """For ``trail.emit("segment.recovered", outcome, **recovery.fields())``."""
        return {
            "segment": self.segment,
            "events": self.events,
            "torn_bytes": self.torn_bytes,
            "damaged": self.damaged,
        }


def recover_open(spool: Spool, now: datetime) -> list[Recovery]:
    """Seal every open segment whose writer is dead. Safe to run anywhere, any time, twice at once."""
    found = (_recover(spool, name, now) for name in spool.names("open"))
    return [recovery for recovery in found if recovery is not None]


def _recover(spool: Spool, name: str, now: datetime) -> Recovery | None:
    path = spool.path(name, "open")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuditError(f"audit segment {path} cannot be opened: {error.strerror}") from error
    try:
        if not _lock(fd) or not _is_still(fd, spool, name):
            return None
        return _seal_dead(fd, spool, name, now)
    except OSError as error:
        raise AuditError(f"audit segment {path} cannot be recovered: {error.strerror}") from error
    finally:
        os.close(fd)


def is_abandoned(spool: Spool, name: str) -> bool:
    """Whether an open segment's writer is dead."""
    try:
        fd = os.open(spool.path(name, "open"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return _lock(fd) and _is_still(fd, spool, name)
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(fd: int, spool: Spool, name: str) -> bool:
    """The name may have moved on to ``.sealed`` between opening and locking."""
    try:
        now = spool.path(name, "open").stat()
    except FileNotFoundError:
        return False
    return now.st_ino == os.fstat(fd).st_ino


def _seal_dead(fd: int, spool: Spool, name: str, now: datetime) -> Recovery:
    check = check_segment(_chunks(fd), sealed=False)
    unusable = check.head is None or check.head.name != name or (check.seal is not None and check.fault is not None)
    if unusable:
        return Recovery(name, check.count, 0, damaged=True, sealed=False)
    if check.seal is not None:
        os.fsync(fd)
        finish(spool, name)
        return Recovery(name, check.count, check.seal.torn_bytes, check.seal.damaged, sealed=True)
    torn, damaged = _cut(fd, spool, name, check)
    line, _ = encode_seal(
        check.chain,
        Seal(check.count, check.chain.hex(), format_time(now), recovered=True, torn_bytes=torn, damaged=damaged),
    )
    write_at(fd, line, check.intact_bytes)
    os.fsync(fd)
    finish(spool, name)
    return Recovery(name, check.count, torn, damaged, sealed=True)


def _cut(fd: int, spool: Spool, name: str, check: SegmentCheck) -> tuple[int, bool]:
    """Drop what follows the last intact record; return its size and whether it held a finished line."""
    size = os.fstat(fd).st_size - check.intact_bytes
    torn = spool.path(name, "torn")
    if check.fault is not None:
        _keep(fd, torn, check.intact_bytes)
        sync_folder(spool.folder)
    os.ftruncate(fd, check.intact_bytes)
    # A recovery that died after cutting left the kept bytes as the only sign of the damage.
    return (torn.stat().st_size, True) if torn.exists() else (size, False)


def _keep(fd: int, target: os.PathLike[str], offset: int) -> None:
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as kept:
        while chunk := os.pread(fd, 1024 * 1024, offset):
            kept.write(chunk)
            offset += len(chunk)
        kept.flush()
        os.fsync(kept.fileno())


def _chunks(fd: int) -> Iterator[bytes]:
    with open(os.dup(fd), "rb") as stream:
        yield from file_chunks(stream)
