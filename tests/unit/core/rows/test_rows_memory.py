"""Memory does not grow with rows: a large file is read with no more than a small one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_ai_provider.core.rows.gather import gather
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.core.rows.sink import PartSink
from airflow_ai_provider.core.rows.source import open_source

TEXT = "a text of some length that stands for a customer's inquiry " * 4


def csv(path: Path, rows: int) -> None:
    path.write_text("id,text\n" + "".join(f"{n},{TEXT}{n}\n" for n in range(rows)))


def jsonl(path: Path, rows: int) -> None:
    path.write_text("".join(json.dumps({"id": n, "text": f"{TEXT}{n}"}) + "\n" for n in range(rows)))


def parquet(path: Path, rows: int) -> None:
    """Text that does not compress away, in one row group."""
    pq.write_table(pa.table({"id": range(rows), "text": noise(rows)}), path, use_dictionary=False)


def noise(rows: int) -> list[str]:
    generator = random.Random(7)
    return [generator.randbytes(150).hex() for _ in range(rows)]


def peak(batches: Iterator[pa.RecordBatch]) -> int:
    """Most bytes Arrow held at any batch, beyond those held before."""
    before, most = pa.total_allocated_bytes(), 0
    for _ in batches:
        most = max(most, pa.total_allocated_bytes() - before)
    return most


@pytest.mark.parametrize("write", [csv, jsonl, parquet])
def test_reading_holds_a_few_blocks_however_long_the_file(tmp_path: Path, write: Callable[[Path, int], None]) -> None:
    small, large = tmp_path / f"small.{write.__name__}", tmp_path / f"large.{write.__name__}"
    write(small, 5_000)
    write(large, 60_000)
    assert large.stat().st_size > 8 << 20
    few, many = (peak(open_source(str(path)).batches(250)) for path in (small, large))
    assert many < max(2 * few, 6 << 20)


def test_gathering_holds_a_few_parts_however_many_there_are(tmp_path: Path) -> None:
    sink = PartSink(str(tmp_path / "sink"), fingerprint="f", shard=Shard(0, 1))
    sink.begin()
    for batch in range(60):
        rows = range(batch * 1000, batch * 1000 + 1000)
        sink.write(batch, pa.table({"id": rows, "text": noise(1000)}), summary={}, final=True)
    sink.commit({})
    assert sum(path.stat().st_size for path in (tmp_path / "sink").iterdir()) > 8 << 20
    held: list[int] = []
    before = pa.total_allocated_bytes()
    source = open_source(str(tmp_path / "sink"))
    held += [pa.total_allocated_bytes() - before for _ in source.batches(1000)]
    assert max(held) < 6 << 20
    assert gather(str(tmp_path / "sink"), str(tmp_path / "all.parquet"), key="id") == 60_000
