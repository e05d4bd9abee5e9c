"""Which Arrow type a JSON column has, decided by all of its values.

| values of the column (nulls aside) | type |
|---|---|
| strings · booleans | text · boolean |
| integers that fit in 64 bits | 64-bit integer |
| numbers, the integers among them within ±2⁵³ | 64-bit float |
| anything else: mixed, nested, larger integers, or only nulls | text: strings as they are, the rest as JSON |

JSONL files: one object a line.

The schema must not depend on which lines a batch happens to hold, so the files are read once for their columns and
types before the first batch (by the rules above). Blank lines are passed over. Messages number the line
and never quote it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa

from airflow_ai_provider.core.errors import SourceError
from airflow_ai_provider.core.rows.files import DataFile, combined_version, stream
from airflow_ai_provider.core.rows.filesystem import shown

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_LONG_NUMBER = re.compile(rb"\d{19}")
_EXACT_IN_FLOAT = 2**53
_INT64 = 2**63


class Wide:
    """The kind of integers that a 64-bit float may round."""


class Huge:
    """The kind of integers that 64 bits do not hold."""


def parse_line(line: bytes) -> Any:
    """The JSON value of a line. Raises ``ValueError``."""
    value = orjson.loads(line)
    if type(value) is dict and any(map(_may_be_rounded, value.values())) and _LONG_NUMBER.search(line):
        # orjson makes floats of integers beyond 64 bits; the standard library keeps their digits.
        return json.loads(line)
    return value


def _may_be_rounded(value: Any) -> bool:
    kind = type(value)
    return kind is dict or kind is list or (kind is float and not -_INT64 < value < _INT64)


def kind_of(value: Any) -> type:
    """The kind that ``type_of`` decides by."""
    kind = type(value)
    if kind is int and not -_EXACT_IN_FLOAT <= value <= _EXACT_IN_FLOAT:
        return Wide if -_INT64 <= value < _INT64 else Huge
    return kind


def type_of(kinds: Iterable[type]) -> pa.DataType:
    """The type of a column whose values have these kinds."""
    present = set(kinds) - {type(None)}
    if present == {bool}:
        return pa.bool_()
    if present and present <= {int, Wide}:
        return pa.int64()
    if present and present <= {int, float}:
        return pa.float64()
    return pa.string()


def as_text(value: Any) -> str | None:
    """A value of a text column."""
    return value if value is None or isinstance(value, str) else _ENCODER.encode(value)


def column(rows: Iterable[Mapping[str, Any]], name: str, kind: pa.DataType) -> Any:
    """One column of parsed rows; a row without the name has null."""
    values = [row.get(name) for row in rows]
    try:
        return pa.array(values, kind)
    except pa.ArrowTypeError:
        # A text column that is not text throughout.
        return pa.array(list(map(as_text, values)), kind)


_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class JsonlSource:
    """One or more JSONL files, read one after the other; a name missing from a line is null."""

    uri: str
    files: Sequence[DataFile]
    selected: tuple[str, ...] | None = None
    _types: dict[str, pa.DataType] = field(default_factory=dict, repr=False, compare=False)
    """Type by column, filled by the first pass."""

    def columns(self) -> tuple[str, ...]:
        return self.selected or tuple(self._schema())

    def version(self) -> str:
        return combined_version(self.files)

    def select(self, columns: Sequence[str]) -> JsonlSource:
        return replace(self, selected=tuple(columns))

    def batches(self, size: int) -> Iterator[pa.RecordBatch]:
        return stream(self.uri, self._blocks(size), size)

    def _blocks(self, size: int) -> Iterator[pa.RecordBatch]:
        types = {name: self._schema()[name] for name in self.columns()}
        rows = self._rows()
        while block := list(islice(rows, size)):
            try:
                columns = [column(block, name, kind) for name, kind in types.items()]
            except (pa.ArrowException, OverflowError):
                changed = "changed while it was read; run again when its writer is through"
                raise SourceError(f"{shown(self.uri)}: {changed}") from None
            yield pa.record_batch(columns, names=list(types))

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        for file in self.files:
            for row in _objects(file):
                yield row if self.selected is None else {name: row.get(name) for name in self.selected}

    def _schema(self) -> Mapping[str, pa.DataType]:
        if not self._types:
            self._types.update(_types(self.uri, self.files))
        return self._types


def _types(uri: str, files: Sequence[DataFile]) -> dict[str, pa.DataType]:
    kinds: defaultdict[str, set[type]] = defaultdict(set)
    empty = True
    for file in files:
        for row in _objects(file):
            empty = False
            for name, value in row.items():
                kinds[name].add(str if type(value) is str else kind_of(value))
    if empty:
        raise SourceError(f"{shown(uri)}: holds no rows; expected one JSON object a line")
    if not kinds:
        raise SourceError(f"{shown(uri)}: its objects have no fields; expected at least a key and a text")
    return {name: type_of(present) for name, present in kinds.items()}


def _objects(file: DataFile) -> Iterator[Mapping[str, Any]]:
    with file.open_lines() as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line.isspace() and line:
                yield _object(file, number, line)


def _object(file: DataFile, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        value = parse_line(line)
    except ValueError:
        # Its text and its fields quote the line.
        raise SourceError(
            f"{file.shown} line {number}: is not JSON; expected one whole object a line, in UTF-8"
        ) from None
    if not isinstance(value, dict):
        raise SourceError(f'{file.shown} line {number}: expected an object such as {{"id": 1}}, got another JSON value')
    return value
