"""One part of a sink: a Parquet file whose footer says which job wrote it and what came of its rows.

The footer is at the file's end and is written last, so a part with a readable footer is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_ai_provider.core.rows.files import DataFile
from airflow_ai_provider.core.rows.manifest import PartEntry
from airflow_ai_provider.core.rows.parquet_source import plain

FINGERPRINT = b"ai.fingerprint"
SUMMARY = b"ai.summary"
FINAL = b"ai.final"
DIGEST = b"ai.digest"


@dataclass(frozen=True, slots=True)
class PartSummary:
    """A part that is there, as its footer tells."""

    name: str
    batch: int
    rows: int
    bytes: int
    """Size of the file."""
    digest: str
    """SHA-256 of the rows as an Arrow stream."""
    final: bool
    """False if some of its rows are to be tried again."""
    summary: Mapping[str, Any]
    """What the writer noted of the batch."""
    fingerprint: str
    schema: pa.Schema

    def entry(self) -> PartEntry:
        return PartEntry(self.name, self.batch, self.rows, self.bytes, self.digest, self.final)


def encode(
    table: pa.Table, name: str, batch: int, *, fingerprint: str, summary: Mapping[str, Any], final: bool
) -> tuple[bytes, PartSummary]:
    """The bytes of a part and what its footer tells."""
    table = table.cast(plain(table.schema))
    digest = _digest(table)
    marks = {
        FINGERPRINT: fingerprint.encode(),
        SUMMARY: json.dumps(dict(summary), ensure_ascii=False, default=str).encode(),
        FINAL: b"1" if final else b"0",
        DIGEST: digest.encode(),
    }
    out = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(marks), out, compression="zstd", write_page_checksum=True)
    data = out.getvalue().to_pybytes()
    part = PartSummary(name, batch, table.num_rows, len(data), digest, final, dict(summary), fingerprint, table.schema)
    return data, part


def read_footer(file: DataFile, name: str, batch: int, size: int) -> PartSummary | None:
    """What a part's footer tells; ``None`` if it is cut short, damaged, or was not written by a sink."""
    with file.open() as raw:
        try:
            footer = pq.read_metadata(raw)
            marks = footer.metadata or {}
            return PartSummary(
                name,
                batch,
                footer.num_rows,
                size,
                marks[DIGEST].decode(),
                marks[FINAL] == b"1",
                json.loads(marks[SUMMARY]),
                marks[FINGERPRINT].decode(),
                plain(footer.schema.to_arrow_schema()),
            )
        except (pa.ArrowException, KeyError, ValueError):
            return None


def _digest(table: pa.Table) -> str:
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return hashlib.sha256(out.getvalue()).hexdigest()
