"""Gather a finished sink into one file, for people and tools that want one."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from airflow_ai_provider.core.errors import SinkError, SourceError
from airflow_ai_provider.core.rows.csv_source import Formulas, is_text, neutralised, neutralised_name
from airflow_ai_provider.core.rows.files import format_of, rebatch
from airflow_ai_provider.core.rows.filesystem import open_atomic, resolve, shown, translated
from airflow_ai_provider.core.rows.keys import ROW_NUMBER_KEY, check_keys
from airflow_ai_provider.core.rows.manifest import read_manifest
from airflow_ai_provider.core.rows.source import open_sink

_ROWS_AT_ONCE = 4096
"""Rows held while they are copied; a row group of the result."""
_Write = Callable[[pa.RecordBatch], None]


def gather(
    sink_uri: str,
    target_uri: str,
    *,
    key: str | None,
    storage_options: Mapping[str, Any] | None = None,
    formulas: Formulas = "neutralise",
) -> int:
    """Copy all rows of a finished sink, in order, into one Parquet, CSV or JSONL file; returns their number.

    The file is complete or absent. In CSV a null is an empty cell and an empty text is ``""``; nested values are JSON;
    ``formulas`` says whether text that a spreadsheet would run is neutralised (``rows.formulas``).
    Raises ``SourceError`` if the sink is not finished, holds another number of rows than its manifest says, or a key
    is there twice, and ``SinkError`` if the file cannot be written.
    """
    writer = _writer(target_uri, formulas)
    if read_manifest(sink_uri, storage_options) is None:
        raise SourceError(f"{shown(sink_uri)}: is not a finished sink; run the task that writes it to its end")
    sink_fs, sink_path = resolve(sink_uri, storage_options)
    target_fs, target_path = resolve(target_uri, storage_options, error=SinkError)
    if target_path.startswith(sink_path + "/"):
        raise SinkError(f"{shown(target_uri)}: lies in the sink's own folder; choose another place")
    with translated(sink_uri, SourceError):
        source = open_sink(sink_uri, sink_fs, sink_path)
    if key is not None and key != ROW_NUMBER_KEY:
        _require_unique(source, key)
    rows = 0
    with (
        translated(target_uri, SinkError),
        open_atomic(target_fs, target_path) as file,
        writer(file, source.schema()) as write,
    ):
        for batch in rebatch(source.blocks(_ROWS_AT_ONCE), _ROWS_AT_ONCE):
            write(batch)
            rows += batch.num_rows
    return rows


def _require_unique(source: Any, key: str) -> None:
    if key not in source.columns():
        columns = ", ".join(source.columns())
        raise SourceError(f"{shown(source.uri)}: key column {key} is missing; its columns are {columns}")
    check_keys(shown(source.uri), key, lambda: source.select([key]).blocks(_ROWS_AT_ONCE))


def _writer(target_uri: str, formulas: Formulas) -> Any:
    match format_of(target_uri):
        case ("parquet", None):
            return _parquet
        case ("csv", None):
            return _csv if formulas == "keep" else _csv_for_spreadsheets
        case ("jsonl", None):
            return _jsonl
    raise SinkError(f"{shown(target_uri)}: expected a name ending in .parquet, .csv or .jsonl")


@contextmanager
def _parquet(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        yield writer.write_batch


@contextmanager
def _csv(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    flat = pa.schema([(field.name, _cell_type(field.type)) for field in schema])
    with pa_csv.CSVWriter(file, flat) as writer:
        yield lambda batch: writer.write_batch(
            pa.RecordBatch.from_arrays([_cells(column) for column in batch.columns], schema=flat)
        )


@contextmanager
def _csv_for_spreadsheets(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    safe = pa.schema([(neutralised_name(field.name), _cell_type(field.type)) for field in schema])
    with _csv(file, safe) as write:

        def neutralise(column: Any) -> Any:
            cells = _cells(column)
            return neutralised(cells) if is_text(cells.type) else cells

        yield lambda batch: write(pa.RecordBatch.from_arrays([*map(neutralise, batch.columns)], schema=safe))


@contextmanager
def _jsonl(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    def write(batch: pa.RecordBatch) -> None:
        file.write(b"".join(_json(row) + b"\n" for row in batch.to_pylist()))

    yield write


def _cell_type(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_nested(kind) or pa.types.is_binary(kind) else kind


def _cells(column: Any) -> Any:
    if _cell_type(column.type) == column.type:
        return column
    return pa.array([None if value is None else _text(value) for value in column.to_pylist()], pa.string())


def _text(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else _json(value).decode()


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON has no form for: decimals and durations as text, bytes as base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return format(value, "f") if isinstance(value, Decimal) else str(value)
