"""Known values: what a row's own columns say is personal, found again in the row's text.

Values are compared folded: lower case, without accents, full-width forms as ASCII, runs of blanks as one, blanks
between Chinese characters and invisible characters left out. Offsets lead back to the text as written.
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from airflow_ai_provider.privacy.normalise import is_invisible
from airflow_ai_provider.privacy.spans import Span

_HIDDEN = "\xad"
_QUOTES = dict.fromkeys(map(ord, "’‘ʼ′＇`´"), "'")
_DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−－"), "-")
# Scripts written without spaces: a value may touch them on either side.
_WIDE = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u3100-\u318f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_IS_WIDE = re.compile(f"[{_WIDE}]")
_BLANKS = re.compile(" +")
_LONG_BLANKS = re.compile("  +")


class _FoldTable(dict[int, str]):
    """``str.translate`` table, filled as characters are met."""

    def __missing__(self, code: int) -> str:
        value = self[code] = _folded(code)
        return value


def _folded(code: int) -> str:
    char = chr(code)
    if is_invisible(code) or 0x300 <= code <= 0x36F:
        return _HIDDEN
    if char.isspace():
        return " "
    parts = unicodedata.normalize("NFKD", char)
    if len(parts) > 1 and parts[0].isalpha() and all(unicodedata.category(part) == "Mn" for part in parts[1:]):
        char = parts[0]
    elif len(parts) == 1:
        char = parts
    return char.lower()[0]


_TABLE = _FoldTable(_QUOTES | _DASHES)


class _Folded(NamedTuple):
    """A folded text, and the way back to the text it was."""

    text: str
    cuts: Sequence[int]
    """Where in ``text`` something was left out just before, ascending, from 0."""
    shifts: Sequence[int]
    """Characters left out up to each cut."""
    visible: Sequence[int] | None
    """Offsets of the visible characters, if there were invisible ones."""

    def original(self, index: int) -> int:
        index += self.shifts[bisect_right(self.cuts, index) - 1]
        return index if self.visible is None else self.visible[index]


class KnownValues:
    """The values of one row to look for, by type."""

    __slots__ = ("_heads", "_values")

    def __init__(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> None:
        """``columns`` maps names of columns to types; values shorter than 2 characters are not looked for."""
        values: dict[str, str] = {}
        for column, entity in columns.items():
            for leaf in _leaves(row.get(column)):
                folded = _squeeze(leaf.translate(_TABLE)).text.strip()
                if len(folded) >= 2 and any(map(str.isalnum, folded)):
                    values.setdefault(folded, entity)
        self._values = sorted(values.items(), key=lambda item: (-len(item[0]), item[0]))
        self._heads = {value[0] if _IS_WIDE.match(value) else value.split(" ", 1)[0] for value in values}

    def find(self, text: str) -> Iterator[Span]:
        """Yield where a value stands as a whole word; findings of different values may overlap."""
        if not self._values:
            return
        plain = text.translate(_TABLE)
        if _HIDDEN not in plain and not any(head in plain for head in self._heads):
            return
        folded = _squeeze(plain)
        for value, entity in self._values:
            start = folded.text.find(value)
            while start >= 0:
                end = start + len(value)
                if _stands_alone(folded.text, start, end):
                    yield Span(folded.original(start), folded.original(end - 1) + 1, entity)
                    start = folded.text.find(value, end)
                else:
                    start = folded.text.find(value, start + 1)


def _leaves(value: Any) -> Iterator[str]:
    """The texts in a cell: numbers, dates and the like as written by ``str``, lists and objects by their parts."""
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _leaves(part)
    elif not (isinstance(value, float) and not math.isfinite(value)):
        yield str(value)


def _squeeze(text: str) -> _Folded:
    """Leave out invisible characters, and blanks beyond one or between wide characters."""
    visible = None
    if _HIDDEN in text:
        visible = [index for index, char in enumerate(text) if char != _HIDDEN]
        text = text.replace(_HIDDEN, "")
    pieces: list[str] = []
    cuts, shifts = [0], [0]
    position = 0
    for match in (_LONG_BLANKS if text.isascii() else _BLANKS).finditer(text):
        start, end = match.span()
        start += not _between_wide(text, start, end)  # one blank stays
        if start < end:
            pieces.append(text[position:start])
            position = end
            shifts.append(shifts[-1] + end - start)
            cuts.append(end - shifts[-1])
    pieces.append(text[position:])
    return _Folded("".join(pieces), cuts, shifts, visible)


def _between_wide(text: str, start: int, end: int) -> bool:
    return bool(start > 0 and end < len(text) and _IS_WIDE.match(text[start - 1]) and _IS_WIDE.match(text[end]))


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether no word goes on over an edge: letters on both sides of it, or digits. Wide scripts have no edges."""
    return not (
        (start and _joined(text[start - 1], text[start])) or (end < len(text) and _joined(text[end - 1], text[end]))
    )


def _joined(left: str, right: str) -> bool:
    if left.isdigit() or right.isdigit():
        return left.isdigit() and right.isdigit()
    return left.isalpha() and right.isalpha() and not (_IS_WIDE.match(left) or _IS_WIDE.match(right))
