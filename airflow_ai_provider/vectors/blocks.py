"""The block structure of a Markdown text: headings, code fences, everything else.

Only what splitting needs is recognised, by lines: ATX headings (``## Title``), fences (three or more backticks or
tildes) and runs of lines between blank lines. Any text is valid input: what is not Markdown is paragraphs.

Invariant: blocks are in order, do not overlap, and every character outside all blocks is white space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

_HEADING = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")


class BlockKind(Enum):
    HEADING = "heading"
    FENCE = "fence"
    PARAGRAPH = "paragraph"


@dataclass(frozen=True, slots=True)
class Block:
    kind: BlockKind
    start: int
    """Offset of the first character."""
    end: int
    """Offset after the last character, line end included."""
    level: int = 0
    """1 to 6 for a heading, else 0."""
    title: str = ""
    """Text of a heading, without its marks."""


@dataclass(frozen=True, slots=True)
class _Line:
    start: int
    end: int
    text: str
    """Without its line end."""


def scan(text: str) -> list[Block]:
    """The blocks of ``text``, in order."""
    lines = list(_lines(text))
    blocks: list[Block] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.text.strip():
            at += 1
        elif heading := _HEADING.match(line.text):
            title = _heading_title(line.text[heading.end() :])
            blocks.append(Block(BlockKind.HEADING, line.start, line.end, len(heading[1]), title))
            at += 1
        else:
            fence = _opening_fence(line.text)
            after = _after_fence(lines, at, fence) if fence else _after_paragraph(lines, at)
            kind = BlockKind.FENCE if fence else BlockKind.PARAGRAPH
            blocks.append(Block(kind, line.start, lines[after - 1].end))
            at = after
    return blocks


def _lines(text: str) -> Iterator[_Line]:
    start = 0
    for raw in text.split("\n"):
        end = min(start + len(raw) + 1, len(text))
        if start < end:
            yield _Line(start, end, raw.rstrip("\r"))
        start = end


def _heading_title(text: str) -> str:
    """Without the closing marks of ``## Title ##``; ``## C#`` keeps its own."""
    text = text.strip()
    bare = text.rstrip("#")
    return bare.rstrip() if not bare or bare[-1] in " \t" else text


def _opening_fence(line: str) -> str | None:
    """The fence mark, or None. A backtick in the info string makes the line inline code, not a fence."""
    match = _FENCE.match(line)
    if match is None or (match[1][0] == "`" and "`" in match[2]):
        return None
    return match[1]


def _after_fence(lines: list[_Line], at: int, fence: str) -> int:
    """Index after the closing fence; an unclosed fence runs to the end of the text."""
    for index in range(at + 1, len(lines)):
        closing = _FENCE.match(lines[index].text)
        if closing and closing[1].startswith(fence) and not closing[2].strip():
            return index + 1
    return len(lines)


def _after_paragraph(lines: list[_Line], at: int) -> int:
    """Index of the first line that is blank, a heading or a fence."""
    for index in range(at + 1, len(lines)):
        text = lines[index].text
        if not text.strip() or _HEADING.match(text) or _opening_fence(text):
            return index
    return len(lines)
