"""What a look over a source finds before any money is spent."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ai_provider.core.rows import keys as keys_module
from airflow_ai_provider.core.rows.source import ROW_NUMBER_KEY, Inspection, inspect, key_values, open_source
from airflow_ai_provider.errors import SourceError


@dataclass
class Rows:
    """A source without a file: blocks made as they are read."""

    keys: list[str | None]
    uri: str = "rows"
    versions: list[str] = field(default_factory=lambda: ["v1"] * 2)

    def columns(self) -> tuple[str, ...]:
        return ("id", "text")

    def version(self) -> str:
        return self.versions.pop(0)

    def batches(self, size: int) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(self.keys), size):
            part = self.keys[start : start + size]
            yield pa.record_batch([pa.array(part, pa.string()), pa.nulls(len(part))], names=["id", "text"])


def test_a_good_source_is_counted_and_described(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("id,text\n1,a\n2,b\n")
    source = open_source(str(path))
    assert inspect(source, key="id", columns=["text"]) == Inspection(2, ("id", "text"), source.version())
    assert inspect(source, key=ROW_NUMBER_KEY, columns=[]).rows == 2


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.parquet"])
def test_only_the_key_column_need_be_read(tmp_path: Path, name: str) -> None:
    table = pa.table({"text": ["x", "y"], "id": ["1", "2"]})
    path = tmp_path / name
    match path.suffix:
        case ".csv":
            path.write_text("text,id\nx,1\ny,2\n")
        case ".jsonl":
            path.write_text('{"text": "x", "id": "1"}\n{"text": "y", "id": "2"}\n')
        case _:
            pq.write_table(table, path)
    source = open_source(str(path))
    assert next(source.select(["id"]).batches(5)).to_pydict() == {"id": ["1", "2"]}  # type: ignore[attr-defined]
    assert inspect(source, key="id", columns=["text"]).rows == 2


def test_missing_columns_are_named_together_with_the_nearest_names() -> None:
    with pytest.raises(SourceError) as caught:
        inspect(Rows(["1"]), key="ID", columns=["text", "txet", "zzz"])
    message = str(caught.value)
    assert "the key names column ID, which is missing (did you mean id?)" in message
    assert "the prompt names column txet, which is missing (did you mean text?)" in message
    assert "column zzz, which is missing;" in message
    assert "its columns are id, text" in message


def test_a_file_separated_by_semicolons_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id;text\n1;a\n")
    with pytest.raises(SourceError, match="its columns are id;text; separate the values by commas"):
        inspect(open_source(str(tmp_path / "in.csv")), key="id")


@pytest.mark.parametrize(("value", "kind"), [(None, "null"), ("", "empty")])
def test_a_row_without_a_key_is_numbered(value: str | None, kind: str) -> None:
    rows = [str(n) for n in range(10_000)]
    with pytest.raises(SourceError, match=rf"row 9001 \(the first row is 1\): its key, column id, is {kind}"):
        inspect(Rows([*rows[:9000], value, *rows[9000:]]), key="id")


def test_repeated_keys_are_shown_with_their_rows() -> None:
    keys = [str(n) for n in range(10_000)]
    keys[5000] = keys[7] = keys[9999] = "again"
    keys[1] = "0"
    with pytest.raises(SourceError) as caught:
        inspect(Rows(keys), key="id")
    assert "'again' in rows 8, 5001, 10000" in str(caught.value)
    assert "'0' in rows 1, 2" in str(caught.value)


def test_one_key_for_all_rows_is_told_briefly() -> None:
    with pytest.raises(SourceError) as caught:
        inspect(Rows(["same"] * 20_000), key="id")
    assert "'same' in rows 1, 2, 3, 4, 5, …" in str(caught.value)
    assert len(str(caught.value)) < 300


@settings(deadline=None)
@given(keys=st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=16))
def test_a_source_passes_only_if_no_key_repeats_even_when_all_hashes_are_equal(keys: list[str]) -> None:
    """A hash accident is no duplicate, and hides none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys_module, "hash", lambda _: 1, raising=False)
        if len(set(keys)) == len(keys):
            assert inspect(Rows(list(keys)), key="id").rows == len(keys)
        else:
            with pytest.raises(SourceError, match="not unique"):
                inspect(Rows(list(keys)), key="id")


def test_repeated_keys_beyond_the_first_followed_hashes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first suspects turn out to be accidents; the true repetition is among the later ones."""
    monkeypatch.setattr(keys_module, "_SUSPECTS_AT_ONCE", 1)
    monkeypatch.setattr(keys_module, "hash", lambda key: int(key[0]), raising=False)
    with pytest.raises(SourceError, match="'3a' in rows 3, 5"):
        inspect(Rows(["1a", "2a", "3a", "2b", "3a", "1b"]), key="id")


def test_a_source_that_changes_meanwhile_is_refused() -> None:
    with pytest.raises(SourceError, match="changed while it was read"):
        inspect(Rows(["1"], versions=["v1", "v2"]), key="id")


def test_keys_are_text_and_row_numbers_go_on_over_batches() -> None:
    batch = pa.record_batch([pa.array([1, 22]), pa.array([[1], [2]])], names=["id", "nested"])
    assert key_values(batch, "id", 0) == ["1", "22"]
    assert key_values(batch, ROW_NUMBER_KEY, 500) == ["500", "501"]
    with pytest.raises(SourceError, match=r"holds list.*expected text or numbers"):
        key_values(batch, "nested", 0)
    with pytest.raises(SourceError, match="key column key is missing; columns are id, nested"):
        key_values(batch, "key", 0)


def test_memory_is_a_few_bytes_a_row() -> None:
    rows = 100_000

    class Many(Rows):
        def batches(self, size: int) -> Iterator[pa.RecordBatch]:
            for start in range(0, rows, size):
                numbers = range(start, min(start + size, rows))
                yield pa.record_batch([pa.array([f"key-{n}" for n in numbers])], names=["id"])

    inspect(Many(["1"]), key="id")  # what is imported on first use is no part of the figure
    tracemalloc.start()
    assert inspect(Many([]), key="id").rows == rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * rows
