"""Rows of a query or a table over a DB-API connection, fetched a few at a time.

The order is the query's own: give it an ORDER BY over a unique column, or a retry may find other rows in a batch
and cannot rely on the parts it has finished. ``sql://<conn_id>/<table>?key=<column>`` orders a table by that column.

A column of a PostgreSQL result has the type its description tells; with other drivers the first rows fetched decide.
Integers, floats, booleans and text keep their type, everything else (decimals, dates, documents, …) becomes text.
Messages leave out the driver's text where it may quote a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa

from airflow_ai_provider.core.errors import SourceError, StoreUnavailable
from airflow_ai_provider.core.rows.files import stream

FETCH_ROWS = 1000
"""Rows asked of the server at once, at most."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")
_SELECT = re.compile(r"(\s|--[^\n]*\n|/\*.*?\*/|\()*(select|with|values|table)\b", re.IGNORECASE | re.DOTALL)
_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")
_OTHER_QUOTING = ("$", "\\", "--", "/*", "#", "`")
_POSTGRES = frozenset({"psycopg", "psycopg2"})
_MYSQL = frozenset({"MySQLdb", "pymysql", "mysql"})
_TRANSIENT_STATES = frozenset({"08", "40", "53", "57"})
"""SQLSTATE classes: connection, rollback, resources, operator (PostgreSQL manual, appendix A)."""
_POSTGRES_TYPES: dict[int, pa.DataType] = {
    16: pa.bool_(),
    20: pa.int64(),
    21: pa.int64(),
    23: pa.int64(),
    700: pa.float64(),
    701: pa.float64(),
}
"""By the object id of the type in ``pg_type``: bool, int8, int2, int4, float4, float8."""
_PYTHON_TYPES: tuple[tuple[type, pa.DataType], ...] = ((bool, pa.bool_()), (int, pa.int64()), (float, pa.float64()))


@dataclass(frozen=True, slots=True)
class SqlSource:
    """One select over one connection. ``version`` is ``None``: a database does not tell whether rows changed."""

    uri: str
    connect: Callable[[], Any] = field(repr=False)
    """Gives a new DB-API connection; it is closed after each pass."""
    query: str | None = None
    table: tuple[str, ...] = ()
    key: str | None = None
    """Column to order a table by."""
    _names: list[str] = field(default_factory=list, repr=False, compare=False)

    def columns(self) -> tuple[str, ...]:
        if not self._names:
            with closing(self._fetched(1)) as fetches:
                next(fetches, None)
        return tuple(self._names)

    def version(self) -> None:
        return None

    def batches(self, size: int) -> Iterator[pa.RecordBatch]:
        return stream(self.uri, self._blocks(min(size, FETCH_ROWS)), size)

    def _blocks(self, size: int) -> Iterator[pa.RecordBatch]:
        schema: pa.Schema | None = None
        first_row = 0
        for description, rows in self._fetched(size):
            schema = schema or _schema(description, rows)
            yield self._batch(schema, rows, first_row)
            first_row += len(rows)

    def _fetched(self, size: int) -> Generator[tuple[Sequence[Sequence[Any]], list[Sequence[Any]]]]:
        """``(description, rows)`` of each fetch."""
        with closing(self.connect()) as connection:
            driver = type(connection).__module__.split(".")[0]
            try:
                if driver == "sqlite3":
                    connection.execute("PRAGMA query_only = ON")  # a WITH may end in an UPDATE, which commits itself
                cursor = _cursor(connection, driver)
                cursor.execute(self._statement(driver))
                while True:
                    rows = cursor.fetchmany(size)
                    self._describe(cursor.description)
                    if not rows:
                        break
                    yield cursor.description, rows
                cursor.close()
            except SourceError:
                raise
            except Exception as exc:  # noqa: BLE001 - drivers have no common base of errors
                raise self._translation(exc, driver) from None

    def _translation(self, exc: Exception, driver: str) -> SourceError | StoreUnavailable:
        state = _state(exc)
        if state[:2] in _TRANSIENT_STATES or "locked" in str(exc) or _dropped(exc, driver):
            return StoreUnavailable(f"{self._place}: the database does not answer ({type(exc).__name__} {state})")
        return SourceError(f"{self._place}: the query failed: {_reason(exc, driver)}")

    def _describe(self, description: Sequence[Sequence[Any]]) -> None:
        names = [str(column[0]) for column in description]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise SourceError(f"{self._place}: the query names {', '.join(repeated)} twice; use AS to rename one")
        self._names[:] = names

    def _statement(self, driver: str) -> str:
        if self.query is not None:
            return self.query
        mark = "`" if driver in _MYSQL else '"'
        ordered = f" ORDER BY {mark}{self.key}{mark}" if self.key else ""
        # Identifiers were validated: they hold letters, digits, _ and $ only.
        return f"SELECT * FROM {'.'.join(mark + part + mark for part in self.table)}{ordered}"  # noqa: S608

    def _batch(self, schema: pa.Schema, rows: Sequence[Sequence[Any]], first_row: int) -> pa.RecordBatch:
        columns = []
        for index, column in enumerate(schema):
            values = [row[index] for row in rows]
            try:
                columns.append(pa.array(map(as_text, values) if column.type == pa.string() else values, column.type))
            except (pa.ArrowException, OverflowError, TypeError):
                raise SourceError(
                    f"{self._place}: column {column.name} has a value between rows {first_row + 1} and "
                    f"{first_row + len(rows)} that is not {column.type} as in the rows before; CAST it in the query"
                ) from None
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    @property
    def _place(self) -> str:
        """The connection and table; never the query, which may hold values."""
        return self.uri.split("?", 1)[0]


