"""Reads a segment back, line by line, and says up to where it is what was written.

Streams: memory does not grow with the segment. Reads damaged files as far as they go, because an auditor asks which
record was touched, not whether a library raised. A record is checked on its own bytes, so a byte that changes nothing
in the parsed JSON is found as well.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, BinaryIO, Protocol

import orjson

from airflow_ai_provider.core.audit.sealing.manifest import MerkleTree, leaf_hash
from airflow_ai_provider.core.audit.trail.chain import (
    HEAD_TAG,
    RECORD_SUFFIX,
    RECORD_TAG,
    SEAL_TAG,
    SHOWN_HEX,
    Head,
    Seal,
    canonical_unchecked,
    decode_head,
    decode_seal,
    link,
)
from airflow_ai_provider.core.audit.verify.findings import (
    DAMAGED,
    DUPLICATED,
    EDITED,
    INSERTED,
    TRUNCATED,
    event_number,
    likely_attack,
)
from airflow_ai_provider.core.errors import AuditError

CHUNK = 64 * 1024
_SHOWN = SHOWN_HEX // 2
_LOOK_AHEAD = 64
"""Lines behind a break in which the place is looked for where the chain goes on."""
_ENDS_EARLY = "compressed file ends early"
MAX_LINE = 1024 * 1024
"""Bytes; a record is bounded by its schema to far less. Beyond it a file is not read further."""


class Visitor(Protocol):
    """Sees every intact record of a segment, in order."""

    def __call__(self, document: dict[str, Any], body: bytes) -> None:
        """``document`` is the event without its chain value, ``body`` its canonical JSON."""
        ...


def both(first: Visitor, second: Visitor) -> Visitor:
    """Two visitors as one."""

    def visit(document: dict[str, Any], body: bytes) -> None:
        first(document, body)
        second(document, body)

    return visit


@dataclass(frozen=True, slots=True)
class Fault:
    """The first place at which a segment is not what was written."""

    place: str
    """``head``, ``record N`` counted from 1, ``after record N``, or ``seal``."""
    detail: str
    attack: str
    """What was probably done."""


@dataclass(slots=True)
class SegmentCheck:
    """What one reading of a segment found."""

    head: Head | None = None
    seal: Seal | None = None
    seal_hash: str = ""
    chain: bytes = b""
    """Chain value after the last intact record."""
    count: int = 0
    """Intact records from the start."""
    records: MerkleTree = field(default_factory=MerkleTree)
    """Over the bodies of the intact records."""
    intact_bytes: int = 0
    """Offset after the last intact line."""
    tail_bytes: int = 0
    """Bytes after it, without a line end: an interrupted write."""
    fault: Fault | None = None


class ContainerDamaged(Exception):
    """A compressed file ends or breaks here; what came before was handed out."""


def gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress a stream up to the very byte at which it breaks, then raise ``ContainerDamaged``."""
    inflate = zlib.decompressobj(wbits=31)
    for chunk in chunks:
        if inflate.eof:
            raise ContainerDamaged("bytes after the end of the compressed file")
        before = inflate.copy()
        try:
            output = inflate.decompress(chunk)
        except zlib.error as error:
            yield from _until_broken(before, chunk)
            raise ContainerDamaged(f"compressed file is broken ({error})") from None
        if output:
            yield output
        if inflate.unused_data:
            raise ContainerDamaged("bytes after the end of the compressed file")
    if not inflate.eof:
        raise ContainerDamaged(_ENDS_EARLY)


def _until_broken(inflate: Any, chunk: bytes) -> Iterator[bytes]:
    for index in range(len(chunk)):
        try:
            yield inflate.decompress(chunk[index : index + 1])
        except zlib.error:
            return


def file_chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk


class HashedChunks:
    """Passes chunks on and hashes them; ``hexdigest`` is complete when the chunks are used up."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._hash = sha256()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._hash.update(chunk)
            yield chunk

    def drain(self) -> str:
        """Read what is left and return the hash of everything."""
        for _ in self:
            pass
        return self._hash.hexdigest()


class _Lines:
    """Lines without their ends. ``tail`` is what follows the last line end, ``damage`` why reading stopped."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.tail = b""
        self.damage = ""

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._chunks:
                lines = (self.tail + chunk).split(b"\n")
                self.tail = lines.pop()
                yield from lines
                if len(self.tail) > MAX_LINE:
                    self.damage = f"a line longer than {MAX_LINE} bytes"
                    return
        except ContainerDamaged as damaged:
            self.damage = str(damaged)


def check_segment(chunks: Iterable[bytes], *, sealed: bool, visit: Visitor | None = None) -> SegmentCheck:
    """Follow the chain of a segment. ``sealed`` says whether it must end in a seal; ``visit`` gets its records."""
    check = SegmentCheck()
    lines = _Lines(chunks)
    stream = iter(lines)
    first = next(stream, None)
    if first is None or not _read_head(check, first):
        check.fault = Fault("head", lines.damage or "its first line is not an intact head", DAMAGED)
        return check
    broken = _read_records(check, stream, visit)
    if broken is not None:
        check.fault = _broken_record(check, broken, stream)
    elif lines.damage:
        attack = TRUNCATED if lines.damage == _ENDS_EARLY else DAMAGED
        check.fault = Fault(_next_place(check), f"at or after this place: {lines.damage}", attack)
    elif check.seal is None and sealed:
        check.fault = Fault(f"after record {check.count}", "ends without its seal", TRUNCATED)
    elif lines.tail:
        check.tail_bytes = len(lines.tail)
        check.fault = _tail_fault(check, lines.tail, sealed)
    return check


