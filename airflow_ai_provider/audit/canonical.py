"""Canonical JSON (RFC 8785) for the values the trail holds, so that equal values have equal hashes everywhere.

The space is narrower than JSON: ``None``, ``bool``, ``int`` within ±(2^53 - 1), ``str``, ``list``, and ``dict`` with
ASCII keys. There are no floats, so number formatting never matters; ASCII keys sort the same in UTF-8, which orjson
uses, and in UTF-16, which the standard asks for; and orjson escapes exactly what the standard escapes. The tests
hold all three against the ``rfc8785`` package.
"""

from __future__ import annotations

from typing import Any

import orjson

from airflow_ai_provider.audit.schema import MAX_INTEGER
from airflow_ai_provider.errors import AuditError

MAX_DEPTH = 32
"""Levels of nesting; nothing in the trail is deeper than 3."""

_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER


def canonical(value: Any) -> bytes:
    """The canonical bytes of ``value``; ``AuditError`` names the first place that is outside the space."""
    _check(value, "value", MAX_DEPTH)
    return canonical_unchecked(value)


def canonical_unchecked(value: Any) -> bytes:
    """The same for a value known to be inside the space, such as a built event or parsed JSON without floats."""
    try:
        data: bytes = orjson.dumps(value, option=_OPTIONS)
    except orjson.JSONEncodeError as error:
        raise AuditError(f"audit value cannot be written as canonical JSON: {error}") from None
    return data


def _check(value: Any, place: str, depth: int) -> None:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return
    if kind is int:
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise AuditError(f"{place}: expected an integer within ±(2^53 - 1); write larger numbers as strings")
        return
    if depth == 0:
        raise AuditError(f"{place}: nested deeper than {MAX_DEPTH} levels")
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or not key.isascii():
                raise AuditError(f"{place}: expected keys that are ASCII strings")
            _check(item, f"{place}.{key}", depth - 1)
    elif kind is list:
        for index, item in enumerate(value):
            _check(item, f"{place}[{index}]", depth - 1)
    else:
        raise AuditError(
            f"{place}: {kind.__name__} is not allowed; expected string, integer, boolean, null, list or object"
        )
