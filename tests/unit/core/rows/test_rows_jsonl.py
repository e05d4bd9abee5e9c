"""JSONL: one schema for the whole file, and errors that number the line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_ai_provider.core.rows.source import open_source
from airflow_ai_provider.errors import SourceError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ['"', "\n", "汉字", "😀", "\u2028"]
)
scalar = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, size: int = 100) -> pa.Table:
    return pa.Table.from_batches(open_source(str(path)).batches(size))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(values=st.lists(text, min_size=1, max_size=30), size=st.integers(1, 10))
def test_text_is_read_back(tmp_path: Path, values: list[str], size: int) -> None:
    path = write(tmp_path / "in.jsonl", *[{"t": value} for value in values])
    assert read(path, size)["t"].to_pylist() == values


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(values=st.lists(scalar | st.lists(scalar, max_size=3), min_size=1, max_size=20), size=st.integers(1, 10))
def test_no_value_is_lost_whatever_is_mixed_in_a_column(tmp_path: Path, values: list[Any], size: int) -> None:
    """A typed column gives the values back; a text column gives strings as they are and the rest as JSON."""
    path = write(tmp_path / "in.jsonl", *[{"v": value} for value in values])
    column = read(path, size)["v"]
    if column.type != pa.string():
        assert column.to_pylist() == values
        return
    for value, stored in zip(values, column.to_pylist(), strict=True):
        assert stored == value if value is None or isinstance(value, str) else json.loads(stored) == value


@pytest.mark.parametrize(
    ("values", "expected", "stored"),
    [
        (["a", None], pa.string(), ["a", None]),
        ([True, None], pa.bool_(), [True, None]),
        ([1, 2**63 - 1], pa.int64(), [1, 2**63 - 1]),
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        ([None, None], pa.string(), [None, None]),
        ([1, "a"], pa.string(), ["1", "a"]),
        ([1, True], pa.string(), ["1", "true"]),
        ([2**63], pa.string(), [str(2**63)]),
        ([10**30], pa.string(), [str(10**30)]),
        ([2**53 + 1, 0.5], pa.string(), [str(2**53 + 1), "0.5"]),
        ([{"a": [1, "汉"]}], pa.string(), ['{"a":[1,"汉"]}']),
        ([[10**30]], pa.string(), [f"[{10**30}]"]),
    ],
)
def test_the_type_of_a_column_is_decided_by_all_its_values(
    tmp_path: Path, values: list[Any], expected: pa.DataType, stored: list[Any]
) -> None:
    column = read(write(tmp_path / "in.jsonl", *[{"v": value} for value in values]))["v"]
    assert column.type == expected
    assert column.to_pylist() == stored


def test_every_batch_has_the_schema_of_the_whole_file(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", {"a": 1}, {"a": 2}, {"a": "x", "b": 1.5})
    schemas = {str(batch.schema) for batch in open_source(str(path)).batches(1)}
    assert len(schemas) == 1
    assert read(path).to_pylist() == [{"a": "1", "b": None}, {"a": "2", "b": None}, {"a": "x", "b": 1.5}]


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "in.ndjson"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert read(path).to_pylist() == [{"a": 1}, {"a": 2}]


def test_a_gzip_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n'))
    assert read(path).to_pylist() == [{"a": 1}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no rows"),
        (b"\n\n", "holds no rows"),
        (b"{}\n", "no fields"),
        (b'{"a": 1}\n\n{"a": "secret}\n', "line 3: is not JSON"),
        (b'{"a": 1}\n["secret"]\n', "line 2: expected an object"),
        (b'{"a": "secret\xff"}\n', "line 1: is not JSON"),
        (b'{"a": NaN}\n', "line 1: is not JSON"),
        (b'[{"a": "secret"},\n{"a": 2}]\n', "line 1: is not JSON"),
    ],
)
def test_a_bad_line_is_named_and_not_quoted(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_changes_between_the_passes_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", {"a": 1})
    source = open_source(str(path))
    assert source.columns() == ("a",)
    write(path, {"a": "secret"})
    with pytest.raises(SourceError, match="changed while it was read") as caught:
        list(source.batches(1))
    assert "secret" not in str(caught.value)
