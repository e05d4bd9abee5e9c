"""The runner of all jobs over rows: batches, parts, retries, stops and errors."""

from __future__ import annotations

import asyncio
import csv
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs.runner import Batch, BatchJob, Feed, Part, Runner, fingerprint, run_to_sink
from airflow_ai_provider.core.jobs.tally import Tally, check_error_rate, progress_line
from airflow_ai_provider.core.rows.manifest import read_manifest
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.core.rows.sink import PartSink
from airflow_ai_provider.core.rows.source import Source, open_source
from airflow_ai_provider.errors import JobStopped, PermanentError, SinkError, SourceError, TransientError

CALLER = Caller("dag", "run", "task")
LOG = logging.getLogger(__name__)


@dataclass
class Counts(Tally):
    long: int = 0


class Copy(BatchJob):
    """Writes rows as they are; ``unfinished`` batches are to be tried again, ``broken`` ones raise."""

    def __init__(self, unfinished: set[int] = frozenset(), broken: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.unfinished, self.broken = unfinished, broken
        self.processed: list[int] = []
        self.from_before: list[int] = []
        self.under_way = self.most = 0
        self.stopped = asyncio.Event()

    async def process(self, batch: Batch) -> Part:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        if batch.index in self.broken:
            raise SourceError("broken")
        self.processed.append(batch.index)
        counts = {"rows": batch.rows.num_rows, "long": 1, "errors": {}}
        return Part(pa.Table.from_batches([batch.rows]), counts, final=batch.index not in self.unfinished)

    def resumed(self, batch: Batch, counts: Mapping[str, Any]) -> None:
        self.from_before.append(batch.index)

    async def stop(self, grace_seconds: float) -> None:
        self.stopped.set()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows.csv", 10)
    return tmp_path / "rows.csv"


def write_rows(path: Path, count: int, *, first: int = 0, text: str = "text") -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *[[f"r{n}", f"{text} {n}"] for n in range(first, first + count)]])


def feed_of(rows: Path, key: str | None = "id", shard: Shard = Shard(0, 1)) -> Feed:  # noqa: B008 - frozen
    return Feed(open_source(str(rows)), key, shard, 2)


def sink_of(rows: Path, mark: str = "f" * 64, shard: Shard = Shard(0, 1)) -> PartSink:  # noqa: B008 - frozen
    sink = PartSink(str(rows.parent / "sink"), fingerprint=mark, shard=shard)
    sink.begin()
    return sink


def run(
    rows: Path, job: Copy, *, key: str | None = "id", at_once: int = 1, stop: asyncio.Event | None = None
) -> Counts:
    tally = Counts()
    work = run_to_sink(
        feed_of(rows, key), job, sink_of(rows), tally, stop or asyncio.Event(), log=LOG, rows=10, at_once=at_once
    )
    asyncio.run(work)  # type: ignore[arg-type]
    return tally


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_every_batch_becomes_a_part_and_no_more_are_under_way_than_allowed(rows: Path, at_once: int) -> None:
    job = Copy()
    tally = run(rows, job, at_once=at_once)
    assert sorted(job.processed) == [0, 1, 2, 3, 4]
    assert job.most <= at_once
    assert (tally.rows, tally.long, tally.skipped) == (10, 5, 0)
    manifest = read_manifest(str(rows.parent / "sink"))
    assert manifest is not None
    assert (manifest.rows, manifest.totals["long"]) == (10, 5)


def test_a_retry_leaves_finished_parts_and_counts_their_rows(rows: Path) -> None:
    run(rows, Copy(unfinished={1, 3}))
    again = Copy()
    tally = run(rows, again)
    assert (again.processed, again.from_before) == ([1, 3], [0, 2, 4])
    assert (tally.rows, tally.skipped) == (10, 6)


def test_a_finished_part_of_other_keys_is_made_anew(rows: Path) -> None:
    run(rows, Copy())
    write_rows(rows, 10, first=2)
    again = Copy()
    run(rows, again)
    assert again.processed == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("key", "made_anew"), [("id", []), ("#row", []), (None, [0, 1, 2, 3, 4])])
