"""Rows copied in bulk arrive as they were, whatever their texts hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from support.ledger import NOW, attempt, settled

from airflow_ai_provider.core.ledger.attempts.attempts import settle
from airflow_ai_provider.core.ledger.bulk import copy_text
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.schema import llm_requests

NASTY = [
    "tab\there",
    "line\nbreak",
    "return\r",
    "back\\slash",
    "\\N",
    "\x02",
    "a\x02b",
    "",
    "‘quotes’ \"'",
    "客户",
    "\\\t\n",
]

values = st.one_of(st.none(), st.integers(-(10**18), 10**18), st.text(st.characters(exclude_characters="\0")))


@given(st.lists(st.tuples(values, values, values), min_size=1, max_size=5))
def test_lines_of_copy_read_back(rows: list[tuple[Any, ...]]) -> None:
    lines = copy_text(rows).split("\n")
    assert lines.pop() == ""
    expected = [tuple(None if value is None else str(value) for value in row) for row in rows]
    assert [read_line(line) for line in lines] == expected


def read_line(line: str) -> tuple[str | None, ...]:
    """PostgreSQL's text format, read as its manual describes it."""
    escapes = {"t": "\t", "n": "\n", "r": "\r"}
    fields: list[str | None] = []
    for field in line.split("\t"):
        if field == "\x02":
            fields.append(None)
            continue
        characters = iter(field)
        fields.append("".join(escapes.get(n := next(characters), n) if c == "\\" else c for c in characters))
    return tuple(fields)


def test_times_keep_their_zone() -> None:
    assert copy_text([(datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),)]) == "2026-01-02T03:04:05.000006+00:00\n"


def test_nasty_keys_arrive_as_they_were(ledger: Ledger) -> None:
    items = [settled(attempt("none", 0, key), 0, status="reused") for key in NASTY]
    with ledger.write() as conn:
        settle(conn, items, NOW)
    with ledger.read() as conn:
        found = conn.execute(select(llm_requests.c.row_key, llm_requests.c.latency_ms)).all()
    assert sorted(row.row_key for row in found) == sorted(NASTY)
    assert {row.latency_ms for row in found} == {None}


def test_a_replay_of_many_adds_nothing(ledger: Ledger) -> None:
    items = [settled(attempt("none", 0, str(n)), 0, status="reused") for n in range(1500)]
    for replay in (False, True):
        with ledger.write() as conn:
            settle(conn, items, NOW, replay=replay)
    with ledger.read() as conn:
        assert len(conn.execute(select(llm_requests.c.attempt_id)).all()) == 1500
