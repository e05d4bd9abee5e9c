"""What may be done to a column, as a DAG says it, and columns of tables as plain values and back.

| in a DAG | does | gives |
|---|---|---|
| ``"encrypt"`` | closes the value, bound to table, column and row | text |
| ``"deterministic"``, ``{"deterministic": DOMAIN}`` | closes it for joins in a domain (default: the column) | text |
| ``"hash"`` | keyed hash | text |
| ``{"tokenise": TYPE}`` | a pseudonym ``[TYPE_…]`` | text |
| ``"mask"``, ``"redact"`` | shows its end, or nothing | text |
| ``{"generalise": TO}`` | a range, month, year, prefix or network | text |
| ``{"date_shift": {"subject": COLUMN, "days": N}}`` | moves dates, all of one subject alike | the column's type |

Nothing here knows Airflow.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa

from airflow_ai_provider.core.errors import PolicyError, PrivacyError
from airflow_ai_provider.core.privacy.crypto import redaction
from airflow_ai_provider.core.privacy.crypto.fields import Fields

_PLAIN = frozenset({"string", "int64", "double", "bool", "binary", "date32[day]"})
"""Types that a Python value becomes by itself; others are kept with the value."""
_DECIMAL = re.compile(r"decimal(128|256)\((\d+), (-?\d+)\)")
_ZONED = re.compile(r"timestamp\[(s|ms|us|ns), tz=(.+)\]")
_UNPLACED = frozenset({"deterministic", "hash", "tokenise", "date_shift"})
"""Treatments whose results are compared with one another: one key for the whole table."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Treatment:
    """What is done to one column."""

    column: str
    name: str
    options: Any
    subject: str | None = None
    """Column that a shifted date belongs to."""

    @property
    def one_key(self) -> bool:
        return self.name in _UNPLACED

    @property
    def keeps_type(self) -> bool:
        return self.name == "date_shift"

    def function(self, fields: Fields, kind: str | None) -> Callable[[Row, str], Any]:
        """From a row and its key to the treated value. ``kind`` is the column's type, where it is not plain."""
        column, options = self.column, self.options
        match self.name:
            case "encrypt":
                return lambda row, key: fields.encrypt(row[column], column=column, record=key, kind=kind)
            case "deterministic":
                return lambda row, key: fields.deterministic(row[column], domain=options)
            case "hash":
                return lambda row, key: _as_text(fields.hash(row[column]))
            case "tokenise":
                return lambda row, key: _as_text(fields.tokenise(row[column], options))
            case "mask":
                return lambda row, key: _as_text(redaction.mask(row[column]))
            case "redact":
                return lambda row, key: redaction.redact(row[column])
            case "generalise":
                read = _moment if _is_nanoseconds(kind) else _same
                return lambda row, key: _as_text(redaction.generalise(read(row[column]), options))
            case _:
                shift = _shift_nanoseconds if _is_nanoseconds(kind) else Fields.date_shift
                subject = str(self.subject)
                return lambda row, key: shift(fields, row[column], subject=row[subject], days=options)


def treatment(column: str, wanted: Any) -> Treatment:
    """Read one entry of ``columns``. Raises ``PolicyError`` that says what may stand there."""
    name, options = wanted, None
    if isinstance(wanted, Mapping) and len(wanted) == 1:
        ((name, options),) = wanted.items()
    match name, options:
        case (("encrypt" | "hash" | "mask" | "redact"), None):
            return Treatment(column, name, None)
        case "deterministic", None:
            return Treatment(column, name, column)
        case "deterministic" | "tokenise", str():
            return Treatment(column, name, options)
        case "generalise", int() | str():
            return Treatment(column, name, options)
        case "date_shift", {"subject": str(subject), **more} if set(more) <= {"days"}:
            return Treatment(column, name, more.get("days", 183), subject)
    raise PolicyError(
        f"columns: {column}: {wanted!r} is no treatment; expected encrypt, deterministic, hash, mask, redact, or one "
        'of {"deterministic": DOMAIN}, {"tokenise": TYPE}, {"generalise": TO}, '
        '{"date_shift": {"subject": COLUMN, "days": N}}'
    )


def kind_of(type_: pa.DataType) -> str | None:
    """A column's type as text, for ``type_of``; ``None`` where its values tell it."""
    text = str(type_)
    if text in _PLAIN:
        return None
    if _DECIMAL.fullmatch(text) or _ZONED.fullmatch(text) or _alias(text) == type_:
        return text
    schema = pa.schema([pa.field("", type_)]).serialize().to_pybytes()
    return "ipc:" + base64.b64encode(schema).decode("ascii")


def type_of(kind: str) -> pa.DataType:
    """The type that ``kind_of`` wrote. Raises ``PrivacyError``."""
    if found := _DECIMAL.fullmatch(kind):
        make = pa.decimal128 if found[1] == "128" else pa.decimal256
        return make(int(found[2]), int(found[3]))
    if found := _ZONED.fullmatch(kind):
        return pa.timestamp(found[1], found[2])  # type: ignore[type-var]  # one of four units
    if kind.startswith("ipc:"):
        nested: pa.DataType = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(kind[4:]))).field(0).type
        return nested
    known = _alias(kind)
    if known is None:
        raise PrivacyError(f"a value was closed with the type {kind!r}, which this version does not know")
    return known


def values_of(column: Any) -> list[Any]:
    """Plain Python values. Nanoseconds, which Python's times do not hold, are whole numbers."""
    if _is_nanoseconds(str(column.type)):
        column = column.cast(pa.int64())
    values: list[Any] = column.to_pylist()
    return values


def column_of(values: Sequence[Any], type_: pa.DataType | None) -> Any:
    """A column of plain values; ``None`` is the type that they have by themselves."""
    if type_ is not None and _is_nanoseconds(str(type_)):
        return pa.array(values, pa.int64()).cast(type_)
    if type_ is None and all(value is None for value in values):
        return pa.nulls(len(values))
    return pa.array(values, type_)


def _alias(text: str) -> pa.DataType | None:
    try:
        known: pa.DataType = pa.type_for_alias(text)  # type: ignore[call-overload]
    except ValueError:
        return None
    return known


def _is_nanoseconds(kind: str | None) -> bool:
    return kind is not None and re.match(r"(timestamp|duration|time64)\[ns\b", kind) is not None


def _same(value: Any) -> Any:
    return value


def _moment(nanoseconds: int | None) -> datetime | None:
    return None if nanoseconds is None else datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC)


def _shift_nanoseconds(fields: Fields, value: int | None, *, subject: Any, days: int) -> int | None:
    return None if value is None else value + fields.days_of(subject, days) * 86_400_000_000_000


def _as_text(value: Any) -> str | None:
    """A treated value in a column of text: what is nested is JSON."""
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
