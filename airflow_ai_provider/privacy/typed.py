"""Values as bytes and back, with their types: what is encrypted is a value, not its spelling.

JSON, in which a number, a text, a truth value and null stand for themselves and everything else is ``[tag, content]``.
Equal values of one type give equal bytes, so that ciphertexts for joins can be compared.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from airflow_ai_provider.errors import PrivacyError

_ENCODER = json.JSONEncoder(separators=(",", ":"))

_WRITE: Mapping[type, tuple[str, Callable[[Any], Any]]] = {
    bytes: ("bytes", lambda value: base64.b64encode(value).decode("ascii")),
    Decimal: ("decimal", str),
    datetime: ("datetime", datetime.isoformat),
    date: ("date", date.isoformat),
    time: ("time", time.isoformat),
    timedelta: ("duration", lambda value: [value.days, value.seconds, value.microseconds]),
    UUID: ("uuid", str),
    list: ("list", lambda value: [_packed(part) for part in value]),
    tuple: ("tuple", lambda value: [_packed(part) for part in value]),
    dict: ("dict", lambda value: [[_packed(key), _packed(part)] for key, part in value.items()]),
}
_READ: Mapping[str, Callable[[Any], Any]] = {
    "bytes": base64.b64decode,
    "decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "duration": lambda value: timedelta(*value),
    "uuid": UUID,
    "float": float,
    "text": lambda value: base64.b64decode(value).decode("utf-8", "surrogatepass"),
    "list": lambda value: [_unpacked(part) for part in value],
    "tuple": lambda value: tuple(_unpacked(part) for part in value),
    "dict": lambda value: {_unpacked(key): _unpacked(part) for key, part in value},
}


def pack(value: Any, kind: str | None = None) -> bytes:
    """The bytes of a value. Raises ``PrivacyError`` for a type that could not be given back.

    ``kind`` is kept with the value: the type that a table has for it, where that is not plain from the value.
    """
    try:
        packed = _packed(value) if kind is None else ["as", [kind, _packed(value)]]
        return _ENCODER.encode(packed).encode("ascii")
    except (RecursionError, ValueError) as error:
        kind = type(error).__name__
    raise PrivacyError(f"the value cannot be written ({kind}); expected one without end or loops")


def unpack(data: bytes) -> tuple[Any, str | None]:
    """The value and kind of ``pack``'s bytes. Raises ``PrivacyError`` for any other."""
    try:
        packed, kind = json.loads(data), None
        if isinstance(packed, list) and packed[0] == "as":
            kind, packed = packed[1]
        return _unpacked(packed), kind
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RecursionError) as error:
        problem = type(error).__name__
    raise PrivacyError(f"the decrypted value cannot be read ({problem}); a newer release of this package may be needed")


def _packed(value: Any) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int):
        return value
    if kind is str:
        return (
            value if _is_plain(value) else ["text", base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()]
        )
    if kind is float:
        return value if math.isfinite(value) else ["float", repr(value)]
    if kind not in _WRITE:
        raise PrivacyError(f"a value of type {kind.__name__} cannot be given back as it was; make it text or a number")
    tag, write = _WRITE[kind]
    return [tag, write(value)]


def _is_plain(text: str) -> bool:
    """Whether JSON gives the text back as it is: two halves of a surrogate pair would come back as one character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        tag, content = value
        return _READ[tag](content)
    return value
