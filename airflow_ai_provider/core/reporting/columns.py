"""Rows of the ledger as Arrow: money in USD as exact decimals beside its nano-dollars, times in UTC."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import BigInteger, Column, DateTime, Integer, String, Table

USD = pa.decimal128(20, 10)
_WHOLE = pa.decimal128(19, 0)
_NANO = pa.scalar("0.000000001").cast(pa.decimal128(10, 9))


def arrow_schema(table: Table) -> pa.Schema:
    """The schema of a table's rows; columns keep their order."""
    return pa.schema([pa.field(column.name, _type(column), nullable=bool(column.nullable)) for column in table.columns])


def stored_columns(table: Table) -> list[Column[Any]]:
    """The columns to read: those in USD are computed from their nano-dollars, which are exact on every database."""
    return [column for column in table.columns if column.computed is None]


def arrow_table(table: Table, rows: Sequence[Sequence[Any]]) -> pa.Table:
    """Rows of ``stored_columns`` as an Arrow table of ``arrow_schema``."""
    schema = arrow_schema(table)
    values = dict(zip((column.name for column in stored_columns(table)), zip(*rows, strict=True), strict=True))
    arrays = {name: _array(cells, schema.field(name).type) for name, cells in values.items()}
    return pa.table(
        [arrays[column.name] if column.computed is None else _usd(arrays[_source(column)]) for column in table.columns],
        schema=schema,
    )


def _type(column: Column[Any]) -> pa.DataType:
    if column.computed is not None:
        return USD
    match column.type:
        case DateTime():
            return pa.timestamp("us", tz="UTC")
        case BigInteger():
            return pa.int64()
        case Integer():
            return pa.int32()
        case String():
            return pa.string()
    raise TypeError(f"{column.table.name}.{column.name}: no Arrow type for {column.type}")


def _array(cells: Sequence[Any], kind: pa.DataType) -> pa.Array[Any]:
    if pa.types.is_timestamp(kind):
        cells = [_utc(cell) for cell in cells]
    return pa.array(cells, kind)


def _utc(moment: datetime) -> datetime:
    """SQLite keeps no zone; what it keeps is UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _usd(nano: pa.Array[Any]) -> pa.Array[Any]:
    return pc.multiply(nano.cast(_WHOLE), _NANO).cast(USD)


def _source(column: Column[Any]) -> str:
    """``cost_nano`` of ``cost_usd``: which column a computed one comes from."""
    return f"{column.name.removesuffix('_usd')}_nano"
