"""What the double saw: every request's body, and how each ended. Tests search here for personal data."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import orjson

from airflow_ai_provider.testing.invoice import open_for_appending

KEPT_REQUESTS = 10_000
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_SECRET_HEADERS = frozenset({"authorization", "api-key", "x-api-key", "cookie"})


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request as it arrived. Headers are in lower case, without those that carry credentials."""

    number: int
    """From 1, in the order of arrival."""
    at: float
    """Unix time in seconds."""
    path: str
    headers: Mapping[str, str]
    body: Any
    """Parsed JSON, or the text as it came where it is none."""

    def texts(self) -> Iterator[str]:
        """Every string a reader of this request could see, unescaped; JSON inside a string is unescaped as well."""
        yield from self.headers.values()
        yield from _strings(self.body)


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the start or the last reset. Model requests only, not those for models or to the double itself."""

    requests: int
    in_flight: int
    """A request whose client has left counts until its answer is made or, if it hangs, for up to 0.05 s."""
    max_in_flight: int
    outcomes: Mapping[str, int]
    """By fault name, and ``ok``, ``replayed``, ``over_limit``, ``bad_request``, ``client_left`` (made and charged)."""
    billed: int
    cost_nanodollars: int
    lag_p99_s: float = 0.0
    """By how many seconds the double's event loop was late, in 99 of 100 looks …"""
    lag_max_s: float = 0.0
    """… and at most. A late loop sees requests together that arrived apart."""


class Journal:
    """Keeps the last requests in memory and, where asked, all of them in a JSONL file."""

    def __init__(self, file: Path | None = None, keep: int = KEPT_REQUESTS) -> None:
        self._file = file
        self._out: FileIO | None = None
        self._kept: deque[ReceivedRequest] = deque(maxlen=keep)
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Forget counts and requests in memory. The file keeps them, and a request in flight still counts."""
        self._kept.clear()
        self.received = 0
        self.max_in_flight = self.in_flight
        self.outcomes: Counter[str] = Counter()

    def enter(self) -> None:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def leave(self) -> None:
        self.in_flight -= 1

    def count(self, outcome: str) -> None:
        self.outcomes[str(outcome)] += 1

    def receive(self, at: float, path: str, headers: Mapping[str, str], raw: bytes) -> ReceivedRequest:
        self.received += 1
        kept = {low: value for name, value in headers.items() if (low := name.lower()) not in _SECRET_HEADERS}
        request = ReceivedRequest(self.received, at, path, kept, _parsed(raw))
        self._kept.append(request)
        if self._file is not None:
            self._out = self._out or open_for_appending(self._file)
            self._out.write(orjson.dumps(request, option=orjson.OPT_APPEND_NEWLINE))
        return request

    def requests(self) -> list[ReceivedRequest]:
        return list(self._kept)

    @property
    def forgotten(self) -> int:
        """Requests that memory no longer holds."""
        return self.received - len(self._kept)

    def close(self) -> None:
        if self._out is not None:
            self._out.close()
            self._out = None


def read_requests(file: Path) -> Iterator[ReceivedRequest]:
    """The requests of a journal file, in the order of arrival."""
    with file.open("rb") as lines:
        for line in lines:
            yield ReceivedRequest(**orjson.loads(line))


def _parsed(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw.decode(errors="replace")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        if "\\u" in value:
            yield _unescaped(value)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield str(name)
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _unescaped(text: str) -> str:
    """With ``\\u`` escapes read, surrogate pairs too."""
    read = _ESCAPE.sub(lambda escape: chr(int(escape.group(1), 16)), text)
    return read.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
