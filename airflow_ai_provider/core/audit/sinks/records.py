"""The events of a segment, one by one, as the index takes them. ``verify`` says whether they are what was written.

Streams: memory does not grow with the segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from airflow_ai_provider.core.audit.sinks.archive import Archive
from airflow_ai_provider.core.audit.sinks.search import Event
from airflow_ai_provider.core.audit.verify.segment_reader import ContainerDamaged, file_chunks, gunzip

_SEAL: Final = b'{"count":'
"""How a seal's line starts; a record's starts with its time."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a segment."""

    number: int
    """In its segment, from 1."""
    event: Event | None
    """``None`` where the line cannot be read as an event."""


def spool_records(path: Path) -> Iterator[Record]:
    """Records of a segment in the spool. ``FileNotFoundError`` when it has moved on."""
    with path.open("rb") as stream:
        yield from _records(file_chunks(stream))


def archive_records(archive: Archive, name: str) -> Iterator[Record]:
    """Records of an archived segment, as far as it can be read. ``FileNotFoundError`` when it is not there."""
    with archive.open(name) as stream:
        yield from _records(gunzip(file_chunks(stream)))


def _records(chunks: Iterable[bytes]) -> Iterator[Record]:
    lines = _lines(chunks)
    next(lines, None)  # the head
    for number, line in enumerate(lines, 1):
        if not line.startswith(_SEAL):
            yield Record(number, _event(line))


def _event(line: bytes) -> Event | None:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if type(event) is not dict or not all(type(event.get(name)) is str for name in ("event.id", "@timestamp")):
        return None
    event.pop("h", None)
    return event


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    tail = b""
    try:
        for chunk in chunks:
            lines = (tail + chunk).split(b"\n")
            tail = lines.pop()
            yield from lines
    except ContainerDamaged:
        return  # what came before was handed out; ``verify`` names the damage