def sql_source(uri: str, database: Callable[[str], Any] | None) -> SqlSource:
    """Read ``sql://<conn_id>?query=…`` or ``sql://<conn_id>/<table>[?key=…]``. Raises ``SourceError``."""
    parts = urlsplit(uri)
    place = uri.split("?", 1)[0]
    options = parse_qs(parts.query, keep_blank_values=True)
    table = parts.path.strip("/")
    if database is None:
        raise SourceError(f"{place}: no database connections are at hand here; expected a file or an object store")
    if not parts.netloc or bool(table) == ("query" in options) or set(options) - {"query", "key"}:
        raise SourceError(f"{place}: expected sql://CONN_ID?query=URL-ENCODED-SELECT or sql://CONN_ID/TABLE")
    conn_id = parts.netloc
    if table:
        names = tuple(table.split("."))
        key = options.get("key", [None])[0]
        if len(names) > 2 or not all(_IDENTIFIER.fullmatch(name) for name in (*names, key or "key")):
            raise SourceError(
                f"{place}: expected TABLE or SCHEMA.TABLE of letters, digits and _; use ?query= otherwise"
            )
        return SqlSource(uri, lambda: database(conn_id), table=names, key=key)
    query = options["query"][0].strip().rstrip(";")
    if not _SELECT.match(query):
        raise SourceError(f"{place}: the query must be a SELECT (or WITH, VALUES, TABLE); got another statement")
    if not _is_single(query):
        raise SourceError(f"{place}: the query must be one statement; leave out the ';'")
    return SqlSource(uri, lambda: database(conn_id), query=query)


def _is_single(query: str) -> bool:
    """Whether a query is certainly one statement: some drivers run all of several, and what follows may write.

    A semicolon passes inside plain quotes only, and only where nothing else could quote or hide one.
    """
    if ";" not in query:
        return True
    return not any(mark in query for mark in _OTHER_QUOTING) and ";" not in _QUOTED.sub("", query)


def as_text(value: Any) -> str | None:
    """A value of a text column: ISO 8601 for times, JSON for documents, hexadecimal for bytes."""
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case datetime() | date() | time():
            return value.isoformat()
        case Mapping() | list() | tuple():
            return json.dumps(value, ensure_ascii=False, default=str)
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
    return str(value)


def _cursor(connection: Any, driver: str) -> Any:
    """A cursor that leaves the rows on the server, where the driver would fetch them all on execute."""
    if driver not in _POSTGRES:
        return connection.cursor()
    # A named cursor lives in a transaction; one held beyond it would be lost behind a pooler.
    connection.autocommit = False
    return connection.cursor(name="airflow_ai_rows")


def _schema(description: Sequence[Sequence[Any]], rows: Sequence[Sequence[Any]]) -> pa.Schema:
    return pa.schema([(str(column[0]), _type(column[1], index, rows)) for index, column in enumerate(description)])


def _type(code: Any, index: int, rows: Sequence[Sequence[Any]]) -> pa.DataType:
    if isinstance(code, int) and code in _POSTGRES_TYPES:
        return _POSTGRES_TYPES[code]
    kinds = {type(row[index]) for row in rows} - {type(None)}
    if kinds == {int, float}:
        return pa.float64()
    return next((arrow for kind, arrow in _PYTHON_TYPES if kinds == {kind}), pa.string())


def _state(exc: Exception) -> str:
    """SQLSTATE, where the driver gives it."""
    return getattr(exc, "sqlstate", None) or getattr(exc, "pgcode", None) or ""


def _dropped(exc: Exception, driver: str) -> bool:
    """A connection that breaks has no SQLSTATE; SQLite, which has no connection, calls bad SQL operational."""
    return type(exc).__name__ == "OperationalError" and not _state(exc) and driver != "sqlite3"


def _reason(exc: Exception, driver: str) -> str:
    """The driver's first line for errors in the statement; the error's name where the text may hold a value."""
    state = _state(exc)
    if driver == "sqlite3" or state.startswith("42"):
        return str(exc).splitlines()[0]
    return f"{type(exc).__name__} {state}".strip()
