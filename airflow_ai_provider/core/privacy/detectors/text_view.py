"""Text in the form that detectors search, RE2 patterns over it, and the spans they find.

Text as one byte per character, so that patterns see through full-width forms and offsets survive.

RE2 runs fastest on bytes, and its offsets are byte offsets. Every character therefore becomes exactly one byte:

- ASCII stays itself; full-width and mathematical letters, digits of every script, dashes and spaces become the
  ASCII character they stand for, and every sign of a currency ``$``;
- Chinese, Japanese and Korean characters become ``WIDE``: no word boundary, unlike ``\b`` would have it;
- any other letter becomes ``LETTER``, any other symbol ``SYMBOL``, a middle dot ``DOT``;
- invisible characters (zero-width, soft hyphen, direction marks, variation selectors) are dropped, and ``View``
  keeps the way back to the original offsets.

NFKC is not used on whole texts: it changes lengths.

RE2: linear time whatever the text, at most 8 MiB of memory for each pattern.

Where something personal stands in a text, and how overlapping findings become one.

Invariant: the union of the resolved spans is the union of the given ones. Nothing that any detector found is left
uncovered because another detector won.
"""

from __future__ import annotations

import codecs
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import re2

WIDE = 0xC0
LETTER = 0xE0
SYMBOL = 0x80
DOT = 0xB7
INVISIBLE = 0xAD

