"""The other ways in which a person's name is written: order, initials, hyphens, titles.

Works on folded text (``known.py``): lower case, no accents, single blanks. Only forms that keep the family name whole
are made, and of those only such as hardly mean anything else: "A. Lovelace" is, "a lovelace" is not, and a given name
alone never is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

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
