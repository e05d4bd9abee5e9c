"""Encrypt, hash and tokenise columns with a key, keeping the types of their values.

Values as bytes and back, with their types: what is encrypted is a value, not its spelling.

JSON, in which a number, a text, a truth value and null stand for themselves and everything else is ``[tag, content]``.
Equal values of one type give equal bytes, so that ciphertexts for joins can be compared.

Field functions with a key: encrypt and decrypt, ciphertexts for joins, keyed hashes, tokens, shifted dates.

Every function has a key of its own, derived per team: what one team wrote no other can read, and no two functions
reveal something of each other. Ciphertexts are text, so that they fit any table:

    enc:…    AES-256-GCM, bound to version, key id, team, table, column and record: it opens in its own place only
    det:…    AES-SIV, bound to a domain: equal values of it have equal ciphertexts

Null stays null. Values of any nesting go in and come out with their types. ``hash``, ``tokenise`` and ``date_shift``
work with the key ``key_id``: results of two keys do not match, so use one key for a whole table.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from airflow_ai_provider.core.errors import PrivacyError
from airflow_ai_provider.core.privacy.crypto.cipher import decrypt, encrypt, encrypt_deterministic, key_id_of
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.core.privacy.crypto.redaction import over_leaves, text_of
from airflow_ai_provider.core.privacy.masking import tokens

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


RANDOM, DETERMINISTIC = "enc:", "det:"
_HASH_BYTES = 16
_TOKEN_CODE = 16
"""28^16 is 2^76: no two of a billion values meet by chance. Tokens of texts are shorter, and checked row by row."""
_DAY_TEXT = re.compile(r"(\d{4})([-/.]?)(\d{2})\2(\d{2})")


class Fields:
    """Field functions of one team over one table. Safe to share between threads."""

    def __init__(self, keyring: Keyring, *, team: str, table: str = "", key_id: str | None = None) -> None:
        """``table`` is part of what a ciphertext is bound to; ``key_id`` is the key of hashes, tokens and shifts, by
        default the active one."""
        self._keyring = keyring
        self._team = team
        self._table = table
        self._key_id = key_id or keyring.active

    def encrypt(self, value: Any, *, column: str, record: str, kind: str | None = None) -> str | None:
        """Close a value, bound to its place. Raises ``PrivacyError`` for a type that could not be given back.

        ``kind`` is closed with it, for ``decrypt_with_kind``.
        """
        if value is None:
            return None
        place = self._place(column, record)
        return RANDOM + _text(encrypt(self._keyring, "field", pack(value, kind), place, self._team))

    def deterministic(self, value: Any, *, domain: str) -> str | None:
        """Close a value so that equal values of one domain, such as ``customer_id``, can be joined and counted.

        A reader of the column sees which rows are equal, and how often each value occurs.
        """
        if value is None:
            return None
        bound = _names(domain)
        return DETERMINISTIC + _text(encrypt_deterministic(self._keyring, "join", pack(value), bound, self._team))

    def decrypt(self, text: str | None, *, column: str, record: str, domain: str | None = None) -> Any:
        """Open what ``encrypt`` closed in the same place, or ``deterministic`` in ``domain`` (default: the column).

        Raises ``KeyringError``, which names the key, if it is lost; ``PrivacyError`` if ``text`` is no ciphertext, was
        changed, or belongs to another place.
        """
        return self.decrypt_with_kind(text, column=column, record=record, domain=domain)[0]

    def decrypt_with_kind(
        self, text: str | None, *, column: str, record: str, domain: str | None = None
    ) -> tuple[Any, str | None]:
        """As ``decrypt``, with the kind that was given to ``encrypt``."""
        if text is None:
            return None, None
        data = _ciphertext(text)
        if text.startswith(DETERMINISTIC):
            return unpack(decrypt(self._keyring, "join", data, _names(domain or column), self._team))
        return unpack(decrypt(self._keyring, "field", data, self._place(column, record), self._team))

    def reencrypt(self, text: str | None, *, column: str, record: str, domain: str | None = None) -> str | None:
        """The same value under the active key; a ciphertext under it already stays as it is. Raises as ``decrypt``."""
        if text is None or key_id_of(_ciphertext(text)) == self._keyring.active:
            return text
        value, kind = self.decrypt_with_kind(text, column=column, record=record, domain=domain)
        if text.startswith(DETERMINISTIC):
            return self.deterministic(value, domain=domain or column)
        return self.encrypt(value, column=column, record=record, kind=kind)

    def hash(self, value: Any, *, domain: str = "") -> Any:
        """``KEYID:32 hex digits`` of every leaf: HMAC-SHA256, first 128 bits. Equal within team, key and domain."""
        return over_leaves(lambda leaf: self._hashed(leaf, domain), value)

    def tokenise(self, value: Any, entity: str) -> Any:
        """``[ENTITY_CODE]`` for every leaf: a pseudonym that a model can repeat. Nothing leads back from it."""
        if not tokens.TYPE.fullmatch(entity):
            raise PrivacyError(f"tokenise: type {entity!r}: expected capital letters and underscores, as PERSON")
        key = self._key("pseudonym")
        return over_leaves(
            lambda leaf: tokens.write(entity, tokens.code_symbols(key, "", entity, _written(leaf))[:_TOKEN_CODE]), value
        )

    def date_shift(self, value: Any, *, subject: Any, days: int = 183) -> Any:
        """A date moved by up to ``days`` whole days, never by none; by the same for all dates of one subject.

        Intervals between a subject's dates stay. Takes dates, datetimes and texts such as
        ``2024-01-31``, ``2024/01/31``, ``20240131`` or an ISO datetime; gives back the same kind. Raises
        ``PrivacyError``.
        """
        if value is None:
            return None
        shift = timedelta(days=self.days_of(subject, days))
        return over_leaves(lambda leaf: _shifted(leaf, shift), value)

    def days_of(self, subject: Any, days: int) -> int:
        """By how many days, from ``-days`` to ``days`` and not 0, the dates of a subject are moved."""
        if days < 1:
            raise PrivacyError(f"date_shift by {days} days: expected at least 1")
        if subject is None or subject == "":
            raise PrivacyError("date_shift: the row names no subject, so its dates cannot be moved together")
        number = int.from_bytes(self._mac("date-shift", _written(subject))[:8], "big") % (2 * days)
        return number - days if number < days else number - days + 1

    def _place(self, column: str, record: str) -> bytes:
        return _names(self._table, column, record)

    def _hashed(self, value: Any, domain: str) -> str:
        digest = self._mac("hash", _names(domain).decode() + _written(value))
        return f"{self._key_id}:{digest[:_HASH_BYTES].hex()}"

    def _mac(self, purpose: str, text: str) -> bytes:
        return hmac.digest(self._key(purpose), text.encode("utf-8", "surrogatepass"), "sha256")

    def _key(self, purpose: str) -> bytes:
        return self._keyring.derive(purpose, self._team, key_id=self._key_id)


def is_ciphertext(value: Any) -> bool:
    """Whether a value is written as a ciphertext."""
    return isinstance(value, str) and value.startswith((RANDOM, DETERMINISTIC))


def _names(*names: str) -> bytes:
    """Names as JSON: whatever stands in them, two different lists never read the same."""
    return _ENCODER.encode(names).encode("ascii")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _ciphertext(text: object) -> bytes:
    if isinstance(text, str) and text.startswith((RANDOM, DETERMINISTIC)):
        encoded = text[len(RANDOM) :]
        try:
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            data = b""
        # The spelling counts too: no second text opens as the same value.
        if data and _text(data) == encoded:
            return data
    raise PrivacyError(f"not a ciphertext: expected a text that begins with {RANDOM} or {DETERMINISTIC}")


def _written(value: Any) -> str:
    """A leaf as it is hashed: the number 7 and the text 7 are the same, as they are in a CSV file."""
    return text_of(value)


def _shifted(value: Any, shift: timedelta) -> Any:
    moved: Any = None
    try:
        match value:
            case datetime():
                moved = _moved(value, shift)
            case date():
                moved = value + shift
            case str():
                moved = _shifted_text(value, shift)
    except (ValueError, OverflowError):
        moved = None
    if moved is None:
        raise PrivacyError(f"date_shift: expected a date such as 2024-01-31, got {type(value).__name__}")
    return moved


def _moved(moment: datetime, shift: timedelta) -> datetime:
    """In absolute time: a change to summer time on the way would otherwise stretch an interval."""
    return moment + shift if moment.tzinfo is None else (moment.astimezone(UTC) + shift).astimezone(moment.tzinfo)


def _shifted_text(text: str, shift: timedelta) -> str | None:
    if found := _DAY_TEXT.fullmatch(text.strip()):
        day = date(int(found[1]), int(found[3]), int(found[4])) + shift
        return found[2].join((f"{day.year:04}", f"{day.month:02}", f"{day.day:02}"))
    text = text.strip()
    if text[10:11] not in ("T", " "):
        return None
    written = _moved(datetime.fromisoformat(text), shift).isoformat(sep=text[10])
    return written.replace("+00:00", "Z") if text.endswith("Z") else written


def key_ids(texts: Sequence[Any]) -> set[str]:
    """Ids of the keys that ciphertexts name; other values are passed over."""
    found: set[str] = set()
    for text in texts:
        try:
            found.add(key_id_of(_ciphertext(text)))
        except PrivacyError:
            continue
    return found
