"""One segment file under its writer's hands.

Invariants that must not be relaxed: bytes before ``_durable`` are on disk and never written again; bytes not yet
known to be on disk stay in the buffer, so that after a full disk or a failed ``fdatasync`` the next flush writes the
same bytes at the same place (a kernel may forget pages whose write-back failed); the file is locked from before it
has its name until it is sealed, so that an unlocked ``.open`` file always belongs to a dead writer.

Not thread-safe: ``Trail`` holds the lock.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from airflow_ai_provider.core.audit.trail.chain import Head, Seal, encode_head, encode_record, encode_seal
from airflow_ai_provider.core.audit.trail.events import format_time
from airflow_ai_provider.core.audit.trail.spool import Spool, sync_folder, write_at
from airflow_ai_provider.core.errors import AuditError


class SegmentWriter:
    """Appends records to one segment. ``AuditError`` when the disk refuses."""

    def __init__(self, spool: Spool, head: Head) -> None:
        self.head = head
        self.count = 0
        """Records appended, durable or not."""
        self._spool = spool
        self._durable = 0
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._fd = -1
        line, self._chain = encode_head(head)
        try:
            with _disk_errors(spool, head.name):
                self._create(line)
        except BaseException:
            self.abandon()
            spool.path(head.name, "new").unlink(missing_ok=True)
            raise
        _open_writers.add(self)

    def _create(self, line: bytes) -> None:
        new = self._spool.path(self.head.name, "new")
        self._fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_at(self._fd, line, 0)
        os.fsync(self._fd)
        new.rename(self._spool.path(self.head.name, "open"))
        sync_folder(self._spool.folder)
        self._durable = len(line)

    @property
    def size(self) -> int:
        """Bytes of the segment, durable or not."""
        return self._durable + self._buffered

    @property
    def buffered(self) -> int:
        """Bytes that a crash would lose."""
        return self._buffered

    def append(self, body: bytes) -> None:
        """Add one record: an event's canonical JSON."""
        line, self._chain = encode_record(self._chain, body)
        self._buffer.append(line)
        self._buffered += len(line)
        self.count += 1

    def flush(self) -> None:
        """Make every record durable."""
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        with _disk_errors(self._spool, self.head.name):
            write_at(self._fd, data, self._durable)
            os.fdatasync(self._fd)
        self._durable += len(data)
        self._buffer.clear()
        self._buffered = 0

    def seal(self, now: datetime) -> str:
        """Close the segment for good and return its seal, 64 hex."""
        self.flush()
        line, value = encode_seal(self._chain, Seal(self.count, self._chain.hex(), format_time(now)))
        with _disk_errors(self._spool, self.head.name):
            write_at(self._fd, line, self._durable)
            os.fsync(self._fd)
            finish(self._spool, self.head.name)
        self.abandon()
        return value.hex()

    def abandon(self) -> None:
        """Let go of the file; what is not sealed is left to recovery."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def finish(spool: Spool, name: str) -> None:
    """Give a segment that ends in its seal the name the sealer looks for."""
    spool.path(name, "open").rename(spool.path(name, "sealed"))
    sync_folder(spool.folder)


@contextmanager
def _disk_errors(spool: Spool, name: str) -> Iterator[None]:
    """Turns ``OSError`` into ``AuditError`` that names the segment."""
    try:
        yield
    except OSError as error:
        raise AuditError(
            f"audit segment {spool.folder / name} cannot be written: {error.strerror}; free the disk or check the"
            " folder's permissions, then flush again: what was emitted is still in memory"
        ) from error


_open_writers: weakref.WeakSet[SegmentWriter] = weakref.WeakSet()


def _release_in_child() -> None:
    # A forked child shares the lock. It must not keep a dead parent's segment looking alive.
    for writer in list(_open_writers):
        writer.abandon()


os.register_at_fork(after_in_child=_release_in_child)
