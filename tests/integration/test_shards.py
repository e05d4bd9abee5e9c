"""Shards share a source and a sink without talking to each other: every row once, in order, one manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.map_jobs import Lab, questions, write_jsonl

from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.testing.vendor import VendorProcess

ROWS = 430
SHARDS = 3


@pytest.mark.timeout(100)
def test_three_shards_at_once_and_a_retry_of_one(tmp_path: Path, paid_vendor: VendorProcess) -> None:
    lab = Lab(tmp_path, paid_vendor)
    rows = questions(ROWS)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    specs = [lab.spec(source, caller={"map_index": i}, shard=Shard(i, SHARDS)) for i in range(SHARDS)]

    processes = [lab.start(spec) for spec in specs[1:]]
    assert [process.summary()["rows"] for process in processes] == [150, 130]
    assert not (lab.sink / "manifest.json").exists(), "a manifest while a shard is missing"
    assert lab.start(specs[0]).summary()["rows"] == 150

    assert_whole(lab, rows)
    assert len(paid_vendor.invoice()) == ROWS
    before = {path.name: path.stat().st_mtime_ns for path in lab.sink.glob("part-*")}
    again = lab.run(source, caller={"map_index": 1, "try_number": 2}, shard=Shard(1, SHARDS))
    assert (again["rows"], again["ok"], again["skipped"], again["cost_usd"]) == (150, 150, 150, "0.000000000")
    assert {path.name: path.stat().st_mtime_ns for path in lab.sink.glob("part-*")} == before
    assert_whole(lab, rows)

    # A part that is gone is made anew, from answers that were paid for.
    next(lab.sink.glob("part-00001-*")).unlink()
    mended = lab.run(source, caller={"map_index": 1, "try_number": 3}, shard=Shard(1, SHARDS))
    assert (mended["ok"], mended["skipped"], mended["reused"]) == (150, 100, 50)
    assert_whole(lab, rows)
    assert paid_vendor.stats().requests == ROWS
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(paid_vendor.invoice())


@pytest.mark.timeout(100)
def test_all_shards_start_and_end_together(tmp_path: Path, paid_vendor: VendorProcess) -> None:
    """Twice over one sink: the second job is another run, so nothing of the first may be left in the answers."""
    lab = Lab(tmp_path, paid_vendor)
    rows = questions(ROWS)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    for run in ("run-1", "run-2"):
        specs = [
            lab.spec(source, caller={"run_id": run, "map_index": i}, shard=Shard(i, SHARDS), batch_rows=20)
            for i in range(SHARDS)
        ]
        processes = [lab.start(spec) for spec in specs]
        assert sum(process.summary()["ok"] for process in processes) == ROWS
        assert_whole(lab, rows)
        with lab.books() as books:
            of_run = {row["request_id"] for row in books.requests() if row["run_id"] == run}
        assert {row["request_id"] for row in lab.output()} == of_run
    assert paid_vendor.stats().requests == 2 * ROWS  # the route reuses within a run only


def assert_whole(lab: Lab, rows: list[dict[str, str]]) -> None:
    output = lab.output()
    assert [(row["id"], row["text"]) for row in output] == [(row["id"], row["text"]) for row in rows]
    assert {row["status"] for row in output} == {"ok"}
    manifest = json.loads((lab.sink / "manifest.json").read_bytes())
    assert (manifest["rows"], manifest["shards"], manifest["totals"]["ok"]) == (ROWS, SHARDS, ROWS)
    assert sorted(part["name"] for part in manifest["parts"]) == sorted(p.name for p in lab.sink.glob("part-*"))
