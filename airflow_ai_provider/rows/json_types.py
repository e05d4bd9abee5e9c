"""Which Arrow type a JSON column has, decided by all of its values.

| values of the column (nulls aside) | type |
|---|---|
| strings · booleans | text · boolean |
| integers that fit in 64 bits | 64-bit integer |
| numbers, the integers among them within ±2⁵³ | 64-bit float |
| anything else: mixed, nested, larger integers, or only nulls | text: strings as they are, the rest as JSON |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import pyarrow as pa

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
