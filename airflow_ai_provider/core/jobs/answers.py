"""Answers as rows of the output: the source's columns, then ours."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import pyarrow as pa

from airflow_ai_provider.core.errors import SourceError
from airflow_ai_provider.core.jobs.tally import Tally
from airflow_ai_provider.core.ledger.call_costs import usd_from_nano
from airflow_ai_provider.core.pipeline.answer import Answer
from airflow_ai_provider.core.rows.source import ROW_NUMBER_KEY

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
    fields, columns = list(batch.schema), list(batch.columns)
    if key == ROW_NUMBER_KEY:
        first = int(keys[0])
        fields.insert(0, pa.field(ROW_KEY_COLUMN, pa.int64()))
        columns.insert(0, pa.arange(first, first + len(keys)))  # type: ignore[attr-defined]  # not in the stubs
    columns += [
        _strings([answer.text for answer in answers]),
        _strings([answer.status for answer in answers]),
        _strings([answer.error for answer in answers]),
        _strings([answer.tier for answer in answers]),
        _strings([answer.deployment for answer in answers]),
        _strings([answer.model for answer in answers]),
        _from_bytes(pa.int8(), bytes(answer.reused for answer in answers)).cast(pa.bool_()),
        _decimals([answer.cost_nano for answer in answers]),
        _strings([answer.request_id for answer in answers]),
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema([*fields, *_OUTPUT]))


# ``pa.array`` would import pandas, which takes longer than a small shard; a column's buffers are soon filled.


def _strings(values: Sequence[str | None]) -> pa.Array[Any]:
    encoded = [b"" if value is None else value.encode() for value in values]
    ends = array("i", accumulate(map(len, encoded), initial=0))
    missing = values.count(None)
    known = None
    if missing:
        known = _from_bytes(pa.int8(), bytes(value is not None for value in values)).cast(pa.bool_()).buffers()[1]
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)), known, missing)


def _decimals(nanos: Sequence[int]) -> pa.Array[Any]:
    """Nano-dollars as ``cost_usd``, whose last digit is a tenth of one."""
    return _from_bytes(_TYPES["cost_usd"], b"".join((10 * nano).to_bytes(16, "little", signed=True) for nano in nanos))


def _from_bytes(kind: pa.DataType, values: bytes) -> pa.Array[Any]:
    """Values of a fixed width, as Arrow lays them out."""
    return pa.Array.from_buffers(kind, len(values) * 8 // kind.bit_width, [None, pa.py_buffer(values)])


@dataclass
class AnswerTally(Tally):
    """Counts of rows by status, and sums of what answering them took. Money is nano-dollars."""

    spent: ClassVar[frozenset[str]] = frozenset(
        {"input_tokens", "output_tokens", "cached_input_tokens", "cost_nano", "saved_nano", "short_nano"}
    )

    ok: int = 0
    reused: int = 0
    """Of ``ok``, those answered from the response store."""
    rejected: int = 0
    over_budget: int = 0
    error: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    """Of ``input_tokens``, those that the vendor had in its cache."""
    cost_nano: int = 0
    saved_nano: int = 0
    short_nano: int = 0
    """What the rows over budget would have needed."""

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> AnswerTally:
        """The counts of one batch."""
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
            cached_input_tokens=sum(usage.cached_input for usage in used),
            cost_nano=sum(answer.cost_nano for answer in answers),
            saved_nano=sum(answer.saved_nano for answer in answers),
            short_nano=sum(answer.short_nano for answer in answers),
            errors=Counter(answer.error.partition(":")[0] for answer in answers if answer.error),
        )

    def figures(self) -> list[str]:
        problems = {"rejected": self.rejected, "over budget": self.over_budget, "errors": self.error}
        said = [f"{name} {count:,}" for name, count in problems.items() if count]
        return [f"reused {self.reused:,}", f"${usd_from_nano(self.cost_nano):.4f}", *said]
