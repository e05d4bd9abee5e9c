"""The runner of every job over rows: source → batches → ``process(batch)`` → parts of a sink.

Memory does not grow with rows: a bounded number of batches is under way, and each is written as a part and let go. A
batch whose part an earlier try has finished is not processed again, if the part is still of the same rows. What is
plugged in says what happens to one batch, and what decides it, which is the job's fingerprint.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from airflow_ai_provider.core.errors import JobStopped
from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs.tally import Progress, Tally, progress_line
from airflow_ai_provider.core.pipeline.loop_thread import GRACE_SECONDS
from airflow_ai_provider.core.rows.keys import key_values, keys_digest, rows_digest
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.core.rows.sink import PartSink
from airflow_ai_provider.core.rows.source import Source


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a source."""

    index: int
    """Number of the batch in the whole source."""
    keys: list[str]
    """One per row; empty where the rows have no key."""
    rows: pa.RecordBatch

    @property
    def digest(self) -> str:
        """Names the rows: their keys or, where they have none, their content."""
        return keys_digest(self.keys) if self.keys else rows_digest(self.rows)


@dataclass(frozen=True, slots=True)
class Feed:
    """The rows that one task instance takes of a source."""

    source: Source
    key: str | None
    """Column that names a row, or ``#row``; ``None`` where rows have no key."""
    shard: Shard
    batch_rows: int
    """Rows per batch, and per part of the sink."""

    def batches(self, seen: Callable[[int], None] = lambda rows: None) -> Iterator[Batch]:
        """The batches of the shard; ``seen`` is told how many rows of the whole source have gone by."""
        first_row = 0
        for index, rows in enumerate(self.source.batches(self.batch_rows)):
            if self.shard.owns(index):
                keys = [] if self.key is None else key_values(rows, self.key, first_row)
                yield Batch(index, keys, rows)
            first_row += rows.num_rows
            seen(first_row)

    def rows_of_shard(self, rows: int) -> int:
        """How many of ``rows`` rows of the source are of this shard."""
        starts = range(self.shard.index * self.batch_rows, rows, self.shard.count * self.batch_rows)
        return sum(min(self.batch_rows, rows - start) for start in starts)


@dataclass(frozen=True, slots=True)
class Part:
    """What a batch has become."""

    table: pa.Table
    counts: Mapping[str, Any]
    """For the tally of the job, and the part's footer."""
    final: bool = True
    """False if some rows are to be tried again by the next try of the task."""


class BatchJob(ABC):
    """What is plugged into the runner."""

    @abstractmethod
    async def process(self, batch: Batch) -> Part | None:
        """Work on a batch; ``None`` writes no part. Raises what ends the job; a bad row is no error of its batch."""

    def resumed(self, batch: Batch, counts: Mapping[str, Any]) -> None:  # noqa: B027 - most jobs need not know
        """Take note of a batch that an earlier try has finished, with the counts of its part."""

    async def stop(self, grace_seconds: float) -> None:  # noqa: B027 - a short batch may end
        """Begin nothing more; ``process`` may raise ``JobStopped``, and ends within ``grace_seconds``."""

    async def finish(self) -> None:  # noqa: B027 - most jobs leave nothing for the end
        """Write what waited for the end of the job, before it is declared done."""


class Runner:
    """Takes a job through the batches of a feed. For one event loop.

    ``sink`` is asked for finished parts, and gets the new ones.
    """

    def __init__(
        self,
        feed: Feed,
        job: BatchJob,
        tally: Tally,
        sink: PartSink | None,
        *,
        at_once: int = 1,
        seen: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._feed = feed
        self._job = job
        self._tally = tally
        self._sink = sink
        self._at_once = at_once
        self._seen = seen
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Every batch that is not finished yet. After an error none is begun, and those under way end.

        Raises ``JobStopped`` once ``stop`` is set and the batches under way have ended.
        """
        stopping = asyncio.create_task(self._heed(stop))
        try:
            await self._work(stop)
            if self._tasks:
                self._gather(await asyncio.wait(self._tasks))
        finally:
            stopping.cancel()
        if stop.is_set():
            self._failures.append(JobStopped())
        if self._failures:
            raise next((error for error in self._failures if not isinstance(error, JobStopped)), self._failures[0])

    async def _work(self, stop: asyncio.Event) -> None:
        batches = self._unfinished()
        while not self._failures and not stop.is_set():
            try:
                batch = await asyncio.to_thread(next, batches, None)
            except Exception as broken:  # noqa: BLE001 - the source, on the way; batches under way end first
                self._failures.append(broken)
                return
            if batch is None or stop.is_set():
                return
            self._tasks.add(asyncio.create_task(self._one(batch)))
            if len(self._tasks) >= self._at_once:
                self._gather(await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED))

    async def _heed(self, stop: asyncio.Event) -> None:
        await stop.wait()
        await self._job.stop(GRACE_SECONDS)

    def _gather(self, waited: tuple[set[asyncio.Task[None]], set[asyncio.Task[None]]]) -> None:
        done, self._tasks = waited
        self._failures += [error for task in done if (error := task.exception())]

    def _unfinished(self) -> Iterator[Batch]:
        """What is still to be done. A finished part counts only if it is of the same rows: a query without an order
        may deal its rows anew."""
        for batch in self._feed.batches(self._seen):
            part = None if self._sink is None else self._sink.finished(batch.index)
            if part is not None and part.summary.get("rows_digest") == batch.digest:
                self._tally.add_finished(part.summary)
                self._job.resumed(batch, part.summary)
            else:
                yield batch

    async def _one(self, batch: Batch) -> None:
        part = await self._job.process(batch)
        if part is None:
            return
        if self._sink is not None:
            summary = {**part.counts, "rows_digest": batch.digest}
            await asyncio.to_thread(self._sink.write, batch.index, part.table, summary=summary, final=part.final)
        self._tally.add(part.counts)


async def run_to_sink(
    feed: Feed,
    job: BatchJob,
    sink: PartSink,
    tally: Tally,
    stop: asyncio.Event,
    *,
    log: logging.Logger | Any,
    rows: int | None = None,
    at_once: int = 1,
) -> float:
    """Run a job into a sink that has begun, and commit it; returns the seconds it took. ``rows`` are those of the
    whole source, where that is known."""
    progress = Progress(log, tally, None if rows is None else feed.rows_of_shard(rows))
    reporter = asyncio.create_task(progress.report())
    try:
        await Runner(feed, job, tally, sink, at_once=at_once).run(stop)
    finally:
        reporter.cancel()
    await job.finish()
    sink.commit(tally.to_summary())
    log.info("%s", progress_line(tally, tally.rows, progress.seconds))
    return round(progress.seconds, 3)


def fingerprint(caller: Caller, feed: Feed, version: object, **decides: object) -> str:
    """Names a job and the rows it is over: a part is taken for finished only if all of this is the same.

    It is the same for all shards and tries, and new for each run. ``version`` is what is known of the source's content;
    ``decides`` is everything else that decides what becomes of a row, as JSON.
    """
    parts = {
        "task": (caller.dag_id, caller.run_id, caller.task_id),
        "rows": (feed.source.uri, version, feed.key, feed.batch_rows),
        **decides,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
