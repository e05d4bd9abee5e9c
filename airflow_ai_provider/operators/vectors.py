"""Documents into a collection, and passages for rows out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import Context

from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.operators.base import AIBaseOperator, at_least_one, parse_time_shard, require_text


class EmbedSyncOperator(AIBaseOperator):
    """Make a collection hold exactly the documents of a folder; only what changed is split and indexed again.

    :param source: folder, file or object-store URL of Markdown and text documents (templated).
    :param collection: name of the collection (templated).
    :param team: on whose behalf, as the audit trail records it (templated).
    :param delete_missing: remove documents that are no longer in the source.
    :param max_chars: length of a chunk, at most.
    :param overlap: characters that neighbouring chunks share.
    """

    template_fields: Sequence[str] = ("source", "collection", "team")
    ui_color = "#eaf6ea"

    def __init__(
        self,
        *,
        source: str,
        collection: str,
        team: str,
        delete_missing: bool = True,
        max_chars: int = 1200,
        overlap: int = 120,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_text(f"EmbedSyncOperator {self.task_id}", source=source, collection=collection, team=team)
        self.source = source
        self.collection = collection
        self.team = team
        self.delete_missing = delete_missing
        self.max_chars = at_least_one("max_chars", max_chars)
        self.overlap = overlap

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.core.jobs.embed import EmbedSync, sync_collection
        from airflow_ai_provider.hooks.context import caller_from_context
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        job = EmbedSync(
            source=self.source,
            collection=self.collection,
            team=self.team,
            delete_missing=self.delete_missing,
            max_chars=self.max_chars,
            overlap=self.overlap,
        )
        return sync_collection(job, caller_from_context(context), settings_from_airflow(), log=self.log)


class RetrieveOperator(AIBaseOperator):
    """Add to every row of a source a column ``context``: the passages of a collection that answer it best.

    No model is called and nothing is paid. The query is not an Airflow template: it is rendered in a sandbox, row by
    row, and its text stays inside the task.

    :param source: URI of the rows (templated).
    :param sink: folder or object-store URL of Parquet parts (templated).
    :param collection: the collection to search (templated).
    :param query: sandboxed Jinja template over the row's columns, or ``file:PATH`` of one.
    :param top_k: passages per row, at most.
    :param filter: metadata that a passage's document must have, for example ``{"language": "en"}``.
    :param defaults: columns that rows are to have, and their value where the source has no such column.
    :param shard: ``"INDEX/COUNT"``, the share of the source that this task instance takes.
    """

    template_fields: Sequence[str] = ("source", "sink", "collection")
    ui_color = "#eaf6ea"

    def __init__(
        self,
        *,
        source: str,
        sink: str,
        collection: str,
        query: str,
        top_k: int = 3,
        filter: Mapping[str, str] | None = None,
        defaults: Mapping[str, str] | None = None,
        shard: Shard | Mapping[str, Any] | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_text(f"RetrieveOperator {self.task_id}", source=source, sink=sink, collection=collection, query=query)
        self.source = source
        self.sink = sink
        self.collection = collection
        self.query = query
        self.top_k = at_least_one("top_k", top_k)
        self.filter = dict(filter or {})
        self.defaults = dict(defaults or {})
        self.shard = parse_time_shard(shard)

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.core.jobs.retrieve import Retrieval, retrieve
        from airflow_ai_provider.hooks.context import caller_from_context
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        job = Retrieval(
            source=self.source,
            sink=self.sink,
            collection=self.collection,
            query=self.query,
            top_k=self.top_k,
            filter=self.filter,
            defaults=self.defaults,
            shard=self.shard,
        )
        return retrieve(job, caller_from_context(context), settings_from_airflow(), log=self.log)