def test_rows_without_a_key_are_known_by_their_content(rows: Path, key: str | None, made_anew: list[int]) -> None:
    """Rows with a key are what their key says: an answer is not paid for again because a column was touched."""
    run(rows, Copy(), key=key)
    write_rows(rows, 10, text="other text")
    again = Copy()
    run(rows, again, key=key)
    assert again.processed == made_anew


def test_after_an_error_no_batch_is_begun_and_what_is_under_way_is_written(rows: Path) -> None:
    job = Copy(broken={1})
    with pytest.raises(SourceError, match="broken"):
        run(rows, job, at_once=2)
    assert 0 in job.processed
    assert 4 not in job.processed
    assert read_manifest(str(rows.parent / "sink")) is None
    again = Copy()
    run(rows, again)
    assert set(again.from_before) == set(job.processed)


def test_a_source_that_breaks_on_the_way_keeps_what_was_read_before(rows: Path) -> None:
    rows.write_text(rows.read_text() + '"r11","unclosed\n')
    job = Copy()
    with pytest.raises(SourceError):
        run(rows, job)
    write_rows(rows, 10)
    again = Copy()
    run(rows, again)
    assert again.from_before == job.processed


class StopsItself(Copy):
    """Asks for a stop while its second batch is under way."""

    def __init__(self, stop: asyncio.Event) -> None:
        super().__init__()
        self._stop = stop

    async def process(self, batch: Batch) -> Part:
        if batch.index == 1:
            self._stop.set()
            await self.stopped.wait()
        return await super().process(batch)


def test_a_stop_lets_the_batch_under_way_end_and_begins_no_other(rows: Path) -> None:
    async def stopped() -> StopsItself:
        stop = asyncio.Event()
        job = StopsItself(stop)
        with pytest.raises(JobStopped):
            await run_to_sink(feed_of(rows), job, sink_of(rows), Counts(), stop, log=LOG)
        return job

    assert asyncio.run(stopped()).processed == [0, 1]
    assert read_manifest(str(rows.parent / "sink")) is None
    again = Copy()
    run(rows, again)
    assert again.from_before == [0, 1]


def test_what_went_wrong_is_raised_rather_than_the_stop_that_followed(rows: Path) -> None:
    class Breaks(StopsItself):
        async def process(self, batch: Batch) -> Part:
            await super().process(batch)
            if batch.index == 1:
                raise SinkError("full")
            return await super().process(batch)

    async def stopped() -> None:
        stop = asyncio.Event()
        await run_to_sink(feed_of(rows), Breaks(stop), sink_of(rows), Counts(), stop, log=LOG)

    with pytest.raises(SinkError, match="full"):
        asyncio.run(stopped())


def test_a_job_that_writes_nothing_sees_every_unfinished_batch_and_leaves_no_part(rows: Path) -> None:
    class Looks(Copy):
        async def process(self, batch: Batch) -> None:  # type: ignore[override]
            await super().process(batch)

    run(rows, Copy(unfinished={2}))
    before = sorted(path.name for path in (rows.parent / "sink").iterdir())
    job, tally, seen = Looks(), Tally(), list[int]()
    sink = PartSink(str(rows.parent / "sink"), fingerprint="f" * 64, shard=Shard(0, 1))  # read, never begun
    asyncio.run(Runner(feed_of(rows), job, tally, sink, seen=seen.append).run(asyncio.Event()))  # type: ignore[arg-type]
    assert (job.processed, tally.rows, seen) == ([2], 8, [2, 4, 6, 8, 10])
    assert sorted(path.name for path in (rows.parent / "sink").iterdir()) == before


def test_shards_share_the_batches_and_know_how_many_rows_are_theirs(rows: Path) -> None:
    feeds = [feed_of(rows, shard=Shard(index, 3)) for index in range(3)]
    taken = [[batch.index for batch in feed.batches()] for feed in feeds]
    assert taken == [[0, 3], [1, 4], [2]]
    assert [feed.rows_of_shard(10) for feed in feeds] == [4, 4, 2]
    assert [feed.rows_of_shard(9) for feed in feeds] == [4, 3, 2]


