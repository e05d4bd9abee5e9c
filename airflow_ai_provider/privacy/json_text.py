"""JSON inside a text, changed literal by literal: everything that is not changed stays byte for byte as it was.

Parsing and writing again would lose the spacing, the spelling of numbers, and integers that a float cannot hold.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

_LITERAL = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?', re.DOTALL)
_CONTAINER = {"{": "}", "[": "]"}


# A lone half of a surrogate pair, which is no character, stays as it is written.
_ESCAPE = re.compile(
    r'\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}|["\\/bfnrt])'
)


class Literal(NamedTuple):
    """One string or number of a JSON text."""

    start: int
    """Offset in the text."""
    raw: str
    """As it is written; a string with its quotes."""
    content: str
    """What a string says; the digits of a number."""

    @property
    def is_string(self) -> bool:
        return self.raw[0] == '"'

    @property
    def end(self) -> int:
        return self.start + len(self.raw)


def literals(text: str) -> list[Literal] | None:
    """The strings (names of members too) and numbers of a text that is a JSON object or array; else ``None``."""
    stripped = text.strip(" \t\r\n")
    if len(stripped) < 2 or _CONTAINER.get(stripped[0]) != stripped[-1]:
        return None
    try:
        # Numbers are not converted: their digits are all that counts, however many there are.
        json.loads(stripped, parse_int=len, parse_float=len)
    except (ValueError, RecursionError):
        return None
    found = ((match.start(), match.group()) for match in _LITERAL.finditer(text))
    return [Literal(start, raw, json.loads(raw) if raw[0] == '"' else raw) for start, raw in found]


class Unescaped(NamedTuple):
    """A text as it reads without JSON's escapes, and the way back to the text as it is written."""

    text: str
    cuts: Sequence[int]
    """Where in ``text`` an escaped character ends, ascending, from 0."""
    shifts: Sequence[int]
    """Characters that the escapes up to each cut are longer than what they stand for."""

    def written(self, index: int) -> int:
        """Where the character at ``index`` begins as it is written."""
        return index + self.shifts[bisect_right(self.cuts, index) - 1]


def unescaped(text: str) -> Unescaped | None:
    """What a text, or JSON anywhere in it, says without its escapes; ``None`` if there are none."""
    if "\\" not in text:
        return None
    pieces: list[str] = []
    cuts, shifts, position = [0], [0], 0
    for match in _ESCAPE.finditer(text):
        char = json.loads(f'"{match.group()}"')
        pieces += text[position : match.start()], char
        position = match.end()
        shifts.append(shifts[-1] + len(match.group()) - 1)
        cuts.append(position - shifts[-1])
    return Unescaped("".join((*pieces, text[position:])), cuts, shifts) if pieces else None


def quoted(content: str) -> str:
    """A JSON string. Half of a surrogate pair, which UTF-8 cannot hold, is escaped."""
    return json.dumps(content, ensure_ascii=any("\ud800" <= char <= "\udfff" for char in content))


def rewritten(text: str, found: list[Literal], change: Callable[[Literal], str | None]) -> str:
    """``text`` with each literal as ``change`` writes it; ``None`` leaves it as it is."""
    pieces: list[str] = []
    position = 0
    for literal in found:
        new = change(literal)
        if new is not None:
            pieces += text[position : literal.start], new
            position = literal.end
    pieces.append(text[position:])
    return "".join(pieces)
