"""Audit events: building them, and keyed hashes of prompts and answers.

Keyed hashes of prompts and answers: they prove which text was meant without holding it.

A plain hash of a short or guessable text can be undone by guessing; with a secret key it cannot. Whoever holds the
key can show that a given text is the one in the trail.

What an event may say: a flat object in ECS names, closed on purpose.

Each action has its own list of fields, each field its own kind of value; both are in ``schema``. What is not listed
is refused, names are short, and hashes must look like hashes: no prompt, answer or error message can get
into the trail by accident. Money is integer nano-dollars. There are no floats.

Callers use short names (``input_tokens``); the record has the ECS name (``gen_ai.usage.input_tokens``), or, where
ECS has none, one under ``airflow_ai.``.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from airflow_ai_provider.core.audit.trail import schema
from airflow_ai_provider.core.audit.trail.schema import MAX_INTEGER, MAX_NAME, OUTCOMES
from airflow_ai_provider.core.errors import AuditError

MIN_KEY_BYTES = 16
HASH_HEX = 32
"""Hex digits of a content hash: 128 bits."""


def content_hash(key: bytes, text: str) -> str:
    """HMAC-SHA256 of the UTF-8 text, first 128 bits, in hex. ``AuditError`` when the key is under 16 bytes."""
    if len(key) < MIN_KEY_BYTES:
        raise AuditError(f"content hash key has {len(key)} bytes; expected at least {MIN_KEY_BYTES}")
    # A lone surrogate cannot be sent to a model either, but the trail must not be what fails on it.
    return hmac.digest(key, text.encode("utf-8", "surrogatepass"), "sha256").hex()[:HASH_HEX]


class MultisetHash:
    """A keyed hash over a collection in no order, such that hashes add up as collections do.

    The sum, modulo 2^128, of the content hashes of the members (MSet-Add-Hash of Clarke et al., *Incremental Multiset
    Hash Functions*, ASIACRYPT 2003). So the sum over many events can be compared with one reading of a table.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sum = 0

    def add(self, text: str) -> None:
        self.add_hash(content_hash(self._key, text))

    def add_hash(self, digest: str) -> None:
        """Add a member's content hash, or the ``hexdigest`` of a whole collection."""
        self._sum = (self._sum + int(digest, 16)) % 16**HASH_HEX

    def hexdigest(self) -> str:
        return f"{self._sum:0{HASH_HEX}x}"


SCHEMA: Final = schema.VERSION
Fields = Mapping[str, Any]
_Check = Callable[[Any], bool]

_token = re.compile(schema.KINDS["token"]["pattern"][1:-1]).fullmatch
_digest = re.compile(schema.KINDS["digest"]["pattern"][1:-1]).fullmatch
_address = re.compile(schema.KINDS["address"]["pattern"][1:-1]).fullmatch


def _is_name(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_NAME and "\n" not in value and "\r" not in value


def _is_token(value: Any) -> bool:
    return type(value) is str and _token(value) is not None


def _is_digest(value: Any) -> bool:
    return type(value) is str and _digest(value) is not None


def _is_address(value: Any) -> bool:
    return type(value) is str and _address(value) is not None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_INTEGER


def _is_index(value: Any) -> bool:
    return type(value) is int and -1 <= value <= MAX_INTEGER


def _is_flag(value: Any) -> bool:
    return type(value) is bool


_CHECKS: Final[Mapping[str, tuple[_Check, str]]] = {
    "name": (_is_name, f"a name of at most {MAX_NAME} characters in one line"),
    "token": (_is_token, "1 to 128 characters of A-Z a-z 0-9 _ . : / + = -"),
    "digest": (_is_digest, "32 or 64 lower-case hex digits"),
    "address": (_is_address, "an IPv4 or IPv6 address"),
    "count": (_is_count, "an integer from 0 to 2^53 - 1"),
    "index": (_is_index, "an integer from -1 to 2^53 - 1"),
    "flag": (_is_flag, "true or false"),
}
_FIELDS: Final = {
    name: (schema.record_name(name), *_CHECKS[kind]) for kind, names in schema.FIELDS.items() for name in names.split()
}
_SCHEMAS: Final = {
    action: (
        tuple(required.split()),
        {name: _FIELDS[name] for name in f"{required} {optional} {schema.WHO}".split()},
    )
    for action, (_, required, optional) in schema.ACTIONS.items()
}
_WHO: Final = frozenset(schema.WHO.split())
ACTIONS: Final = frozenset(schema.ACTIONS)


def build_event(
    action: str, outcome: str, event_id: str, timestamp: str, fields: Fields, context: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The record of one event, in ECS names. A field that is ``None`` is left out.

    ``timestamp`` is from ``format_time``; ``context``, from ``build_context``, is what all events of a writer share,
    and a field replaces it. Raises ``AuditError`` for an action, outcome or field that is not in the schema, a value of
    the wrong kind, or a required field that is missing; the value itself is never in the message.
    """
    try:
        required, allowed = _SCHEMAS[action]
        ecs_outcome = OUTCOMES[outcome]
    except KeyError:
        raise AuditError(_unknown(action, outcome)) from None
    event: dict[str, Any] = {
        **(context or {}),
        "@timestamp": timestamp,
        "airflow_ai.schema": SCHEMA,
        "event.action": action,
        "event.id": event_id,
        "event.outcome": ecs_outcome,
    }
    if outcome == "reused":
        event["airflow_ai.reused"] = True
    for name, value in fields.items():
        if value is None:
            continue
        field = allowed.get(name)
        if field is None:
            raise AuditError(f"audit event {action}: field {name!r} is not in its schema; expected {sorted(allowed)}")
        record_name, check, expected = field
        if not check(value):
            raise AuditError(f"audit event {action}: field {name}: expected {expected}")
        event[record_name] = value
    for name in required:
        if fields.get(name) is None and _FIELDS[name][0] not in event:
            raise AuditError(f"audit event {action}: field {name} is missing")
    return event


def build_context(fields: Fields) -> dict[str, Any]:
    """What every event of a writer says of who and where, in ECS names. ``AuditError`` as for an event's fields."""
    context = {}
    for name, value in fields.items():
        if name not in _WHO:
            raise AuditError(f"audit context: field {name!r} is not in its schema; expected {sorted(_WHO)}")
        record_name, check, expected = _FIELDS[name]
        if value is None:
            continue
        if not check(value):
            raise AuditError(f"audit context: field {name}: expected {expected}")
        context[record_name] = value
    return context


def format_time(moment: datetime) -> str:
    """UTC, milliseconds, ``2025-01-31T12:00:00.000Z``. ``AuditError`` for a time without a zone."""
    if moment.tzinfo is None:
        raise AuditError("audit time has no time zone; pass datetime.now(UTC)")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def utc_now() -> datetime:
    return datetime.now(UTC)


def _unknown(action: str, outcome: str) -> str:
    if action not in _SCHEMAS:
        return f"audit action {action!r} is not known; expected one of {sorted(ACTIONS)}"
    return f"audit event {action}: outcome {outcome!r} is not known; expected one of {sorted(OUTCOMES)}"
