"""Parquet files, read a few row groups at a time.

All footers are read before the first row, so a broken or foreign file is found before anything is spent. Columns
that are all null in one file take the type they have in another; dictionary columns come out as their values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_ai_provider.core.errors import SourceError
from airflow_ai_provider.core.rows.files import READ_BYTES, DataFile, combined_version, stream
from airflow_ai_provider.core.rows.filesystem import is_local, shown

EXPORT_AGAIN = "copy or export it again"
READ_ROWS = 1024
"""Rows decoded at once, at least."""


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """One or more Parquet files with the same columns, read one after the other."""

    uri: str
    files: Sequence[DataFile]
    selected: tuple[str, ...] | None = None
    remedy: str = EXPORT_AGAIN
    """What to do about a broken file."""
    content: str | None = None
    """Version, where a manifest tells it; otherwise the files do."""
    expected_rows: int | None = None
    """Rows that a manifest promises."""
    known_schema: pa.Schema | None = None
    """Schema, where a manifest tells it; otherwise the footers do."""
    _schemas: list[pa.Schema] = field(default_factory=list, repr=False, compare=False)

    def columns(self) -> tuple[str, ...]:
        return tuple(self.schema().names)

    def version(self) -> str:
        return self.content or combined_version(self.files)

    def select(self, columns: Sequence[str]) -> ParquetSource:
        return replace(self, selected=tuple(columns))

    def batches(self, size: int) -> Iterator[pa.RecordBatch]:
        return stream(self.uri, self.blocks(max(size, READ_ROWS)), size)

    def schema(self) -> pa.Schema:
        """The schema of every batch."""
        if not self._schemas:
            self._schemas.append(self.known_schema or self._unified())
        schema = self._schemas[0]
        return schema if self.selected is None else pa.schema([schema.field(name) for name in self.selected])

    def blocks(self, rows: int) -> Iterator[pa.RecordBatch]:
        """All rows in order, at most ``rows`` in a batch; a source without rows gives none."""
        schema, given = self.schema(), 0
        for file in self.files:
            with self._opened(file) as reader:
                for batch in reader.iter_batches(batch_size=rows, columns=schema.names):
                    given += batch.num_rows
                    yield conform(batch, schema)
        if self.expected_rows is not None and given != self.expected_rows:
            raise SourceError(
                f"{shown(self.uri)}: its parts hold {given} rows, its manifest says {self.expected_rows}; {self.remedy}"
            )

    def _unified(self) -> pa.Schema:
        first, *others = self.files
        schema = self._own_schema(first)
        for file in others:
            own = self._own_schema(file)
            if set(own.names) != set(schema.names):
                difference = ", ".join(sorted(set(own.names) ^ set(schema.names)))
                raise SourceError(
                    f"{file.shown}: columns differ from {first.shown} in {difference}; "
                    "the files of one source must have the same columns"
                )
            schema = _merged(file, schema, own)
        return schema

    def _own_schema(self, file: DataFile) -> pa.Schema:
        with self._opened(file) as reader:
            schema = plain(reader.schema_arrow)
        repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if repeated:
            raise SourceError(f"{file.shown}: names the column {', '.join(repeated)} twice; rename one of them")
        return schema

    @contextmanager
    def _opened(self, file: DataFile) -> Iterator[Any]:
        with file.open() as raw, self._translated(file):
            # A remote row group is fetched in few large reads; a local one need not be held.
            ahead = not is_local(file.filesystem)
            with pq.ParquetFile(
                raw, pre_buffer=ahead, buffer_size=0 if ahead else READ_BYTES, page_checksum_verification=True
            ) as reader:
                yield reader

    @contextmanager
    def _translated(self, file: DataFile) -> Iterator[None]:
        broken = f"{file.shown}: the Parquet file is cut short, damaged or not Parquet; {self.remedy}"
        try:
            yield
        except (pa.ArrowException, KeyError) as exc:
            # KeyError: a column that the footer no longer names, because the file was replaced meanwhile.
            raise SourceError(broken) from exc
        except OSError as exc:
            if exc.errno is not None or isinstance(exc, ConnectionError | TimeoutError):
                raise
            # Arrow's own I/O errors have no number: a page that does not decompress, a checksum that is off.
            raise SourceError(broken) from exc


def plain(schema: pa.Schema) -> pa.Schema:
    """The schema without metadata, dictionaries as their values."""
    return pa.schema([pa.field(field.name, _plain_type(field.type)) for field in schema])


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch's columns in the order and types of ``schema``."""
    return pa.RecordBatch.from_arrays([_as(batch.column(field.name), field.type) for field in schema], schema=schema)


def _as(column: Any, kind: pa.DataType) -> Any:
    return column if column.type == kind else column.cast(kind)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _merged(file: DataFile, schema: pa.Schema, own: pa.Schema) -> pa.Schema:
    try:
        return pa.unify_schemas([schema, own], promote_options="permissive")
    except pa.ArrowException as exc:
        differing = [name for name in schema.names if schema.field(name).type != own.field(name).type]
        raise SourceError(
            f"{file.shown}: type of {', '.join(differing)} differs from the files before it; write all with one type"
        ) from exc
