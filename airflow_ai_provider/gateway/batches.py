"""Feeds a job's batches to the gateway and writes what comes back.

Memory does not grow with rows: a bounded number of batches is under way, and each is written as a part and let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pyarrow as pa

from airflow_ai_provider.core.pipeline.answer import FINAL
from airflow_ai_provider.core.pipeline.batch import Pipeline
from airflow_ai_provider.core.pipeline.loop_thread import GRACE_SECONDS
from airflow_ai_provider.errors import JobStopped
from airflow_ai_provider.gateway.job import MapJob
from airflow_ai_provider.gateway.preflight import JobPlan
from airflow_ai_provider.gateway.results import Tally, to_table
from airflow_ai_provider.rows.keys import key_values, keys_digest
from airflow_ai_provider.rows.sink import PartSink

_Batch = tuple[int, list[str], pa.RecordBatch]
"""Index, keys, rows."""


class Batches:
    """The batches of one shard, for one event loop."""

    def __init__(
        self, job: MapJob, plan: JobPlan, sink: PartSink, gateway: Pipeline, tally: Tally, at_once: int
    ) -> None:
        self._job = job
        self._source = plan.source
        self._sink = sink
        self._gateway = gateway
        self._tally = tally
        self._at_once = at_once
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Every batch of the shard that is not finished yet. After an error none is begun, and those under way end.

        Raises ``JobStopped`` once ``stop`` is set and what was out has come back, or has not in time.
        """
        stopping = asyncio.create_task(self._heed(stop))
        try:
            await self._feed(stop)
            if self._tasks:
                self._gather(await asyncio.wait(self._tasks))
        finally:
            stopping.cancel()
        if stop.is_set():
            self._failures.append(JobStopped())
        if self._failures:
            raise next((error for error in self._failures if not isinstance(error, JobStopped)), self._failures[0])

    async def _feed(self, stop: asyncio.Event) -> None:
        batches = self._unfinished()
        while not self._failures and not stop.is_set():
            try:
                item = await asyncio.to_thread(next, batches, None)
            except Exception as broken:  # noqa: BLE001 - the source, on the way; batches under way end first
                self._failures.append(broken)
                return
            if item is None or stop.is_set():
                return
            self._tasks.add(asyncio.create_task(self._one(*item)))
            if len(self._tasks) >= self._at_once:
                self._gather(await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED))

    async def _heed(self, stop: asyncio.Event) -> None:
        await stop.wait()
        await self._gateway.stop(GRACE_SECONDS)

    def _gather(self, waited: tuple[set[asyncio.Task[None]], set[asyncio.Task[None]]]) -> None:
        done, self._tasks = waited
        self._failures += [error for task in done if (error := task.exception())]

    def _unfinished(self) -> Iterator[_Batch]:
        """What this shard has still to do.

        A finished part counts only if it is of the same keys: a query without an order may deal its rows anew.
        """
        first_row = 0
        for index, batch in enumerate(self._source.batches(self._job.batch_rows)):
            if self._job.shard.owns(index):
                keys = key_values(batch, self._job.key, first_row)
                part = self._sink.finished(index)
                if part is not None and part.summary.get("keys") == keys_digest(keys):
                    finished = Tally.of_finished_part(dict(part.summary))
                    if finished.ok:
                        self._gateway.had_good_rows()
                    self._tally.add(finished)
                else:
                    yield index, keys, batch
            first_row += batch.num_rows

    async def _one(self, index: int, keys: list[str], batch: pa.RecordBatch) -> None:
        answers = await self._gateway.answer(batch.to_pylist(), keys)
        done = Tally.of(answers)
        final = all(answer.status in FINAL for answer in answers)
        table = to_table(batch, keys, self._job.key, answers)
        summary = {**done.to_summary(), "keys": keys_digest(keys)}
        await asyncio.to_thread(self._sink.write, index, table, summary=summary, final=final)
        self._tally.add(done)
