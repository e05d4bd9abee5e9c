"""Answers as rows of the output: the source's columns, then ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import orjson
import pyarrow as pa
from pyarrow.json import ParseOptions, ReadOptions, read_json

from airflow_ai_provider.errors import SourceError
from airflow_ai_provider.gateway.answer import Answer
from airflow_ai_provider.ledger.money import usd_from_nano
from airflow_ai_provider.rows.inspect import ROW_NUMBER_KEY

ROW_KEY_COLUMN = "row_number"
"""Column of the key where the source has none of its own."""
_TEXT = ("answer", "status", "error", "tier", "deployment", "model")
_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(_TEXT, pa.string()),
    "reused": pa.bool_(),
    "cost_usd": pa.decimal128(20, 10),
    "request_id": pa.string(),
}
_OUTPUT = pa.schema(_TYPES)


def check_output_columns(uri: str, columns: Sequence[str], key: str) -> None:
    """Raise ``SourceError`` if a column of the source has the name of one that the output adds."""
    added = [*_OUTPUT.names, *([ROW_KEY_COLUMN] if key == ROW_NUMBER_KEY else [])]
    if clash := [name for name in columns if name in added]:
        raise SourceError(
            f"{uri}: column {', '.join(clash)} has the name of an output column; rename it in the source "
            f"(the output adds {', '.join(added)})"
        )


def to_table(batch: pa.RecordBatch, keys: Sequence[str], key: str, answers: Sequence[Answer]) -> pa.Table:
    """The output of one batch, row for row."""
    lines = b"\n".join(orjson.dumps(_output(answer)) for answer in answers)
    # Arrow's own JSON reader: ``pa.array`` would import pandas, which takes longer than a small shard.
    ours = read_json(
        BytesIO(lines),
        read_options=ReadOptions(use_threads=False, block_size=len(lines) + 1),
        parse_options=ParseOptions(explicit_schema=_OUTPUT, newlines_in_values=False),
    )
    table = pa.Table.from_batches([batch])
    if key == ROW_NUMBER_KEY:
        first = int(keys[0])
        table = table.add_column(0, ROW_KEY_COLUMN, pa.arange(first, first + len(keys)))  # type: ignore[attr-defined]  # not in the stubs
    for name in _OUTPUT.names:
        table = table.append_column(name, ours.column(name))
    return table


def _output(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "status": answer.status,
        "error": answer.error,
        "tier": answer.tier,
        "deployment": answer.deployment,
        "model": answer.model,
        "reused": answer.reused,
        "cost_usd": f"{usd_from_nano(answer.cost_nano):.10f}",
        "request_id": answer.request_id,
    }


@dataclass(slots=True)
class Tally:
    """Counts of rows and sums of money and tokens; parts add up to shards, shards to sinks."""

    rows: int = 0
    ok: int = 0
    reused: int = 0
    rejected: int = 0
    over_budget: int = 0
    error: int = 0
    skipped: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    saved_nano: int = 0
    short_nano: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Tally:
        by_status = Counter(answer.status for answer in answers)
        used = [answer.usage for answer in answers if answer.usage]
        return cls(
            rows=len(answers),
            ok=by_status["ok"],
            reused=sum(answer.reused and answer.status == "ok" for answer in answers),
            rejected=by_status["rejected"],
            over_budget=by_status["over_budget"],
            error=by_status["error"],
            input_tokens=sum(usage.input for usage in used),
            output_tokens=sum(usage.output for usage in used),
            cost_nano=sum(answer.cost_nano for answer in answers),
            saved_nano=sum(answer.saved_nano for answer in answers),
            short_nano=sum(answer.short_nano for answer in answers),
            errors=Counter(answer.error.partition(":")[0] for answer in answers if answer.error),
        )

    @classmethod
    def of_finished_part(cls, summary: dict[str, Any]) -> Tally:
        """A part of an earlier try: its rows count, its money was spent then."""
        known = ("rows", "ok", "reused", "rejected", "over_budget", "error")
        counts = {name: int(summary.get(name, 0)) for name in known}
        return cls(**counts, skipped=counts["rows"], errors=Counter(summary.get("errors", {})))

    def add(self, other: Tally) -> None:
        for name in self.__slots__:
            if name == "errors":
                self.errors.update(other.errors)
            else:
                setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_summary(self) -> dict[str, Any]:
        """As it stands in a part's footer and in manifests."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "errors"}
        return {**plain, "errors": dict(self.errors)}
