"""A sink's parts are complete or absent, a retry goes on, and no reader sees a mixture."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from support.storage import Place

from airflow_ai_provider.core.rows.manifest import add_up, read_manifest
from airflow_ai_provider.core.rows.shard import Shard, parse_shard
from airflow_ai_provider.core.rows.sink import PartSink
from airflow_ai_provider.core.rows.source import open_source
from airflow_ai_provider.errors import SinkError, SourceError

ROWS = 10


def table(batch: int, text: str | None = "x") -> pa.Table:
    ids = range(batch * ROWS, batch * ROWS + ROWS)
    return pa.table({"id": ids, "answer": [text and f"{text}{n}" for n in ids]})


def make(place: Place, shard: str = "0/1", fingerprint: str = "f1", **more: Any) -> PartSink:
    return PartSink(
        place.uri("out"),
        fingerprint=fingerprint,
        shard=parse_shard(shard),
        storage_options=place.options,
        **more,
    )


def run(
    place: Place,
    shard: str = "0/1",
    *,
    batches: int = 4,
    fingerprint: str = "f1",
    text: str = "x",
    final: Mapping[int, bool] | None = None,
) -> list[int]:
    """What a task does; returns the batches it had to write."""
    sink = make(place, shard, fingerprint)
    sink.begin()
    written = []
    for batch in range(batches):
        if sink.shard.owns(batch) and sink.finished(batch) is None:
            is_final = (final or {}).get(batch, True)
            sink.write(batch, table(batch, text), summary={"rows": ROWS, "ok": ROWS}, final=is_final)
            written.append(batch)
    sink.commit({"rows": ROWS * len(written), "seconds": 0.5, "sink": "x", "errors": {"timeout": 1}})
    return written


def answers(place: Place) -> list[str]:
    source = open_source(place.uri("out"), storage_options=place.options)
    return [value for batch in source.batches(7) for value in batch["answer"].to_pylist()]


def test_what_is_written_is_read_back_in_the_order_of_the_source(place: Place) -> None:
    assert run(place) == [0, 1, 2, 3]
    assert answers(place) == [f"x{n}" for n in range(4 * ROWS)]
    manifest = read_manifest(place.uri("out"), place.options)
    assert manifest is not None
    assert (manifest.rows, manifest.columns, manifest.final) == (40, ("id", "answer"), True)
    assert manifest.totals == {"rows": 40, "errors": {"timeout": 1}}
    assert datetime.fromisoformat(manifest.created_at).tzinfo is UTC
    names = place.names("out")
    assert names == ["manifest-0-of-1.json", "manifest.json", *(f"part-00000-{n:06d}.parquet" for n in range(4))]
    assert [part.bytes for part in manifest.parts] == [len(place.get(f"out/{part.name}")) for part in manifest.parts]


def test_a_retry_writes_only_what_is_not_finished(place: Place) -> None:
    run(place)
    assert run(place, batches=6) == [4, 5]
    part = make(place).finished(2)
    assert part is not None
    assert (part.rows, part.summary, part.batch) == (ROWS, {"rows": ROWS, "ok": ROWS}, 2)


def test_nothing_is_finished_in_a_folder_that_is_not_there(place: Place) -> None:
    assert make(place).finished(0) is None


@pytest.mark.parametrize("spoil", ["cut", "empty", "garbage"])
def test_a_part_that_is_not_whole_is_written_again(place: Place, spoil: str) -> None:
    run(place)
    name = "out/part-00000-000002.parquet"
    whole = place.get(name)
    place.put(name, {"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"PAR1" + b"x" * 100}[spoil])
    assert run(place) == [2]
    assert place.get(name) == whole


def test_a_part_with_rows_to_try_again_is_written_again(place: Place) -> None:
    assert run(place, final={1: False}) == [0, 1, 2, 3]
    manifest = read_manifest(place.uri("out"), place.options)
    assert manifest is not None
    assert not manifest.final
    assert run(place, text="y") == [1]
    assert answers(place)[ROWS] == "y10"


def test_parts_of_another_job_are_removed_before_anything_is_written(place: Place) -> None:
    run(place, batches=6)
    make(place, fingerprint="f2").begin()
    assert not place.names("out")
    assert run(place, fingerprint="f2", text="y", batches=2) == [0, 1]
    assert answers(place) == [f"y{n}" for n in range(2 * ROWS)]


def test_a_sink_is_not_readable_until_all_shards_are_through(place: Place) -> None:
    run(place, "1/3")
    run(place, "0/3")
    assert read_manifest(place.uri("out"), place.options) is None
    with pytest.raises(SourceError, match="a sink that is not finished"):
        answers(place)
    run(place, "2/3")
    assert answers(place) == [f"x{n}" for n in range(4 * ROWS)]
    manifest = read_manifest(place.uri("out"), place.options)
    assert manifest is not None
    assert manifest.totals["rows"] == 40
    assert [part.name for part in manifest.parts][1] == "part-00001-000001.parquet"


def test_another_jobs_manifest_goes_with_the_first_shard_that_begins(place: Place) -> None:
    run(place, "0/2")
    run(place, "1/2")
    make(place, "1/2", "f2").begin()
    assert read_manifest(place.uri("out"), place.options) is None
    run(place, "1/2", fingerprint="f2", text="y")
    assert read_manifest(place.uri("out"), place.options) is None, "shard 0 still holds the old job's parts"
    run(place, "0/2", fingerprint="f2", text="y")
    assert answers(place) == [f"y{n}" for n in range(4 * ROWS)]


def test_with_another_number_of_shards_finished_parts_are_kept(place: Place) -> None:
    for index in range(3):
        run(place, f"{index}/3", final={2: False})
    assert run(place, "0/2", text="y") == [2]
    assert run(place, "1/2", text="y") == []
    names = place.names("out")
    assert "part-00002-000002.parquet" not in names
    assert [name for name in names if name.startswith("manifest")] == [
        "manifest-0-of-2.json",
        "manifest-1-of-2.json",
        "manifest.json",
    ]
    assert [answer[0] for answer in answers(place)[::ROWS]] == ["x", "x", "y", "x"]


def test_shards_that_end_at_once_write_the_same_manifest(place: Place) -> None:
    sinks = [make(place, f"{index}/2", now=lambda: datetime(2026, 1, 2, tzinfo=UTC)) for index in range(2)]
    for batch, sink in enumerate(sinks):
        sink.begin()
        sink.write(batch, table(batch), summary={}, final=True)
        sink.commit({"rows": ROWS})
    first = place.get("out/manifest.json")
    sinks[0].commit({"rows": ROWS})
    assert place.get("out/manifest.json") == first


def test_the_version_of_a_sink_is_its_content(place: Place) -> None:
    def version() -> str | None:
        return open_source(place.uri("out"), storage_options=place.options).version()

    run(place)
    first = version()
    run(place)
    assert version() == first, "a retry that writes nothing changes nothing"
    run(place, fingerprint="f2")
    assert version() == first, "the same rows again"
    run(place, fingerprint="f3", text="y")
    assert version() != first


def test_a_source_that_became_shorter_leaves_no_rows_behind(place: Place) -> None:
    run(place, batches=5)
    run(place, batches=3)
    assert len(answers(place)) == 3 * ROWS
    assert "part-00000-000004.parquet" not in place.names("out")


def test_a_shard_without_batches_commits(place: Place) -> None:
    for index in range(3):
        run(place, f"{index}/3", batches=2)
    assert len(answers(place)) == 2 * ROWS


def test_a_column_that_is_null_in_a_part_takes_its_type_from_the_others(place: Place) -> None:
    sink = make(place)
    sink.begin()
    sink.write(0, pa.table({"id": [1], "answer": pa.nulls(1)}), summary={}, final=True)
    sink.write(1, pa.table({"id": [2], "answer": ["x"]}), summary={}, final=True)
    sink.commit({})
    assert answers(place) == [None, "x"]


@pytest.mark.parametrize("other", [pa.table({"id": ["text"]}), pa.table({"key": [1]})])
def test_parts_that_do_not_fit_together_are_refused(place: Place, other: pa.Table) -> None:
    sink = make(place)
    sink.begin()
    sink.write(0, pa.table({"id": [1]}), summary={}, final=True)
    sink.write(1, other, summary={}, final=True)
    with pytest.raises(SinkError, match="same schema"):
        sink.commit({})


def test_a_batch_passed_over_is_refused(place: Place) -> None:
    sink = make(place, "1/2")
    sink.begin()
    sink.write(1, table(1), summary={}, final=True)
    sink.write(5, table(5), summary={}, final=True)
    with pytest.raises(SinkError, match="batch 3 was not written"):
        sink.commit({})


def test_a_batch_missing_between_shards_is_refused(place: Place) -> None:
    run(place, "0/2", batches=6)
    with pytest.raises(SinkError, match="batch 3 is missing"):
        run(place, "1/2", batches=2)


def test_a_batch_of_another_shard_is_refused(place: Place) -> None:
    sink = make(place, "0/2")
    sink.begin()
    with pytest.raises(SinkError, match="batch 1 is not of shard 0/2"):
        sink.write(1, table(1), summary={}, final=True)


def test_nothing_is_written_before_begin(place: Place) -> None:
    with pytest.raises(SinkError, match="before begin"):
        make(place).write(0, table(0), summary={}, final=True)


@pytest.mark.parametrize("name", ["notes.txt", "part-1.parquet", "folder/a.csv", "manifest.json", "data.parquet"])
def test_a_folder_with_other_files_is_refused_and_left_alone(place: Place, name: str) -> None:
    place.put(f"out/{name}", b"{}")
    with pytest.raises(SinkError, match="choose an empty or a new folder"):
        make(place).begin()
    assert place.get(f"out/{name}") == b"{}"


def test_hidden_files_are_passed_over(place: Place) -> None:
    place.put("out/.keep", b"")
    run(place)
    assert ".keep" in place.names("out")


def test_what_a_killed_process_left_is_removed_by_the_shard_it_belongs_to(place: Place) -> None:
    place.put("out/.part-00000-000002.parquet.abc.tmp", b"half")
    place.put("out/.part-00001-000003.parquet.abc.tmp", b"half")
    make(place, "0/2").begin()
    names = [name for name in place.names("out") if name.startswith(".")]
    assert names == [".part-00001-000003.parquet.abc.tmp"]


@pytest.mark.parametrize("shards", ["0/1", "0/2"])
@pytest.mark.parametrize("newer_tries", [1, 2])
def test_a_part_is_written_although_newer_tries_clear_away_its_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: str, newer_tries: int
) -> None:
    """That a newer try has taken over is for the ledger to say; what was paid for is written until then."""
    place = Place(str(tmp_path), LocalFileSystem())
    sink = make(place)
    sink.begin()
    fsync, left = os.fsync, iter(range(newer_tries))

    def begin_newer_try(descriptor: int) -> None:
        fsync(descriptor)
        if next(left, None) is not None:
            make(place, shards).begin()

    monkeypatch.setattr(os, "fsync", begin_newer_try)
    sink.write(0, table(0), summary={"rows": ROWS}, final=True)
    assert place.names("out") == ["part-00000-000000.parquet"]
    sink.commit({"rows": ROWS})
    assert answers(place) == [f"x{number}" for number in range(ROWS)]


def test_a_part_is_written_although_a_newer_try_clears_it_away_from_a_store_that_renames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    filesystem = MemoryFileSystem()
    place = Place(f"memory://{uuid.uuid4().hex}", filesystem)
    sink = make(place)
    sink.begin()
    move = filesystem.mv

    def after_newer_try(*args: Any, **options: Any) -> None:
        monkeypatch.setattr(filesystem, "mv", move)
        make(place).begin()
        move(*args, **options)

    monkeypatch.setattr(filesystem, "mv", after_newer_try)
    sink.write(0, table(0), summary={"rows": ROWS}, final=True)
    assert place.names("out") == ["part-00000-000000.parquet"]


def test_a_folder_that_is_removed_under_a_try_is_named(tmp_path: Path) -> None:
    sink = make(Place(str(tmp_path), LocalFileSystem()))
    sink.begin()
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(SinkError, match="out: does not exist; make it first"):
        sink.write(0, table(0), summary={"rows": ROWS}, final=True)


def test_the_footer_says_what_came_of_the_rows(place: Place, tmp_path: Any) -> None:
    sink = make(place)
    sink.begin()
    sink.write(0, table(0), summary={"ok": 9, "名": "值"}, final=False)
    (tmp_path / "copy.parquet").write_bytes(place.get("out/part-00000-000000.parquet"))
    marks = pq.read_metadata(tmp_path / "copy.parquet").metadata
    assert marks[b"ai.fingerprint"] == b"f1"
    assert marks[b"ai.final"] == b"0"
    assert json.loads(marks[b"ai.summary"]) == {"ok": 9, "名": "值"}
    assert pq.ParquetFile(tmp_path / "copy.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_part_that_is_missing_from_a_finished_sink_is_an_error(place: Place) -> None:
    run(place)
    place.remove("out/part-00000-000001.parquet")
    with pytest.raises(SourceError, match=r"part-00000-000001\.parquet: does not exist"):
        answers(place)


def test_a_damaged_part_of_a_finished_sink_is_named_with_the_remedy(place: Place) -> None:
    run(place)
    place.put("out/part-00000-000001.parquet", b"PAR1")
    with pytest.raises(SourceError, match=r"part-00000-000001\.parquet.*delete it and run the task"):
        answers(place)


@pytest.mark.parametrize("uri", ["out.parquet", "sql://warehouse/answers"])
def test_a_sink_that_is_no_folder_is_refused(uri: str) -> None:
    with pytest.raises(SinkError, match="expected a folder"):
        PartSink(uri, fingerprint="f", shard=Shard(0, 1))


def test_a_sink_in_the_place_of_a_file_is_refused(tmp_path: Any) -> None:
    (tmp_path / "out").write_bytes(b"x")
    with pytest.raises(SinkError, match="out: a file is in the place of a folder"):
        PartSink(str(tmp_path / "out"), fingerprint="f", shard=Shard(0, 1)).begin()


def test_integers_of_summaries_are_added_up_and_nothing_else() -> None:
    one = {"rows": 1, "cost_usd": "0.1", "ok": True, "errors": {"timeout": 2}}
    two = {"rows": 2, "errors": {"timeout": 1, "refused": 5}, "seconds": 1.5}
    assert add_up([one, two]) == {"rows": 3, "errors": {"timeout": 3, "refused": 5}}
