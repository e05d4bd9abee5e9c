"""Parquet: exact batches from any row groups, one type a column, and broken files named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_ai_provider.core.rows.source import open_source
from airflow_ai_provider.errors import SourceError


def read(path: Path, size: int = 100) -> pa.Table:
    return pa.Table.from_batches(open_source(str(path)).batches(size))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(groups=st.lists(st.integers(1, 50), min_size=1, max_size=8), size=st.integers(1, 60))
def test_any_row_groups_give_exact_batches(tmp_path: Path, groups: list[int], size: int) -> None:
    path, rows = tmp_path / "in.parquet", sum(groups)
    table = pa.table({"n": range(rows)})
    with pq.ParquetWriter(path, table.schema) as writer:
        start = 0
        for length in groups:
            writer.write_table(table.slice(start, length))
            start += length
    batches = [batch["n"].to_pylist() for batch in open_source(str(path)).batches(size)]
    assert batches == [list(range(rows))[start : start + size] for start in range(0, rows, size)]


def test_dictionary_columns_come_out_as_values(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array(["x", "y", "x"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "in.pq")
    assert read(tmp_path / "in.pq").schema.field("a").type == pa.string()


def test_a_column_that_is_all_null_in_one_file_takes_the_type_of_the_others(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "a": pa.nulls(1)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": ["x"], "id": [2]}), tmp_path / "b.parquet")
    assert read(tmp_path).to_pylist() == [{"id": 1, "a": None}, {"id": 2, "a": "x"}]


def test_columns_of_two_types_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match=r"b\.parquet: type of id differs"):
        read(tmp_path)


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"key": [1]}), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match=r"b\.parquet: columns differ from .* in id, key"):
        read(tmp_path)


@pytest.mark.parametrize("spoil", ["cut", "garbage", "empty"])
def test_a_broken_footer_is_found_before_the_first_row(tmp_path: Path, spoil: str) -> None:
    pq.write_table(pa.table({"id": range(100)}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes({"cut": whole[:-20], "garbage": b"no parquet at all", "empty": b""}[spoil])
    with pytest.raises(SourceError, match=r"b\.parquet: the Parquet file is cut short, damaged or not Parquet; copy"):
        open_source(str(tmp_path)).columns()


def test_a_damaged_page_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(
        pa.table({"t": [f"text {n}" for n in range(1000)]}), path, compression="zstd", write_page_checksum=True
    )
    data = bytearray(path.read_bytes())
    for index in range(200, 400):
        data[index] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"in\.parquet: the Parquet file is"):
        read(path)


def test_a_file_that_is_replaced_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": [1], "text": ["x"]}), path)
    source = open_source(str(path))
    assert source.columns() == ("id", "text")
    pq.write_table(pa.table({"id": [1], "other": ["x"]}), path)
    with pytest.raises(SourceError, match=r"in\.parquet"):
        list(source.batches(1))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["id", "id"]), tmp_path / "in.parquet")
    with pytest.raises(SourceError, match="names the column id twice"):
        open_source(str(tmp_path / "in.parquet")).columns()


def test_a_file_without_rows_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": pa.array([], pa.int64())}), tmp_path / "in.parquet")
    with pytest.raises(SourceError, match="holds no rows"):
        read(tmp_path / "in.parquet")
