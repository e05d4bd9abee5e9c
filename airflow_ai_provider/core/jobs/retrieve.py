"""Add to every row of a source the passages of a collection that answer it best.

No model is called: Milvus' own BM25 finds the passages, so a job leaves nothing behind but its parts. A retry keeps a
finished part if source, template, collection and the content of the part's rows are the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airflow_ai_provider.core.errors import PromptError, SourceError
from airflow_ai_provider.core.installation import Installation, opened
from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs.runner import Batch, BatchJob, Feed, Part, fingerprint, run_to_sink
from airflow_ai_provider.core.jobs.tally import Tally
from airflow_ai_provider.core.pipeline.loop_thread import LoopThread
from airflow_ai_provider.core.prompts.templates import RowTemplate
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.core.rows.source import Source
from airflow_ai_provider.core.settings import Settings
from airflow_ai_provider.core.vectors.search import context_text, search
from airflow_ai_provider.core.vectors.store import MilvusStore

if TYPE_CHECKING:
    from logging import Logger

CONTEXT = "context"
"""The column that is added."""
BATCH_ROWS = 250


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What to look up for every row of a source."""

    source: str
    sink: str
    collection: str
    query: str
    """A sandboxed Jinja template over the row's columns."""
    top_k: int
    filter: Mapping[str, str]
    """Metadata that the documents must have."""
    defaults: Mapping[str, str]
    """Columns that rows are to have, and their value where the source lacks them."""
    shard: Shard


@dataclass
class RetrievalTally(Tally):
    """Counts of rows by what was found for them."""

    with_context: int = 0
    unusable: int = 0
    """Rows for which the query could not be made; they are kept, without passages."""

    def figures(self) -> list[str]:
        return [f"with passages {self.with_context:,}", f"without a query {self.unusable:,}"]


def retrieve(job: Retrieval, caller: Caller, where: Settings | Installation, *, log: Logger | Any) -> dict[str, Any]:
    """Write the rows of ``job.source``, with a column ``context``, to ``job.sink``; returns counts of rows.

    Parts of another run are made anew: the collection may have changed since. Raises ``SourceError``, ``SinkError``,
    ``PromptError``, ``PolicyError`` and ``StoreUnavailable``, each before or between batches: what was written stays.
    """
    with opened(where) as installation:
        source = installation.source(job.source, job.defaults)
        _check_new_column(source)
        template = RowTemplate(job.query, "query")
        template.check_columns(set(source.columns()))
        feed = Feed(source, None, job.shard, BATCH_ROWS)
        lookup = [template.version, job.collection, job.top_k, dict(job.filter), dict(job.defaults)]
        sink = installation.sink(job.sink, fingerprint(caller, feed, source.version(), lookup=lookup), job.shard)
        sink.begin()
        tally = RetrievalTally()
        with installation.vectors() as store:
            work = _Retrieve(job, template, store)
            seconds = LoopThread(partial(run_to_sink, feed, work, sink, tally, log=log)).run()
    counts = {name: getattr(tally, name) for name in ("rows", "with_context", "unusable")}
    return {"sink": job.sink, **counts, "seconds": seconds}


class _Retrieve(BatchJob):
    """Looks passages up. Not stopped within a batch, which is one short request."""

    def __init__(self, job: Retrieval, template: RowTemplate, store: MilvusStore) -> None:
        self._job = job
        self._template = template
        self._store = store

    async def process(self, batch: Batch) -> Part:
        return await asyncio.to_thread(self._look_up, pa.Table.from_batches([batch.rows]))

    def _look_up(self, table: pa.Table) -> Part:
        job = self._job
        queries, unusable = _queries(table.to_pylist(), self._template)
        hits = search(self._store, job.collection, queries, top_k=job.top_k, filter=job.filter or None)
        contexts = [context_text(found) for found in hits]
        counts = {"rows": table.num_rows, "with_context": sum(map(bool, contexts)), "unusable": unusable}
        return Part(table.append_column(CONTEXT, pa.array(contexts, pa.string())), counts)


def _queries(rows: list[dict[str, Any]], template: RowTemplate) -> tuple[list[str], int]:
    """The query of each row; a row for which there is none has an empty one, which finds nothing."""
    queries, unusable = [], 0
    for row in rows:
        try:
            queries.append(template.render(row))
        except PromptError:
            queries.append("")
            unusable += 1
    return queries, unusable


def _check_new_column(source: Source) -> None:
    if CONTEXT in source.columns():
        raise SourceError(
            f"{source.uri.split('?', 1)[0]}: has a column {CONTEXT!r} already; rename it, it is added here"
        )