def test_a_fingerprint_is_one_for_all_shards_and_another_for_another_job(rows: Path) -> None:
    source = open_source(str(rows))
    one = fingerprint(CALLER, Feed(source, "id", Shard(0, 2), 2), "v1", prompt="p")
    assert one == fingerprint(CALLER, Feed(source, "id", Shard(1, 2), 2), "v1", prompt="p")
    others = [
        fingerprint(Caller("dag", "run 2", "task"), feed_of(rows), "v1", prompt="p"),
        fingerprint(Caller("dag", "run", "other"), feed_of(rows), "v1", prompt="p"),
        fingerprint(CALLER, feed_of(rows, "text"), "v1", prompt="p"),
        fingerprint(CALLER, Feed(source, "id", Shard(0, 1), 3), "v1", prompt="p"),
        fingerprint(CALLER, feed_of(rows), "v2", prompt="p"),
        fingerprint(CALLER, feed_of(rows), "v1", prompt="q"),
    ]
    assert len({one, *others}) == 7


@pytest.mark.parametrize("odd", [10**30, float("nan"), "\ud800", Decimal("0.1"), date(2026, 1, 2), {"a": {"b": ()}}])
def test_a_fingerprint_takes_whatever_a_dag_file_may_hold(rows: Path, odd: object) -> None:
    feed = feed_of(rows)
    assert fingerprint(CALLER, feed, None, columns={"n": odd}) == fingerprint(CALLER, feed, None, columns={"n": odd})
    assert fingerprint(CALLER, feed, None, columns={"n": odd}) != fingerprint(CALLER, feed, None, columns={"n": 1})


def test_progress_without_a_known_number_of_rows_promises_no_end() -> None:
    assert progress_line(Counts(rows=1500), None, 3.0) == "1,500 rows · 500 rows/s"


@dataclass(frozen=True)
class Came:
    rows: int
    errors: Mapping[str, int]
    sink: str = "out"

    @property
    def error(self) -> int:
        return sum(self.errors.values())


@pytest.mark.parametrize(
    ("came", "raised"),
    [
        (Came(0, {}), None),
        (Came(4, {"privacy": 2}), None),
        (Came(4, {"privacy": 3}), PermanentError),
        (Came(4, {"timeout": 3}), TransientError),
        (Came(4, {"timeout": 2, "prompt": 2}), TransientError),
        (Came(4, {"timeout": 1, "keyring": 2}), PermanentError),
    ],
)
def test_too_many_errors_may_be_tried_again_only_where_most_may_pass(came: Came, raised: type | None) -> None:
    if raised is None:
        check_error_rate(came, 0.5)
        return
    with pytest.raises(raised, match=r"more than max_error_rate 0\.5 allows .* in column privacy_error, are in out"):
        check_error_rate(came, 0.5, column="privacy_error")


def test_a_source_is_read_no_further_than_it_is_worked_on(rows: Path) -> None:
    """Memory does not grow with rows: a batch is read when there is room for it."""

    class Counting:
        def __init__(self, source: Source) -> None:
            self._source, self.read = source, 0
            self.uri = source.uri

        def batches(self, size: int) -> Iterator[pa.RecordBatch]:
            for batch in self._source.batches(size):
                self.read += 1
                yield batch

    source = Counting(open_source(str(rows)))
    ahead: list[int] = []

    class Watches(Copy):
        async def process(self, batch: Batch) -> Part:
            ahead.append(source.read - len(self.processed))
            return await super().process(batch)

    feed = Feed(source, "id", Shard(0, 1), 2)  # type: ignore[arg-type]
    asyncio.run(Runner(feed, Watches(), Counts(), None, at_once=2).run(asyncio.Event()))  # type: ignore[arg-type]
    assert max(ahead) <= 2
