"""Data files, and batches of one exact size.

Data files: one file of a source, its format, and what tells that its content changed.

Cut any stream of record batches into batches of one exact size.

Batch ``i`` must be the same rows on every read, whatever blocks or row groups the file happens to have: parts are
named by batch, and a retry trusts the name.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pyarrow as pa

from airflow_ai_provider.core.errors import SourceError
from airflow_ai_provider.core.rows.filesystem import is_local, name_of, shown, translated

FORMATS = {
    ".csv": ("csv", None),
    ".csv.gz": ("csv", "gzip"),
    ".jsonl": ("jsonl", None),
    ".ndjson": ("jsonl", None),
    ".jsonl.gz": ("jsonl", "gzip"),
    ".ndjson.gz": ("jsonl", "gzip"),
    ".parquet": ("parquet", None),
    ".pq": ("parquet", None),
}
SUFFIXES = ", ".join(FORMATS)
READ_BYTES = 1 << 20
"""Bytes asked for at once. Object stores read this much ahead."""

_VERSION_KEYS = ("ETag", "etag", "generation", "md5", "LastModified", "last_modified", "mtime", "updated", "created")
"""What fsspec's file systems call the marks of a changed object."""


def format_of(path: str) -> tuple[str, str | None] | None:
    """``(format, compression)`` by suffix, or ``None`` if the suffix is not one of ours."""
    name = name_of(path.split("?", 1)[0]).lower()
    return next((FORMATS[suffix] for suffix in FORMATS if name.endswith(suffix)), None)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a source."""

    filesystem: Any
    path: str
    compression: str | None = None

    @property
    def shown(self) -> str:
        """The file's place for messages."""
        return self.path if is_local(self.filesystem) else shown(self.filesystem.unstrip_protocol(self.path))

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file's bytes, decompressed. Raises ``SourceError`` and ``StoreUnavailable`` while it is read."""
        with translated(self.shown, SourceError), self._whole_gzip():
            raw = self.filesystem.open(self.path, "rb", compression=self.compression, block_size=READ_BYTES)
            with raw:
                yield cast("BinaryIO", raw)

    @contextmanager
    def open_lines(self) -> Iterator[BinaryIO]:
        """As ``open``, with a fast ``readline``: the one of remote files is not."""
        with self.open() as raw, io.BufferedReader(cast("io.RawIOBase", raw), READ_BYTES) as buffered:
            yield buffered

    @contextmanager
    def _whole_gzip(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            raise SourceError(
                f"{self.shown}: the gzip file is cut short, damaged or not gzip; copy or export it again"
            ) from exc

    def version(self) -> str:
        """Changes when the content does: size and modification time, or what the object store knows of it."""
        with translated(self.shown, SourceError):
            self.filesystem.invalidate_cache()
            info = self.filesystem.info(self.path)
        marks = [f"size={info.get('size')}"]
        if is_local(self.filesystem):
            # fsspec gives seconds as a float, which cannot hold nanoseconds.
            marks.append(f"mtime_ns={os.stat(self.path).st_mtime_ns}")
        else:
            marks += [f"{key}={info[key]}" for key in _VERSION_KEYS if info.get(key) is not None]
        return ";".join(marks)


def combined_version(files: Sequence[DataFile]) -> str:
    """One version for many files: it changes when one of them does, comes or goes."""
    if len(files) == 1:
        return files[0].version()
    marks = "\n".join(f"{name_of(file.path)}\t{file.version()}" for file in files)
    return "sha256:" + hashlib.sha256(marks.encode()).hexdigest()


def rebatch(blocks: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """Batches of exactly ``size`` rows, the last one shorter. Holds one batch and one block at a time."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for block in blocks:
        start = 0
        while rows + block.num_rows - start >= size:
            held.append(block.slice(start, size - rows))
            start += size - rows
            yield _joined(held)
            held, rows = [], 0
        if start < block.num_rows:
            held.append(block.slice(start))
            rows += block.num_rows - start
    if held:
        yield _joined(held)


def stream(uri: str, blocks: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """``rebatch`` for a source: a source without a row is an error, as is a size below one."""
    if size < 1:
        raise SourceError(f"batches of {size} rows: expected at least 1 row a batch")
    empty = True
    for batch in rebatch(blocks, size):
        empty = False
        yield batch
    if empty:
        raise SourceError(f"{shown(uri)}: holds no rows; expected at least one, check what wrote it")


def _joined(pieces: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)  # type: ignore[attr-defined]  # newer than the stubs
