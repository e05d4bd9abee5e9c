"""Batch ``i`` is the same rows whatever blocks they come in."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.rows.files import rebatch, stream
from airflow_ai_provider.errors import SourceError


def blocks(lengths: list[int]) -> list[pa.RecordBatch]:
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    return [
        pa.record_batch([pa.array(range(start, start + length), pa.int64())], names=["n"])
        for start, length in zip(starts, lengths, strict=True)
    ]


@given(lengths=st.lists(st.integers(0, 30), max_size=20), size=st.integers(1, 40))
def test_any_layout_of_blocks_gives_the_same_exact_batches(lengths: list[int], size: int) -> None:
    rows = list(range(sum(lengths)))
    expected = [rows[start : start + size] for start in range(0, len(rows), size)]
    assert [batch["n"].to_pylist() for batch in rebatch(blocks(lengths), size)] == expected


def test_blocks_are_taken_only_as_batches_are_asked_for() -> None:
    taken = []

    def source():
        for block in blocks([10] * 100):
            taken.append(block)
            yield block

    batches = rebatch(source(), 4)
    for _ in range(3):
        next(batches)
    assert len(taken) == 2


def test_a_source_without_rows_is_an_error() -> None:
    with pytest.raises(SourceError, match=r"in\.csv: holds no rows; expected at least one"):
        list(stream("in.csv", blocks([0, 0]), 5))


def test_a_batch_of_no_rows_cannot_be_asked_for() -> None:
    with pytest.raises(SourceError, match="at least 1"):
        list(stream("in.csv", blocks([3]), 0))
