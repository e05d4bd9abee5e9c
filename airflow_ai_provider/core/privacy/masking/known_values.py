"""Values of a row's own columns, and their other spellings, found again in its text.

The other ways in which a person's name is written: order, initials, hyphens, titles.

Works on folded text (``known.py``): lower case, no accents, single blanks. Only forms that keep the family name whole
are made, and of those only such as hardly mean anything else: "A. Lovelace" is, "a lovelace" is not, and a given name
alone never is.

Known values: what a row's own columns say is personal, found again in the row's text.

Names are found in their other forms as well (``variants.py``). Values are compared folded: lower case, without accents,
full-width forms as ASCII, runs of blanks as one, blanks between Chinese characters and invisible characters left out.
Offsets lead back to the text as written.
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from airflow_ai_provider.core.privacy.detectors.text_view import Span, is_invisible

_PART = re.compile(r"[^\W\d_]+(?:['.-][^\W\d_]+)*\.?")
_WIDE_NAME = re.compile(r"[㐀-鿿]{2,4}")
_MOST_PARTS = 5
_SHORTEST_FAMILY = 3
"""Letters of a family name that an initial or a title may stand before."""
_TITLES = ("mr", "mrs", "ms", "miss", "dr", "prof", "sir", "madam", "herr", "frau", "mme", "sr", "sra")
_WIDE_TITLES = ("先生", "女士", "小姐", "太太", "老师", "经理", "总", "同学", "师傅", "阿姨")
_COMPOUND = frozenset(
    "欧阳 司马 上官 诸葛 东方 皇甫 尉迟 公孙 慕容 令狐 司徒 司空 夏侯 端木 南宫 百里 呼延 长孙 宇文".split()
)


@lru_cache(maxsize=4096)
def variants(name: str) -> tuple[str, ...]:
    """The other ways to write a folded name; none for what does not read as a name of two to five parts."""
    if _WIDE_NAME.fullmatch(name):
        return tuple(_wide_family(name) + title for title in _WIDE_TITLES)
    parts = _parts(name)
    if not parts:
        return ()
    forms = {form for written in _spellings(parts) for form in _orders(written)}
    return tuple(sorted(forms - {name}, key=lambda form: (-len(form), form)))


@lru_cache(maxsize=4096)
def in_every_form(name: str) -> str:
    """What stands in a folded name and in each of its other forms: the family name, to its first hyphen."""
    if _WIDE_NAME.fullmatch(name):
        return _wide_family(name)
    parts = _parts(name)
    return parts[-1].partition("-")[0] if parts else name


def _wide_family(name: str) -> str:
    return name[:2] if name[:2] in _COMPOUND else name[:1]


def _parts(name: str) -> list[str]:
    """Given names, then the family name; nothing for what does not read as a name."""
    family, comma, given = name.partition(", ")
    parts = [*given.split(" "), *family.split(" ")] if comma else name.split(" ")
    return parts if 2 <= len(parts) <= _MOST_PARTS and all(map(_PART.fullmatch, parts)) else []


def _spellings(parts: list[str]) -> Iterator[list[str]]:
    """A double name with its hyphen, as two words, and as one."""
    yield parts
    if any("-" in part for part in parts):
        yield [part.replace("-", " ") for part in parts]
        yield [part.replace("-", "") for part in parts]


def _orders(parts: list[str]) -> Iterator[str]:
    """Given names first and last, in full, without the middle ones, and as initials."""
    family, given = parts[-1], parts[:-1]
    for names in {tuple(given), (given[0],)}:
        yield from _both_ways(" ".join(names), family)
    yield given[0] + family
    yield family + given[0]
    if len(given) > 1:
        yield from _both_ways(" ".join((given[0], *(f"{name[0]}." for name in given[1:]))), family)
    if len(family.replace(" ", "")) < _SHORTEST_FAMILY:
        return
    initials = [f"{name[0]}." for name in given]
    for dotted in {" ".join(initials), "".join(initials), initials[0]}:
        yield from _both_ways(dotted, family)
    yield f"{initials[0]}{family}"
    for title in _TITLES:
        yield f"{title} {family}"
        yield f"{title}. {family}"


def _both_ways(given: str, family: str) -> Iterator[str]:
    yield f"{given} {family}"
    yield f"{family} {given}"
    yield f"{family}, {given}"
    yield f"{family},{given}"


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
_WORDS = re.compile(rf"[{_WIDE}]|\d+|[^\W\d_{_WIDE}]+")
"""What a text is made of: letters, digits, and single characters of scripts without spaces."""
_FEW = 32
"""Values up to which looking for each is faster than splitting the text into words."""
_AT_START = (0,)
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


def folded(text: str) -> str:
    """A text as values are compared."""
    return fold(text).strip()


class KnownValues:
    """The values of one row to look for, by type; and those to leave alone."""

    __slots__ = ("_skipped", "_values")

    def __init__(self, row: Mapping[str, Any], columns: Mapping[str, str], *, skip: Sequence[str] = ()) -> None:
        """``columns`` maps names of columns to types; values shorter than 2 characters are not looked for.

        ``skip`` names columns whose values are to be left alone.
        """
        self._values = _Values(row, columns, varied=True) if columns else _NO_VALUES
        self._skipped = _Values(row, dict.fromkeys(skip, ""), varied=False) if skip else _NO_VALUES

    def find(self, text: str) -> Sequence[Span]:
        """Where a value stands as a whole word, in any of its forms; findings may overlap."""
        return self._values.find(text)

    def find_skipped(self, text: str) -> Sequence[Span]:
        """Where a value that is to be left alone stands as a whole word."""
        return self._skipped.find(text)

    def may_be_in(self, folded: str) -> bool:
        """Whether ``find`` might find something in the text of which ``folded`` is what ``fold`` made."""
        return bool(self._values.candidates(folded))


def fold(text: str) -> str:
    """A text as values are looked for in it."""
    return _squeeze(text.translate(_TABLE)).text


class _Values:
    """Folded values, and where they are in a text.

    Only values of which a word is in the text are searched for, each at the speed of ``str.find``: with a thousand
    values the time is that of a few passes over the text.
    """

    __slots__ = ("_free", "_signs", "_values", "_varied")

    def __init__(self, row: Mapping[str, Any], columns: Mapping[str, str], *, varied: bool) -> None:
        self._values: dict[str, str] = {}
        for column, entity in columns.items():
            held = row.get(column)
            for leaf in (held,) if type(held) is str else _leaves(held):
                value = folded(leaf)
                if len(value) >= 2 and (value.isalnum() or any(map(str.isalnum, value))):
                    self._values.setdefault(value, entity)
        self._varied = varied
        self._signs: dict[str, Sequence[str]] | None = None
        self._free: str | None = None
        """The last text that held none of them: most are looked at twice, to mask and to guard."""

    def find(self, text: str) -> Sequence[Span]:
        if not self._values or text is self._free:
            return ()
        plain = text.translate(_TABLE)
        if _HIDDEN not in plain and not self._with_a_word_in(plain):
            self._free = text
            return ()
        folded = _squeeze(plain)
        candidates = self.candidates(folded.text)
        if not candidates:
            self._free = text
            return ()
        found: list[Span] = []
        for value in candidates:
            rest = folded.text  # "Lee, Ann" is no other form of a name in "Ann Lee, Ann Lee"
            forms = (value, *variants(value)) if self._varied else (value,)
            for form in [form for form in forms if form in rest]:
                places = list(_occurrences(rest, form))
                for start, end in places:
                    found.append(Span(folded.original(start), folded.original(end - 1) + 1, self._values[value]))
                rest = _without(rest, places)
        return found

    def candidates(self, folded: str) -> Sequence[str]:
        """The values that may be in a folded text, longest first."""
        found = self._with_a_word_in(folded)
        # Of the values that share a word with a text, few have in it what each of their forms holds.
        found = [value for value in found if (in_every_form(value) if self._varied else value) in folded]
        return sorted(found, key=lambda value: (-len(value), value)) if len(found) > 1 else found

    def _with_a_word_in(self, text: str) -> Sequence[str]:
        """Values of which a word is in a text; all that are in it in any form are among them."""
        if not self._values:
            return ()
        few = len(self._values) <= _FEW
        signs_of = self._signs
        if signs_of is None:
            # Looking for letters in a row, the words of a value will do: whatever two of them make holds both.
            signs_of = {value: _WORDS.findall(value) if few else _signs(value) for value in self._values}
            self._signs = signs_of
        words: Container[str] = text if few else set(_WORDS.findall(text))
        found: list[str] = []
        for value, signs in signs_of.items():
            for sign in signs:  # twice as fast as any()
                if sign in words:
                    found.append(value)
                    break
        return found


_NO_VALUES = _Values({}, {}, varied=False)


def _signs(value: str) -> tuple[str, ...]:
    """Words of which one is in every text that holds the value in any form.

    A form of a name has one of its words whole, or is two of them written as one.
    """
    words = _WORDS.findall(value)
    joined = (left + right for left, right in (*pairwise(words), (words[0], words[-1]), (words[-1], words[0])))
    return tuple(dict.fromkeys((*words, *joined)))


def _occurrences(text: str, form: str) -> Iterator[tuple[int, int]]:
    start = text.find(form)
    while start >= 0:
        end = start + len(form)
        if _stands_alone(text, start, end):
            yield start, end
            start = text.find(form, end)
        else:
            start = text.find(form, start + 1)


def _without(text: str, places: Sequence[tuple[int, int]]) -> str:
    """``text`` of the same length, with nothing that could be found in the given places, which are in order."""
    if not places:
        return text
    pieces: list[str] = []
    position = 0
    for start, end in places:
        pieces += text[position:start], "\0" * (end - start)
        position = end
    return "".join((*pieces, text[position:]))


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
    if text.isascii() and "  " not in text:
        return _Folded(text, _AT_START, _AT_START, None)
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