_BRACKETS = {ord(char): ord("[") for char in "【〔〖［"} | {ord(char): ord("]") for char in "】〕〗］"}
_DOTS = frozenset(map(ord, "·•・‧∙⋅･"))
_DASHES = frozenset(map(ord, "−‐‑‒–—―﹘﹣－⁃"))
# Besides category Cf: combining grapheme joiner, Hangul fillers, variation selectors, the keycap mark.
_HIDDEN = frozenset([0x034F, 0x115F, 0x1160, 0x3164, 0xFFA0, 0x20E3, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
_WIDE_NAMES = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC")


def is_invisible(code: int) -> bool:
    """Whether a character shows nothing and takes no room, so that it can hide inside a number."""
    return code in _HIDDEN or (code > 0x7F and unicodedata.category(chr(code)) == "Cf")


def is_wide(code: int) -> bool:
    """Whether a character belongs to a script written without spaces between words."""
    if 0x4E00 <= code <= 0x9FFF:
        return True
    char = chr(code)
    return char.isalpha() and unicodedata.name(char, "").startswith(_WIDE_NAMES)


def _byte(code: int) -> int:
    """The byte that stands for a code point."""
    if code < 0x80:
        return code
    if 0x4E00 <= code <= 0x9FFF:
        return WIDE
    if is_invisible(code):
        return INVISIBLE
    if code in _BRACKETS:
        return _BRACKETS[code]
    if code in _DOTS:
        return DOT
    if code in _DASHES:
        return ord("-")
    return _folded_byte(chr(code))


def _folded_byte(char: str) -> int:
    digit = unicodedata.decimal(char, None)
    if digit is not None:
        return ord("0") + int(digit)
    category = unicodedata.category(char)
    if category == "Zs":
        return ord(" ")
    if category == "Pd":
        return ord("-")
    if category == "Sc":
        return ord("$")
    # Superscripts and circled digits are numbering, not part of the number they stand next to.
    if category != "No":
        folded = unicodedata.normalize("NFKC", char)
        if len(folded) == 1 and folded.isascii():
            return ord(folded)
    if is_wide(ord(char)):
        return WIDE
    return LETTER if category[0] in "LM" else SYMBOL


class _ByteTable(dict[int, str]):
    """``str.translate`` table, filled as characters are met: at most one entry per Unicode code point."""

    def __missing__(self, code: int) -> str:
        value = self[code] = chr(_byte(code))
        return value


_TABLE = _ByteTable()


def _fold(error: UnicodeError) -> tuple[bytes, int]:
    """Bytes for a run of characters that are not ASCII; the ASCII around it is copied by the codec at full speed."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return error.object[error.start : error.end].translate(_TABLE).encode("latin-1"), error.end


_FOLDING = "airflow-ai-fold"
codecs.register_error(_FOLDING, _fold)


class View(NamedTuple):
    """A text as patterns see it."""

    text: str
    data: bytes
    """One byte per visible character of ``text``."""
    positions: list[int] | None
    """Offset in ``text`` of each byte of ``data``; ``None`` when they are the same."""

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The offsets in ``text`` of ``data[start:end]``, which must not be empty."""
        if self.positions is None:
            return start, end
        return self.positions[start], self.positions[end - 1] + 1

    def byte_at(self, offset: int) -> int:
        """The index in ``data`` of the first visible character at or after an offset of ``text``."""
        return offset if self.positions is None else bisect_left(self.positions, offset)


def view(text: str) -> View:
    """Return ``text`` as patterns see it."""
    if text.isascii():
        return View(text, text.encode("ascii"), None)
    data = text.encode("ascii", _FOLDING)
    if INVISIBLE not in data:
        return View(text, data, None)
    positions = [index for index, byte in enumerate(data) if byte != INVISIBLE]
    return View(text, data.replace(bytes([INVISIBLE]), b""), positions)


class _PlainTable(dict[int, int | None]):
    """``str.translate`` table: full-width forms and the like as ASCII, the invisible gone, all else as it is."""

    def __missing__(self, code: int) -> int | None:
        byte = _byte(code)
        value = self[code] = None if byte == INVISIBLE else byte if byte < 0x80 else code
        return value


_PLAIN = _PlainTable()


@dataclass(frozen=True, slots=True)
class Plain:
    """A text for patterns that know Unicode."""

    text: str
    positions: list[int] | None
    """Offset in the text as written of each character; ``None`` when they are the same."""

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The offsets in the text as written of ``text[start:end]``, which must not be empty."""
        if self.positions is None:
            return start, end
        return self.positions[start], self.positions[end - 1] + 1


def plain(text: str) -> Plain:
    """Return ``text`` with ASCII for whatever stands for it, without what is invisible, otherwise as it is."""
    if text.isascii():
        return Plain(text, None)
    folded = text.translate(_PLAIN)
    if len(folded) == len(text):
        return Plain(folded, None)
    return Plain(folded, [index for index, char in enumerate(text) if _PLAIN[ord(char)] is not None])


def bytes_options() -> re2.Options:
    """Options under which one byte is one character."""
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    return options


_OPTIONS = bytes_options()


def compile_bytes(pattern: bytes) -> re2._Regexp:
    """Compile a pattern in which one byte is one character."""
    return re2.compile(pattern, options=_OPTIONS)


class Gate:
    """Tells in one pass which of several patterns are in a text. Safe to share between threads.

    The time of that pass depends on how many states the patterns have together: keep them short.
    """

    def __init__(self, signs: Sequence[bytes | str], options: re2.Options) -> None:
        self._everything = range(len(signs))
        self._set = re2.Set.SearchSet(options)
        for sign in signs:
            self._set.Add(sign)
        # RE2 reports a search for which it had too little memory as one without a match. This one always matches.
        self._always = self._set.Add("")
        self._set.Compile()
        self._last: tuple[bytes | str, Sequence[int]] = (b"", self._searched(b""))

    def open_for(self, data: bytes | str) -> Sequence[int]:
        """Indexes of the patterns that are there; all of them where the search gave up.

        What is masked and what guards it look at most texts one right after the other, and unchanged.
        """
        last, found = self._last
        if last != data:
            found = self._searched(data)
            self._last = data, found
        return found

    def _searched(self, data: bytes | str) -> Sequence[int]:
        found: list[int] | None = self._set.Match(data)
        if found is None or self._always not in found:
            return self._everything
        found.remove(self._always)
        found.sort()
        return found


@lru_cache(maxsize=64)
def shared_gate(signs: tuple[bytes, ...]) -> Gate:
    """The gate of some patterns on bytes, one for all who have the same."""
    return Gate(signs, bytes_options())


class Span(NamedTuple):
    """``text[start:end]`` is an ``entity``; offsets count code points of the text that was given."""

    start: int
    end: int
    entity: str


def resolve(spans: Iterable[Span], rank: Sequence[str]) -> list[Span]:
    """Return disjoint spans, in order, that cover exactly what ``spans`` cover.

    Overlapping spans become one. It takes the type of the longest of them; among equally long ones, the type
    that comes first in ``rank`` (types that are not in ``rank`` come before all).
    """
    ordered = sorted(spans)
    if len(ordered) < 2 or all(left.end <= right.start for left, right in pairwise(ordered)):
        return ordered
    groups: list[list[Span]] = []
    reach = -1
    for span in ordered:
        if span.start >= reach:
            groups.append([span])
        else:
            groups[-1].append(span)
        reach = max(reach, span.end)
    return [_merge(group, rank) for group in groups]


def _merge(group: Sequence[Span], rank: Sequence[str]) -> Span:
    if len(group) == 1:
        return group[0]

    def strength(span: Span) -> tuple[int, int]:
        position = rank.index(span.entity) if span.entity in rank else -1
        return span.end - span.start, -position

    winner = max(group, key=strength)
    return Span(group[0].start, max(span.end for span in group), winner.entity)