def _read_head(check: SegmentCheck, line: bytes) -> bool:
    parsed = _split(line)
    if parsed is None:
        return False
    body, shown, document = parsed
    try:
        head = decode_head(document)
    except AuditError:
        return False
    value = link(HEAD_TAG, bytes.fromhex(head.previous), body)
    if shown != value.hex().encode() or not _is_canonical(document, body):
        return False
    check.head, check.chain, check.intact_bytes = head, value, len(line) + 1
    return True


def _read_records(check: SegmentCheck, lines: Iterator[bytes], visit: Visitor | None = None) -> bytes | None:
    """Consume intact records, and the seal if there is one; return the first line that does not follow."""
    assert check.head is not None
    chain, count, offset = check.chain, check.count, check.intact_bytes
    prefix, number, add = f"{check.head.writer}-", check.head.first, check.records.add
    bad: bytes | None = None
    for line in lines:
        body = line[:-RECORD_SUFFIX] + b"}"
        value = sha256(RECORD_TAG + chain + body).digest()
        follows = line[-RECORD_SUFFIX:] == b',"h":"%b"}' % value[:_SHOWN].hex().encode()
        document = _event(body, prefix, number + count) if follows else None
        if document is None:
            bad = line
            break
        chain = value
        add(leaf_hash(body))
        if visit is not None:
            visit(document, body)
        count += 1
        offset += len(line) + 1
    check.chain, check.count, check.intact_bytes = chain, count, offset
    if bad is not None and _read_seal(check, bad):
        bad = next(lines, None)
    return bad


def _event(body: bytes, prefix: str, number: int) -> dict[str, Any] | None:
    """A record's parsed body, if it is the canonical JSON of the event with this number."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if type(document) is not dict or document.get("event.id") != f"{prefix}{number}":
        return None
    return document if _is_canonical(document, body) else None


def _is_canonical(document: dict[str, Any], body: bytes) -> bool:
    try:
        return canonical_unchecked(document) == body
    except AuditError:
        return False


def _read_seal(check: SegmentCheck, line: bytes) -> bool:
    parsed = _split(line)
    if parsed is None:
        return False
    body, shown, document = parsed
    try:
        seal = decode_seal(document)
    except AuditError:
        return False
    value = link(SEAL_TAG, check.chain, body).hex()
    honest = seal.count == check.count and seal.head == check.chain.hex() and _is_canonical(document, body)
    if shown != value.encode() or not honest:
        return False
    check.seal, check.seal_hash = seal, value
    check.intact_bytes += len(line) + 1
    return True


def _broken_record(check: SegmentCheck, line: bytes, rest: Iterator[bytes]) -> Fault:
    assert check.head is not None
    place = _next_place(check)
    if check.seal is not None:
        return Fault("after the seal", "a line follows the seal", INSERTED)
    if _looks_like_seal(line):
        return Fault("seal", f"the seal does not fit the {check.count} records before it", TRUNCATED)
    near = [line, *itertools.islice(rest, _LOOK_AHEAD)]
    expected = check.head.first + check.count
    ids = (_id_of(each) for each in itertools.chain(near, rest) if not _looks_like_seal(each))
    attack = _surplus(check, near, expected) or likely_attack(check.head.writer, expected, ids)
    return Fault(place, "does not follow from the line before it", attack)


def _surplus(check: SegmentCheck, lines: list[bytes], expected: int) -> str:
    """What to call lines that are too much: the chain goes on behind them. Empty where it does not."""
    assert check.head is not None
    for index in range(1, len(lines)):
        if _continues(check, *lines[index : index + 2]):
            number = event_number(check.head.writer, _id_of(lines[0]))
            return DUPLICATED if number is not None and number < expected else INSERTED
    return ""


def _continues(check: SegmentCheck, *lines: bytes) -> bool:
    """Whether lines follow, one after the other, from the last intact record."""
    trial = SegmentCheck(head=check.head, chain=check.chain, count=check.count)
    return _read_records(trial, iter(lines)) is None


def _next_place(check: SegmentCheck) -> str:
    return f"record {check.count + 1}" if check.seal is None else "after the seal"


def _tail_fault(check: SegmentCheck, tail: bytes, sealed: bool) -> Fault | None:
    """An interrupted write is a proper prefix of a line; a whole line with another byte at its end is not."""
    if sealed or check.seal is not None:
        return Fault("after the seal", "bytes follow the seal", INSERTED)
    if _continues(check, tail[:-1]):
        return Fault(_next_place(check), "its line end was changed", EDITED)
    return None


def _split(line: bytes) -> tuple[bytes, bytes, dict[str, Any]] | None:
    """Body, shown hash and parsed body of a head or seal."""
    start, _, end = line.rpartition(b',"h":"')
    if not start or not end.endswith(b'"}'):
        return None
    body = start + b"}"
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return (body, end[:-2], document) if type(document) is dict else None


def _looks_like_seal(line: bytes) -> bool:
    return line.startswith(b'{"count":') and b'"kind":"seal"' in line


def _id_of(line: bytes) -> str:
    """The event id a line claims, or nothing if it cannot be read."""
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        return ""
    claimed = document.get("event.id") if type(document) is dict else None
    return claimed if type(claimed) is str else ""
