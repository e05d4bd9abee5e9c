"""Around the work itself: how to share a source, and one file of a finished sink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from airflow.sdk import Context

from airflow_ai_provider.operators.base import AIBaseOperator, at_least_one, require_text
from airflow_ai_provider.operators.shards import MAX_SHARDS, shards_for


class PlanShardsOperator(AIBaseOperator):
    """Look a source over before anything is paid for it, and share it out: returns shards to ``expand`` over.

    Every row needs a key of its own; the first of ``key`` that is a column is the one that is checked, and it is
    pushed as the XCom ``key``. Counts and names of columns are all that leaves the task.

    :param source: URI of the rows (templated).
    :param key: column that names a row, or several to choose from; ``#row`` is always there (templated).
    :param rows_per_shard: rows that one mapped task instance is to take, about.
    :param max_shards: task instances, at most.
    :param columns: columns that the rows must have.
    """

    template_fields: Sequence[str] = ("source", "key")
    ui_color = "#f4f1e8"

    def __init__(
        self,
        *,
        source: str,
        key: str | Sequence[str],
        rows_per_shard: int = 25_000,
        max_shards: int = 64,
        columns: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_text(f"PlanShardsOperator {self.task_id}", source=source, key=key)
        self.source = source
        self.key = key
        self.rows_per_shard = at_least_one("rows_per_shard", rows_per_shard)
        self.max_shards = at_least_one("max_shards", max_shards)
        if self.max_shards > MAX_SHARDS:
            raise ValueError(f"max_shards {max_shards}: expected at most {MAX_SHARDS}, which Airflow maps by default")
        self.columns = list(columns)

    def run(self, context: Context) -> list[str]:
        from airflow_ai_provider.core.installation import Installation
        from airflow_ai_provider.core.rows.source import ROW_NUMBER_KEY, inspect
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        source = Installation(settings_from_airflow()).source(self.source)
        wanted = [self.key] if isinstance(self.key, str) else list(self.key)
        known = {*source.columns(), ROW_NUMBER_KEY}
        key = next((name for name in wanted if name in known), wanted[0])
        found = inspect(source, key=key, columns=self.columns)
        planned = shards_for(found.rows, rows_per_shard=self.rows_per_shard, max_shards=self.max_shards)
        self.log.info(
            "%d rows, key %s, %d shards; columns: %s", found.rows, key, len(planned), ", ".join(found.columns)
        )
        context["ti"].xcom_push(key="key", value=key)
        context["ti"].xcom_push(key="rows", value=found.rows)
        return planned


class GatherOperator(AIBaseOperator):
    """Gather the parts of a finished sink into one file, in the order of the source.

    :param source: the sink's folder (templated).
    :param target: the file to write: ``.csv``, ``.jsonl`` or ``.parquet`` (templated).
    :param key: column that must name each row once; ``None`` or ``#row`` checks nothing (templated).
    :param formulas: ``neutralise`` puts an apostrophe before text that a spreadsheet would run as a formula, in CSV
        only; ``keep`` writes it as it is.
    """

    template_fields: Sequence[str] = ("source", "target", "key")
    ui_color = "#f4f1e8"

    def __init__(
        self,
        *,
        source: str,
        target: str,
        key: str | None = None,
        formulas: Literal["neutralise", "keep"] = "neutralise",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_text(f"GatherOperator {self.task_id}", source=source, target=target)
        if formulas not in ("neutralise", "keep"):
            raise ValueError(f"GatherOperator {self.task_id}: formulas {formulas!r}: expected neutralise or keep")
        self.source = source
        self.target = target
        self.key = key
        self.formulas: Literal["neutralise", "keep"] = formulas

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.core.rows.gather import gather
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        options = settings_from_airflow().storage_options
        rows = gather(self.source, self.target, key=self.key or None, storage_options=options, formulas=self.formulas)
        self.log.info("%d rows in %s", rows, self.target)
        return {"target": self.target, "rows": rows}
