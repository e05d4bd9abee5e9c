"""The spool folder of segments that wait for the archive, its writers' names, and overdue sealing.

Names of writers: unique, in the order of time, and with a sign of the host they wrote on.

Decides whether sealing has stopped: no manifest for too long. Pure; time is passed in.

The folder in which segments wait for the archive: ``<root>/<trail>/<writer>-<number>.<state>``.

.new      being created: has no events yet
.open     being written; its writer holds a flock on it until it dies
.sealed   complete, waiting for the sealer
.torn     bytes that recovery cut off although they held finished lines; kept for an investigation
spool_id  the folder's id, see ``Spool.identity``
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import orjson

from airflow_ai_provider.core.errors import AuditError

_TIME, _HOST, _RANDOM = 12, 6, 10
"""Hex digits: 48 bits of milliseconds, 24 of the host's hash, 40 by chance for the writers of one millisecond."""


def new_writer_id(now: datetime, host: str | None = None) -> str:
    """A writer's name on this host, or on another."""
    return f"{int(now.timestamp() * 1000):0{_TIME}x}{host_sign(host)}{secrets.token_hex(_RANDOM // 2)}"


def host_sign(host: str | None = None) -> str:
    """What names of a host's writers have in common; by chance, one in 16 million other hosts has the same."""
    return sha256((host or socket.gethostname()).encode()).hexdigest()[:_HOST]


def is_from(writer: str, sign: str) -> bool:
    """Whether a writer's name carries a host's sign."""
    return writer[_TIME : _TIME + _HOST] == sign


SEAL_WITHIN: Final = timedelta(hours=1)
"""Six runs of the sealing DAG, which runs every ten minutes."""


def seal_overdue(
    newest: datetime | None, waiting: Iterable[datetime], now: datetime, within: timedelta
) -> timedelta | None:
    """How long something has waited for its seal, where that is longer than ``within``; ``None`` where it is not.

    ``newest`` is when the last manifest was pinned, ``waiting`` when segments that no manifest has were opened. A
    trail to which nothing was added since is not overdue.
    """
    oldest = min(waiting, default=None)
    if oldest is None:
        return None
    since = oldest if newest is None else max(oldest, newest)
    return now - since if now - since > within else None


SPOOL_BYTES = 1024**3
"""About a million calls."""
SPARE_BYTES = 64 * 1024**2
"""Free space of the file system that is left to the events of calls already under way."""
_IDENTITY = "spool_id"
_TRAIL = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}").fullmatch


@dataclass(frozen=True, slots=True)
class Spool:
    """The segments of one trail on one machine. Must be a local file system: liveness is by flock."""

    root: Path
    trail: str = "main"
    limit_bytes: int = SPOOL_BYTES
    """What may wait here, in all its files, before nothing new may begin."""

    def __post_init__(self) -> None:
        if not _TRAIL(self.trail):
            raise AuditError(f"trail {self.trail!r}: expected 1 to 64 characters of a-z 0-9 _ -")

    @property
    def folder(self) -> Path:
        return self.root / self.trail

    def prepare(self) -> None:
        """Create the folder, readable by its owner only."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise AuditError(f"audit spool {self.folder} cannot be created: {error.strerror}") from error

    def identity(self, *, create: bool = False) -> str | None:
        """Id of this spool, 32 hex digits; ``None`` where it has none yet and ``create`` is false.

        It stays the same across restarts and renames of the host. With ``create``, as writers ask, a copy or a restored
        backup of the folder gets an id of its own: the file names the folder's inode. Raises ``AuditError``.
        """
        path = self.folder / _IDENTITY
        try:
            if create and not self._has_own_identity(path):
                with _locked(self.folder):
                    if not self._has_own_identity(path):
                        made = {"spool": secrets.token_hex(16), "folder": self.folder.stat().st_ino}
                        _replace(path, orjson.dumps(made, option=orjson.OPT_APPEND_NEWLINE))
            return str(_read_identity(path).get("spool", "")) or None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AuditError(f"{path} cannot be read or made: {error.strerror}; it must be this user's") from error

    def _has_own_identity(self, path: Path) -> bool:
        try:
            return _read_identity(path).get("folder") == self.folder.stat().st_ino
        except FileNotFoundError:
            return False

    def used_bytes(self) -> int:
        """Size of everything in the folder."""
        try:
            with os.scandir(self.folder) as entries:
                return sum(_size(entry) for entry in entries)
        except FileNotFoundError:
            return 0

    def shortage(self) -> str:
        """Why nothing new may begin, or an empty string while there is room."""
        used = self.used_bytes()
        if used >= self.limit_bytes:
            return (
                f"audit spool {self.folder} holds {used:,} bytes, and its limit is {self.limit_bytes:,}"
                " ([ai] audit_spool_limit_mb): the archive is not taking its segments. Check [ai] archive_uri and run"
                " an AuditSealOperator on this host"
            )
        if self.folder.exists() and (free := _free_bytes(self.folder)) < SPARE_BYTES:
            return f"the file system of audit spool {self.folder} has {free:,} bytes left; free some"
        return ""

    def path(self, name: str, state: str) -> Path:
        return self.folder / f"{name}.{state}"

    def names(self, state: str) -> list[str]:
        """Names of the segments in a state, sorted, without the suffix."""
        try:
            entries = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        suffix = f".{state}"
        return sorted(entry.removesuffix(suffix) for entry in entries if entry.endswith(suffix))


def _read_identity(path: Path) -> dict[str, Any]:
    """What the file says; nothing where it is none of ours, which a writer then replaces."""
    try:
        found = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:  # it has moved on
        return 0


def _free_bytes(folder: Path) -> int:
    system = os.statvfs(folder)
    return system.f_bavail * system.f_frsize


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which its holder's death releases."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _replace(path: Path, data: bytes) -> None:
    """Write a file of mode 0600, whole or not at all. One process at a time."""
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make creations and renames inside a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of ``data`` at ``offset``, however many calls it takes."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
