"""Canonical JSON, and the hash chain of a segment's lines.

Canonical JSON (RFC 8785) for the values the trail holds, so that equal values have equal hashes everywhere.

The space is narrower than JSON: ``None``, ``bool``, ``int`` within ±(2^53 - 1), ``str``, ``list``, and ``dict`` with
ASCII keys. There are no floats, so number formatting never matters; ASCII keys sort the same in UTF-8, which orjson
uses, and in UTF-16, which the standard asks for; and orjson escapes exactly what the standard escapes. The tests
hold all three against the ``rfc8785`` package.

The lines of a segment and how each follows from the one before.

    {"first":1,…,"kind":"head",…,"h":"<64 hex>"}         head:   h = H(head tag,   previous segment's seal, body)
    {"@timestamp":…,"event.id":…,…,"h":"<16 hex>"}       record: h = H(record tag, h of the line before,   body)
    {"count":…,"head":…,"kind":"seal",…,"h":"<64 hex>"}  seal:   h = H(seal tag,   h of the last record,   body)

``H(tag, previous, body)`` is SHA-256 over their concatenation; the body is the line's canonical JSON without ``h``.
The tags differ and end in NUL, so no line can stand for one of another kind. The chain always runs on all 256 bits.
A record's line shows the first 64 of them: they point at the first record that does not follow, and each digit more
costs half a byte per event for as long as the archive is kept. They prove nothing by themselves, since the chain takes
no key: the seal holds all 256 bits and so fixes every record before it, and the signed manifest fixes the seal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import orjson

from airflow_ai_provider.core.audit.trail.schema import MAX_INTEGER
from airflow_ai_provider.core.errors import AuditError

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


HEAD_TAG: Final = b"airflow-ai audit head 1\0"
RECORD_TAG: Final = b"airflow-ai audit record 1\0"
SEAL_TAG: Final = b"airflow-ai audit seal 1\0"
NO_SEGMENT: Final = bytes(32)
"""Previous seal of a writer's first segment."""
FORMAT: Final = 1
SHOWN_HEX: Final = 16
"""Hex digits of the chain value that a record's line shows."""
RECORD_SUFFIX: Final = len(b',"h":"') + SHOWN_HEX + len(b'"}')
"""Bytes of a record's line that are not its body."""

_HEX64 = re.compile(r"[0-9a-f]{64}").fullmatch
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII).fullmatch
_WRITER = re.compile(r"[0-9a-z]{8,64}").fullmatch


@dataclass(frozen=True, slots=True)
class Head:
    """First line of a segment."""

    trail: str
    writer: str
    segment: int
    """Number of this segment among the writer's, from 1."""
    previous: str
    """Seal of the writer's previous segment, 64 hex; zeros for its first."""
    first: int
    """Number of the first event; a writer's events are numbered from 1 without gaps, across its segments."""
    opened_at: str

    @property
    def name(self) -> str:
        return segment_name(self.writer, self.segment)

    def body(self) -> dict[str, Any]:
        return {
            "kind": "head",
            "format": FORMAT,
            "trail": self.trail,
            "writer": self.writer,
            "segment": self.segment,
            "previous": self.previous,
            "first": self.first,
            "opened_at": self.opened_at,
        }


@dataclass(frozen=True, slots=True)
class Seal:
    """Last line of a sealed segment."""

    count: int
    """Records in the segment."""
    head: str
    """Chain value after the last record, 64 hex."""
    sealed_at: str
    recovered: bool = False
    """Written after the writer's death, by another process."""
    torn_bytes: int = 0
    """Bytes cut off behind the last intact record."""
    damaged: bool = False
    """The bytes cut off held a finished line: not the trace of a crash but of a broken disk or a changed file."""

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "kind": "seal",
            "count": self.count,
            "head": self.head,
            "sealed_at": self.sealed_at,
        }
        if self.recovered:
            body |= {"recovered": True, "torn_bytes": self.torn_bytes, "damaged": self.damaged}
        return body


def segment_name(writer: str, segment: int) -> str:
    return f"{writer}-{segment:06d}"


def event_id(writer: str, number: int) -> str:
    return f"{writer}-{number}"


def link(tag: bytes, previous: bytes, body: bytes) -> bytes:
    """The chain value of a line."""
    return sha256(tag + previous + body).digest()


def encode_head(head: Head) -> tuple[bytes, bytes]:
    """The head's line, with its newline, and its chain value."""
    body = canonical(head.body())
    value = link(HEAD_TAG, bytes.fromhex(head.previous), body)
    return _line(body, value.hex()), value


def encode_record(previous: bytes, body: bytes) -> tuple[bytes, bytes]:
    """A record's line and its chain value; ``body`` is the event's canonical JSON."""
    value = sha256(RECORD_TAG + previous + body).digest()
    return b'%b,"h":"%b"}\n' % (body[:-1], value[: SHOWN_HEX // 2].hex().encode()), value


def encode_seal(previous: bytes, seal: Seal) -> tuple[bytes, bytes]:
    """The seal's line and its value, to which the writer's next segment refers."""
    body = canonical(seal.body())
    value = link(SEAL_TAG, previous, body)
    return _line(body, value.hex()), value


def decode_head(document: Mapping[str, Any]) -> Head:
    """Read a head's body. ``AuditError`` when it is not one."""
    try:
        head = Head(**{name: document[name] for name in Head.__slots__})
    except KeyError as missing:
        raise AuditError(f"head has no {missing}") from None
    if document.get("kind") != "head" or document.get("format") != FORMAT:
        raise AuditError(f"expected a head of format {FORMAT}")
    numbers = type(head.segment) is int and head.segment >= 1 and type(head.first) is int and head.first >= 1
    texts = isinstance(head.trail, str) and isinstance(head.opened_at, str) and _TIME(head.opened_at) is not None
    links = isinstance(head.previous, str) and _HEX64(head.previous) is not None
    if not (numbers and texts and links and isinstance(head.writer, str) and _WRITER(head.writer)):
        raise AuditError("head has a field of the wrong kind")
    return head


def decode_seal(document: Mapping[str, Any]) -> Seal:
    """Read a seal's body. ``AuditError`` when it is not one."""
    if document.get("kind") != "seal":
        raise AuditError("expected a seal")
    try:
        seal = Seal(
            count=document["count"],
            head=document["head"],
            sealed_at=document["sealed_at"],
            recovered=document.get("recovered", False),
            torn_bytes=document.get("torn_bytes", 0),
            damaged=document.get("damaged", False),
        )
    except KeyError as missing:
        raise AuditError(f"seal has no {missing}") from None
    if type(seal.count) is not int or type(seal.head) is not str or type(seal.torn_bytes) is not int:
        raise AuditError("seal has a field of the wrong kind")
    return seal


def _line(body: bytes, shown: str) -> bytes:
    return b'%b,"h":"%b"}\n' % (body[:-1], shown.encode())
