"""Where sealed segments and manifests rest: names to bytes, written once, never changed.

    segments/YYYY/MM/DD/<writer>-<number>.jsonl.gz     by the day the segment was opened
    manifests/000000000001.json

Segments are plain gzip: ``zcat`` reads them. One archive holds one trail.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from airflow_ai_provider.core.audit.trail.chain import Head
from airflow_ai_provider.core.audit.trail.spool import sync_folder
from airflow_ai_provider.core.errors import StoreUnavailable

SEGMENTS = "segments/"
MANIFESTS = "manifests/"
GZIP_LEVEL = 9
"""Segments are kept for years and written once: 14 µs more per event save 4% of its bytes over level 6."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """A name over which something was laid after it was written; what is read is still what was written."""

    name: str
    versions: int
    """Later versions with other bytes."""
    markers: int
    """Delete markers."""


class Archive(ABC):
    """Objects by name. Names are relative, ``/`` between folders. Raises ``StoreUnavailable`` when unreachable."""

    @abstractmethod
    def put(self, name: str, data: bytes) -> bool:
        """Store durably, all or nothing. ``False``, and no change, when the name is taken."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Stream an object. ``FileNotFoundError`` when it is not there."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[str]:
        """Names under a prefix that ends in ``/``, sorted."""

    def overlays(self, prefix: str) -> Iterator[Overlay]:
        """Names under a prefix that were overwritten or deleted, in a store that keeps versions."""
        return iter(())

    def get(self, name: str) -> bytes:
        """A whole object. ``FileNotFoundError`` when it is not there."""
        with self.open(name) as stream:
            return stream.read()

    def sha256(self, name: str) -> str:
        """Hash of an object as stored, hex."""
        return sha256(self.get(name)).hexdigest()


class FolderArchive(Archive):
    """An archive in a folder; objects are 0440, so that overwriting one takes intent."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, name: str, data: bytes) -> bool:
        target = self._path(name)
        temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}"
        try:
            self._make_folder(target.parent)
            try:
                _write(temporary, data)
                # A hard link fails when the name is taken; a rename would replace it.
                os.link(temporary, target)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(target.parent)
        except OSError as error:
            raise StoreUnavailable(f"audit archive {self.root}: {name} cannot be written: {error.strerror}") from error
        return True

    def open(self, name: str) -> BinaryIO:
        try:
            return self._path(name).open("rb")
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(name) from None
        except OSError as error:
            raise StoreUnavailable(f"audit archive {self.root}: {name} cannot be read: {error.strerror}") from error

    def list(self, prefix: str) -> Iterator[str]:
        try:
            yield from self._walk(prefix)
        except OSError as error:
            raise StoreUnavailable(f"audit archive {self.root} cannot be listed: {error.strerror}") from error

    def _walk(self, prefix: str) -> Iterator[str]:
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(os.scandir(self._path(prefix)), key=lambda each: each.name):
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(f"{prefix}{entry.name}/")
                elif not entry.name.startswith("."):
                    yield f"{prefix}{entry.name}"

    def _path(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise ValueError(f"archive name {name!r}: expected a relative path without '..'")
        return self.root.joinpath(*parts)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        if folder != self.root:
            self._make_folder(folder.parent)
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o750, exist_ok=True)
        sync_folder(folder.parent)


def segment_object(head: Head) -> str:
    """Name of a segment in the archive."""
    year, month, day = head.opened_at[:10].split("-")
    return f"{SEGMENTS}{year}/{month}/{day}/{head.name}.jsonl.gz"


def manifest_object(sequence: int) -> str:
    """Name of a manifest in the archive."""
    return f"{MANIFESTS}{sequence:012d}.json"


def manifest_sequence(name: str) -> int | None:
    """The number in a manifest's name; ``None`` when it is not one."""
    stem = name.removeprefix(MANIFESTS).removesuffix(".json")
    number = int(stem) if stem.isascii() and stem.isdigit() else 0
    return number if number and name == manifest_object(number) else None


def compress(data: bytes) -> bytes:
    """Gzip without a time stamp: equal segments give equal objects."""
    # Hashes in hex match each other by chance in 3 or 4 digits; following such matches costs 10% more than it saves.
    deflate = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31, zlib.DEF_MEM_LEVEL, zlib.Z_FILTERED)
    return deflate.compress(data) + deflate.flush()


def _write(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o440), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
