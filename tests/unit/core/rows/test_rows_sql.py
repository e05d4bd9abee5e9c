"""Rows of a database: streamed, typed once, and errors without values."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from airflow_ai_provider.core.rows.source import open_source
from airflow_ai_provider.core.rows.sql_source import as_text
from airflow_ai_provider.errors import SourceError, StoreUnavailable

Database = Callable[[str], Any]


@pytest.fixture
def database(tmp_path: Path) -> Database:
    path = tmp_path / "data.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE tickets (id INTEGER, text TEXT, score REAL, note TEXT)")
        rows = [(n, f"text {n}", n / 2, None) for n in range(2500, 0, -1)]
        connection.executemany("INSERT INTO tickets VALUES (?, ?, ?, ?)", rows)
    connection.close()

    def connect(conn_id: str) -> sqlite3.Connection:
        assert conn_id == "warehouse"
        return sqlite3.connect(path)

    return connect


def query(text: str) -> str:
    return f"sql://warehouse?query={quote(text)}"


def test_a_query_is_read_in_its_own_order_and_exact_batches(database: Database) -> None:
    source = open_source(query("SELECT id, text, score, note FROM tickets ORDER BY id"), database=database)
    batches = list(source.batches(1100))
    assert [batch.num_rows for batch in batches] == [1100, 1100, 300]
    assert batches[1].to_pylist()[0] == {"id": 1101, "text": "text 1101", "score": 550.5, "note": None}
    assert [str(field.type) for field in batches[0].schema] == ["int64", "string", "double", "string"]
    assert source.columns() == ("id", "text", "score", "note")
    assert source.version() is None


def test_a_table_is_read_whole_and_by_key_if_one_is_given(database: Database) -> None:
    assert next(open_source("sql://warehouse/tickets", database=database).batches(1))["id"].to_pylist() == [2500]
    assert next(open_source("sql://warehouse/main.tickets?key=id", database=database).batches(2))["id"].to_pylist() == [
        1,
        2,
    ]


@pytest.mark.parametrize(
    "uri",
    [
        'sql://warehouse/tickets"; DROP TABLE tickets; --',
        "sql://warehouse/a.b.c",
        "sql://warehouse/tickets?key=id;x",
        "sql://warehouse/tickets?order=id",
        "sql://warehouse",
        "sql://warehouse/tickets?query=SELECT%201",
        "sql:///tickets",
        "sql://warehouse?query=DELETE%20FROM%20tickets",
        "sql://warehouse?query=",
    ],
)
def test_what_is_not_a_table_or_a_select_is_refused(database: Database, uri: str) -> None:
    with pytest.raises(SourceError):
        list(open_source(uri, database=database).batches(1))
    assert len(list(open_source("sql://warehouse/tickets", database=database).batches(2500))) == 1


def test_without_databases_the_error_says_so() -> None:
    with pytest.raises(SourceError, match="no database connections are at hand"):
        open_source("sql://warehouse/tickets")


def test_a_failing_query_says_why_without_the_query(database: Database) -> None:
    with pytest.raises(SourceError, match="sql://warehouse: the query failed: no such column: nope") as caught:
        open_source(query("SELECT nope FROM tickets WHERE text = 'secret'"), database=database).columns()
    assert "secret" not in str(caught.value)


def test_a_value_of_another_type_far_down_is_an_error_that_numbers_its_rows(database: Database) -> None:
    source = open_source(
        query("SELECT CASE id WHEN 2001 THEN 'secret' ELSE id END AS v FROM tickets ORDER BY id"), database=database
    )
    with pytest.raises(SourceError, match=r"column v has a value between rows 2001 and 2500.*CAST") as caught:
        list(source.batches(1000))
    assert "secret" not in str(caught.value)


def test_no_rows_and_columns_of_one_name_are_errors(database: Database) -> None:
    with pytest.raises(SourceError, match="holds no rows"):
        list(open_source(query("SELECT id FROM tickets WHERE id < 0"), database=database).batches(5))
    with pytest.raises(SourceError, match="names id twice"):
        open_source(query("SELECT id, id FROM tickets"), database=database).columns()


def test_values_of_other_types_become_text() -> None:
    values = [
        Decimal("1.50"),
        date(2026, 1, 2),
        datetime(2026, 1, 2, 3, tzinfo=UTC),
        {"a": "汉"},
        [1],
        b"\x01",
        True,
        None,
    ]
    assert [as_text(value) for value in values] == [
        "1.50", "2026-01-02", "2026-01-02T03:00:00+00:00", '{"a": "汉"}', "[1]", "01", "true", None,
    ]  # fmt: skip


class FakeCursor:
    """A PostgreSQL server-side cursor: its description is known after the first fetch."""

    def __init__(self, rows: list[tuple[Any, ...]], error: Exception | None) -> None:
        self.rows, self.error = rows, error
        self.description: list[tuple[str, int]] | None = None
        self.fetched: list[int] = []

    def execute(self, statement: str) -> None:
        self.statement = statement

    def fetchmany(self, size: int) -> list[tuple[Any, ...]]:
        if self.error and self.fetched:
            raise self.error
        self.fetched.append(size)
        self.description = [("id", 20), ("amount", 1700), ("n", 23)]
        taken, self.rows = self.rows[:size], self.rows[size:]
        return taken

    def close(self) -> None:
        pass


class FakePostgres:
    autocommit = False

    def __init__(self, rows: list[tuple[Any, ...]], error: Exception | None = None) -> None:
        self.made: dict[str, Any] = {}
        self.cursor_made = FakeCursor(rows, error)
        self.closed = False

    def cursor(self, **options: Any) -> FakeCursor:
        self.made = options
        return self.cursor_made

    def close(self) -> None:
        self.closed = True


FakePostgres.__module__ = "psycopg"


def test_postgresql_rows_stay_on_the_server_until_they_are_fetched() -> None:
    connection = FakePostgres([(n, Decimal(n), None) for n in range(2500)])
    source = open_source("sql://pg/public.tickets?key=id", database=lambda _: connection)
    batches = list(source.batches(2000))
    assert connection.made == {"name": "airflow_ai_rows"}
    assert connection.cursor_made.statement == 'SELECT * FROM "public"."tickets" ORDER BY "id"'
    assert set(connection.cursor_made.fetched) == {1000}
    assert [batch.num_rows for batch in batches] == [2000, 500]
    assert [str(field.type) for field in batches[0].schema] == ["int64", "string", "int64"], "as described, not as seen"
    assert connection.closed


@pytest.mark.parametrize(
    ("name", "state", "expected"),
    [
        ("DataError", "22P02", SourceError),
        ("OperationalError", None, StoreUnavailable),
        ("AdminShutdown", "57P01", StoreUnavailable),
    ],
)
def test_a_driver_error_is_told_by_its_state_and_not_by_its_text(name: str, state: str | None, expected: type) -> None:
    error = type(name, (Exception,), {"sqlstate": state})('invalid input syntax: "secret"')
    source = open_source("sql://pg/tickets", database=lambda _: FakePostgres([(1, 2, 3)] * 1500, error))
    with pytest.raises(expected, match=f"sql://pg/tickets: .*{name}") as caught:
        list(source.batches(1000))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1; UPDATE tickets SET id = 0",
        "SELECT 1; COMMIT; UPDATE tickets SET id = 0; COMMIT",
        "SELECT $$'$$; UPDATE tickets SET id = 0; --'",
        "SELECT E'\\'; UPDATE tickets SET id = 0; --'",
        "SELECT 1 -- '\n; UPDATE tickets SET id = 0; -- '",
        "SELECT 1 /* ' */; UPDATE tickets SET id = 0 /* ' */",
        "SELECT 1 # '\n; UPDATE tickets SET id = 0; # '",
    ],
)
def test_several_statements_are_refused(database: Database, text: str) -> None:
    with pytest.raises(SourceError, match="the query must be one statement"):
        open_source(query(text), database=database)


@pytest.mark.parametrize("text", ["SELECT 'a;b' AS text;", "SELECT 'it''s; so' AS \"a;b\"", "SELECT 1 -- a comment\n"])
def test_a_semicolon_in_quotes_or_at_the_end_is_no_second_statement(database: Database, text: str) -> None:
    assert len(list(open_source(query(text), database=database).batches(9))) == 1


def test_a_query_cannot_write_into_sqlite(database: Database) -> None:
    writing = "WITH x AS (SELECT 1) UPDATE tickets SET text = 'mine' RETURNING id"
    with pytest.raises(SourceError, match="attempt to write a readonly database"):
        list(open_source(query(writing), database=database).batches(10))
    (left,) = open_source(query("SELECT count(*) AS n FROM tickets WHERE text = 'mine'"), database=database).batches(1)
    assert left.to_pylist() == [{"n": 0}]
