"""Shards share the batches of a source without talking to each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.rows.shard import Shard, parse_shard
from airflow_ai_provider.errors import SourceError


@given(count=st.integers(1, 50), batch=st.integers(0, 10_000))
def test_each_batch_has_exactly_one_owner(count: int, batch: int) -> None:
    assert [Shard(index, count).owns(batch) for index in range(count)].count(True) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Shard(0, 1)),
        ("1/4", Shard(1, 4)),
        ({"index": 2, "count": 3}, Shard(2, 3)),
        (Shard(0, 2), Shard(0, 2)),
    ],
)
def test_a_shard_is_read_from_what_a_dag_may_give(value: object, expected: Shard) -> None:
    assert parse_shard(value) == expected  # type: ignore[arg-type]


def test_a_shard_reads_back_what_it_prints() -> None:
    assert parse_shard(str(Shard(3, 7))) == Shard(3, 7)


@pytest.mark.parametrize("value", ["4/4", "0/0", "-1/2", "1", "a/b", "1/2/3", {"index": 0}, 5])
def test_anything_else_is_refused_with_what_was_expected(value: object) -> None:
    with pytest.raises(SourceError, match="expected"):
        parse_shard(value)  # type: ignore[arg-type]
