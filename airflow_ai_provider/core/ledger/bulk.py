"""Many rows at once: on PostgreSQL a ``COPY`` into the table, which costs a fraction of a statement a row.

``COPY`` knows no "on conflict": who replays a commit whose outcome was lost leaves out what is there already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import repeat
from operator import is_
from typing import Any

from sqlalchemy import ARRAY, Column, ColumnElement, Connection, String, Table, any_, literal
from sqlalchemy.exc import DBAPIError

from airflow_ai_provider.core.ledger.database import insert_ignore

_PIECE = 200
_NULL, _END = "\x02", "\n"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", _NULL: f"\\{_NULL}"})


def insert_rows(conn: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows, values in the order of ``columns``. On SQLite those whose key is there already are left out."""
    if not rows:
        return
    if conn.dialect.name == "postgresql":
        statement = f"COPY {table.name} ({', '.join(columns)}) FROM STDIN WITH (NULL E'\\x02')"
        with _as_of_any_statement(conn), conn.connection.cursor() as cursor, cursor.copy(statement) as copy:  # type: ignore[attr-defined]
            for start in range(0, len(rows), _PIECE):  # the server reads a piece while the next is made
                copy.write(copy_text(rows[start : start + _PIECE]))
    else:
        conn.execute(insert_ignore(conn, table), [dict(zip(columns, row, strict=True)) for row in rows])


@contextmanager
def _as_of_any_statement(conn: Connection) -> Iterator[None]:
    """The driver's errors as SQLAlchemy raises those of its own statements."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise DBAPIError.instance(
            None, None, error, psycopg.Error, hide_parameters=True, dialect=conn.dialect
        ) from None


def copy_text(rows: Sequence[tuple[Any, ...]]) -> str:
    """Lines of COPY's text format (PostgreSQL manual, COPY, "Text Format") for strings, numbers, times and nulls.

    Column by column, since most of a batch's are the same in all rows. Escapes are seldom needed; whether they are is
    asked once for all.
    """
    columns = [_column(values) for values in zip(*rows, strict=True)]
    text = "".join([line + _END for line in map("\t".join, zip(*columns, strict=True))])
    as_is = (
        text.count("\t") == sum(map(len, rows)) - len(rows)
        and text.count(_END) == len(rows)
        and text.count(_NULL) == sum([row.count(None) for row in rows])
        and "\\" not in text
        and "\r" not in text
    )
    return text if as_is else "".join(map(_escaped_line, rows))


def _column(values: tuple[Any, ...]) -> Sequence[str]:
    first = values[0]
    if all(map(is_, values, repeat(first))):
        return [_field(first)] * len(values)
    return [value if type(value) is str else _field(value) for value in values]


def _escaped_line(row: tuple[Any, ...]) -> str:
    return "\t".join(v.translate(_ESCAPES) if type(v) is str else _field(v) for v in row) + _END


def _field(value: Any) -> str:
    return value if type(value) is str else _NULL if value is None else _text(value)


def _text(value: Any) -> str:
    return value.isoformat() if type(value) is datetime else str(value)


def id_lists(conn: Connection, ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """``ids`` in lists that fit one statement."""
    size = 10_000 if conn.dialect.name == "postgresql" else 500  # SQLite takes at most 32,766 parameters
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def among(conn: Connection, column: Column[Any], ids: Sequence[str]) -> ColumnElement[bool]:
    """Whether a column is one of ``ids``: on PostgreSQL one array, elsewhere a parameter for each."""
    if conn.dialect.name == "postgresql":
        return column == any_(literal(list(ids), ARRAY(String)))
    return column.in_(ids)
