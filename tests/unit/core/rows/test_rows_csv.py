"""CSV: text as it stands, in exact batches, and errors that number the row."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_ai_provider.core.rows import csv_source
from airflow_ai_provider.core.rows.source import open_source
from airflow_ai_provider.errors import SourceError

odd_text = st.text(
    st.one_of(st.sampled_from("\",\n;\t'汉字😀é\u2028\x00 a1"), st.characters(exclude_categories=["Cs"])), max_size=20
).map(lambda text: text.replace("\r", ""))
"""Bare carriage returns are left out: a CSV reader may take them for the end of a line."""


def read(path: Path, size: int = 100) -> list[dict[str, str]]:
    return [row for batch in open_source(str(path)).batches(size) for row in batch.to_pylist()]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(odd_text, odd_text), min_size=1, max_size=20), block=st.integers(30, 200))
def test_what_a_csv_writer_writes_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str]], block: int
) -> None:
    monkeypatch.setattr(csv_source, "BLOCK_BYTES", block)
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "text"), *rows])
    path = write(tmp_path / "in.csv", text.getvalue().encode())
    assert [tuple(row.values()) for row in read(path, 7)] == rows


def test_every_column_is_text_and_ids_keep_their_zeros(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", b"id,n,flag\n007,1e3,true\n08,,NULL\n")
    assert read(path) == [{"id": "007", "n": "1e3", "flag": "true"}, {"id": "08", "n": "", "flag": "NULL"}]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert read(write(tmp_path / "in.csv", b"\xef\xbb\xbfid,a\n1,2\n")) == [{"id": "1", "a": "2"}]


def test_the_last_line_needs_no_newline(tmp_path: Path) -> None:
    assert read(write(tmp_path / "in.csv", b"id,a\n1,2")) == [{"id": "1", "a": "2"}]


def test_an_empty_cell_is_empty_text_quoted_or_not(tmp_path: Path) -> None:
    assert read(write(tmp_path / "in.csv", b'id,a\n1,\n2,""\n')) == [{"id": "1", "a": ""}, {"id": "2", "a": ""}]


def test_a_gzip_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv.gz", gzip.compress(b"id,a\n1,x\n"))
    assert read(path) == [{"id": "1", "a": "x"}]


def test_a_cell_larger_than_the_block_is_read_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_source, "BLOCK_BYTES", 64)
    large = "x" * 5000
    rows = [f"{index},{large if index == 57 else 'short'}" for index in range(100)]
    path = write(tmp_path / "in.csv", ("id,text\n" + "\n".join(rows)).encode())
    result = read(path, 9)
    assert [row["id"] for row in result] == [str(index) for index in range(100)]
    assert result[57]["text"] == large


def test_a_row_beyond_the_largest_block_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_source, "BLOCK_BYTES", 64)
    monkeypatch.setattr(csv_source, "MAX_BLOCK_BYTES", 1024)
    path = write(tmp_path / "in.csv", b"id,text\n1,a\n2," + b"x" * 5000 + b"\n3,c\n")
    with pytest.raises(SourceError, match="never closed"):
        read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty or has no whole line; expected a header"),
        (b"\n\n", "is empty or has no whole line; expected a header"),
        (b"id,text\n", "holds no rows"),
        (b"id,text", "expected a header line and at least one row"),
        (b"id,id\n1,2\n", "header names id twice"),
        (b"id,text\n1,a\nsecret\n", r"row 3 has 1 values, expected 2"),
        (b"id,text\n1,a\n2,secret,x\n", r"row 3 has 3 values, expected 2"),
        (b"id,text\n1,a\n2,secret\xff\n", r"row 3 is not UTF-8; convert the file"),
        ("id,text\n1,a\n".encode("utf-16"), "the header is not UTF-8"),
        (b"id,te\xffxt\n1,a\n", "the header is not UTF-8"),
        (b'id,text\n1,a\n2,"secret\n3,c\n', "last row is never closed"),
        (b'id,text\n1,a\n2,"secret', "last row is never closed"),
        (b'id,text\n1,a\n2,"secret ""x""\n\n', "last row is never closed"),
    ],
)
def test_a_broken_file_is_named_with_the_row_and_without_its_text(tmp_path: Path, data: bytes, message: str) -> None:
    path = write(tmp_path / "in.csv", data)
    with pytest.raises(SourceError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("tail", [b'1,"x\n"', b'1,"x\n"\n', b'1,"x\n"\r\n\n\n'])
def test_a_closed_quote_at_the_end_may_hold_a_newline(tmp_path: Path, tail: bytes) -> None:
    assert read(write(tmp_path / "in.csv", b"id,text\n" + tail)) == [{"id": "1", "text": "x\n"}]


def test_a_bad_row_far_down_is_numbered_over_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_source, "BLOCK_BYTES", 64)
    path = write(tmp_path / "in.csv", b"id,text\n" + b"1,a\n" * 999 + b"2,\xff\n")
    with pytest.raises(SourceError, match="row 1001 is not UTF-8"):
        read(path)
    path = write(tmp_path / "in.csv", b"id,text\n" + b"1,a\n" * 999 + b"2\n")
    with pytest.raises(SourceError, match="row 1001 has 1 values"):
        read(path)


@pytest.mark.parametrize(
    "data", [b"not gzip at all", gzip.compress(b"id,a\n" + b"1,x\n" * 99, mtime=0)[:-12]], ids=["text", "half"]
)
def test_a_gzip_file_cut_short_is_an_error(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(SourceError, match=r"in\.csv\.gz: the gzip file is cut short"):
        read(write(tmp_path / "in.csv.gz", data))


def test_a_file_whose_header_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", b"id,text\n1,x\n")
    source = open_source(str(path))
    assert source.columns() == ("id", "text")
    write(path, b"id,other\n1,2\n")
    with pytest.raises(SourceError, match="changed while it was read"):
        list(source.batches(1))


def test_files_of_one_folder_are_read_by_name_and_by_column(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", b"text,id\nz,3\n")
    write(tmp_path / "a.csv", b"id,text\n1,x\n2,y\n")
    assert [row["id"] + row["text"] for row in read(tmp_path)] == ["1x", "2y", "3z"]


def test_files_of_one_folder_must_have_the_same_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b"id,text\n1,x\n")
    write(tmp_path / "b.csv", b"id,txt\n3,z\n")
    with pytest.raises(SourceError, match=r"b\.csv: columns differ from .*a\.csv in text, txt"):
        read(tmp_path)
