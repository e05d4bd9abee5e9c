"""A source with columns it lacks."""

from __future__ import annotations

from pathlib import Path

from airflow_ai_provider.core.rows.source import DefaultedSource, inspect, open_source


def test_missing_columns_hold_the_default_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,one\n2,two\n3,three\n")
    source = DefaultedSource(open_source(str(tmp_path / "in.csv")), {"context": "c", "text": "unused"})
    assert source.columns() == ("id", "text", "context")
    rows = [row for batch in source.batches(2) for row in batch.to_pylist()]
    assert rows[2] == {"id": "3", "text": "three", "context": "c"}
    assert [row["text"] for row in rows] == ["one", "two", "three"]


def test_keys_are_inspected_through_it(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,one\n2,two\n")
    found = inspect(DefaultedSource(open_source(str(tmp_path / "in.csv")), {"context": "c"}), key="id")
    assert (found.rows, found.columns) == (2, ("id", "text", "context"))
