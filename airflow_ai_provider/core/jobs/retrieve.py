"""Retrieval over a whole source: a stream of rows in, the same rows with their passages out.

Nothing here knows Airflow. No model is called: Milvus' own BM25 finds the passages, so rows leave nothing behind but
their parts. A retry keeps a finished part if source, template, collection and the part's rows are the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airflow_ai_provider.errors import PromptError, SourceError
from airflow_ai_provider.gateway.render import RowTemplate
from airflow_ai_provider.gateway.settings import Settings
from airflow_ai_provider.rows.keys import rows_digest
from airflow_ai_provider.rows.shard import Shard
from airflow_ai_provider.rows.sink import PartSink
from airflow_ai_provider.rows.source import Source, open_source
from airflow_ai_provider.vectors.search import context_text, search
from airflow_ai_provider.vectors.store import MilvusStore

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
    run: str
    """Names the DAG run: parts of another run are made anew, for the collection may have changed since."""


@dataclass(slots=True)
class RetrievalSummary:
    """What came of it; counts are rows."""

    sink: str
    rows: int = 0
    with_context: int = 0
    unusable: int = 0
    """Rows for which the query could not be made; they are kept, without passages."""
    seconds: float = 0.0

    def add(self, part: Mapping[str, Any]) -> None:
        self.rows += part["rows"]
        self.with_context += part["with_context"]
        self.unusable += part["unusable"]


def retrieve(job: Retrieval, settings: Settings, *, log: Logger | Any) -> RetrievalSummary:
    """Write the rows of ``job.source``, with a column ``context``, to ``job.sink``.

    Raises ``SourceError``, ``SinkError``, ``PromptError``, ``PolicyError`` and ``StoreUnavailable``, each before or
    between batches: what was written stays.
    """
    started = time.monotonic()
    source = open_source(job.source, storage_options=settings.storage_options, database=settings.database)
    template = RowTemplate(job.query, "query")
    template.check_columns({*source.columns(), *job.defaults})
    _check_new_column(source)
    sink = PartSink(
        job.sink,
        fingerprint=_fingerprint(job, source, template),
        shard=job.shard,
        storage_options=settings.storage_options,
    )
    sink.begin()
    summary = RetrievalSummary(job.sink)
    with MilvusStore(settings.vectors_uri or settings.home / "vectors", settings.vectors_token) as store:
        for index, batch in enumerate(source.batches(BATCH_ROWS)):
            if not job.shard.owns(index):
                continue
            part, digest = sink.finished(index), rows_digest(batch)
            if part is not None and part.summary.get("rows_digest") == digest:
                summary.add(part.summary)
                continue
            table, counts = _with_context(batch, template, store, job)
            sink.write(index, table, summary={**counts, "rows_digest": digest}, final=True)
            summary.add(counts)
            log.info("%d rows looked up, %d with passages", summary.rows, summary.with_context)
    summary.seconds = round(time.monotonic() - started, 3)
    sink.commit(asdict(summary))
    return summary


def _with_context(
    batch: pa.RecordBatch, template: RowTemplate, store: MilvusStore, job: Retrieval
) -> tuple[pa.Table, dict[str, int]]:
    table = _with_defaults(pa.Table.from_batches([batch]), job.defaults)
    queries, unusable = _queries(table.to_pylist(), template)
    hits = search(store, job.collection, queries, top_k=job.top_k, filter=job.filter or None)
    contexts = [context_text(found) for found in hits]
    counts = {"rows": table.num_rows, "with_context": sum(map(bool, contexts)), "unusable": unusable}
    return table.append_column(CONTEXT, pa.array(contexts, pa.string())), counts


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


def _with_defaults(table: pa.Table, defaults: Mapping[str, str]) -> pa.Table:
    for name, value in defaults.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return table


def _check_new_column(source: Source) -> None:
    if CONTEXT in source.columns():
        raise SourceError(
            f"{source.uri.split('?', 1)[0]}: has a column {CONTEXT!r} already; rename it, it is added here"
        )


def _fingerprint(job: Retrieval, source: Source, template: RowTemplate) -> str:
    """Names job and rows: a part is taken for finished only if all of this is the same."""
    rows = [job.run, job.source, source.version(), BATCH_ROWS]
    lookup = [template.version, job.collection, job.top_k, dict(job.filter), dict(job.defaults)]
    text = json.dumps([rows, lookup], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
