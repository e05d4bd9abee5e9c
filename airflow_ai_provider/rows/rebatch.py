"""Cut any stream of record batches into batches of one exact size.

Batch ``i`` must be the same rows on every read, whatever blocks or row groups the file happens to have: parts are
named by batch, and a retry trusts the name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from airflow_ai_provider.errors import SourceError
from airflow_ai_provider.rows.fs import shown


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
