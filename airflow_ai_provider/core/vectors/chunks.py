"""The block structure of a Markdown text: headings, code fences, everything else.

Only what splitting needs is recognised, by lines: ATX headings (``## Title``), fences (three or more backticks or
tildes) and runs of lines between blank lines. Any text is valid input: what is not Markdown is paragraphs.

Invariant: blocks are in order, do not overlap, and every character outside all blocks is white space.

Cut a Markdown text into chunks that can be found and read on their own.

A chunk never spans two headings. A section longer than ``max_chars`` is cut at the best place there is, in this
order: between blocks, between lines outside code, after a sentence, between lines of code, after a clause, between
words, anywhere. A code fence that fits into a chunk is never cut.

Invariants, for every text: each chunk is ``text[start:end]`` and holds something else than white space; no chunk is
longer than ``max_chars``; every character that is not white space is in some chunk; ``start`` and ``end`` increase.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

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


SPLIT_VERSION = 1
"""Part of a document's fingerprint: raise it when the same text would be cut differently."""

MIN_CHARS = 40
MAX_CHARS = 4000
"""A chunk's search terms take up to 15 bytes per character, and a Milvus VARCHAR holds 65,535 bytes."""

_SENTENCE_END = re.compile(r"[。！？!?…]+[”’」』）)\"']*\s*|(?<!\.)\.++[”’)\"']*\s+")
_LINE_END = re.compile(r"\n")
_CLAUSE_END = re.compile(r"[，；、：,;:]\s*")
_WORD_END = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Chunk:
    ordinal: int
    """Position in the document, from 0."""
    heading_path: tuple[str, ...]
    """The headings above the chunk, outermost first."""
    text: str
    start: int
    """Offset of the chunk in the text that was split, in characters."""
    end: int


@dataclass(frozen=True, slots=True)
class _Section:
    path: tuple[str, ...]
    start: int
    end: int
    blocks: tuple[Block, ...]


def split(text: str, *, max_chars: int = 1200, overlap: int = 120) -> list[Chunk]:
    """Chunks of at most ``max_chars`` characters.

    A chunk that had to be cut inside a block is followed by one that repeats up to ``overlap`` of its last characters,
    from the start of a sentence or of a word, so that a statement astride the cut can still be found.
    """
    if not MIN_CHARS <= max_chars <= MAX_CHARS:
        raise ValueError(f"max_chars is {max_chars}: expected {MIN_CHARS} to {MAX_CHARS} characters")
    if not 0 <= overlap <= max_chars // 4:
        raise ValueError(f"overlap is {overlap}: expected 0 to a quarter of max_chars ({max_chars // 4})")
    chunks: list[Chunk] = []
    for section in _sections(scan(text)):
        for start, end in _cut_section(text, section, max_chars, overlap):
            chunks.append(Chunk(len(chunks), section.path, text[start:end], start, end))
    return chunks


def _sections(blocks: list[Block]) -> Iterator[_Section]:
    """Runs of blocks under one heading. A heading with nothing below it opens the section that follows."""
    above: list[Block] = []
    current: list[Block] = []
    for block in blocks:
        if block.kind is BlockKind.HEADING:
            if any(b.kind is not BlockKind.HEADING for b in current):
                yield _section(above, current)
                current = []
            above = [b for b in above if b.level < block.level] + [block]
        current.append(block)
    if current:
        yield _section(above, current)


def _section(above: list[Block], blocks: list[Block]) -> _Section:
    path = tuple(b.title for b in above if b.title)
    return _Section(path, blocks[0].start, blocks[-1].end, tuple(blocks))


def _cut_section(text: str, section: _Section, max_chars: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Spans of one section, white space trimmed."""
    start, end = _trim(text, section.start, section.end)
    if end - start <= max_chars:
        yield start, end
        return
    cuts = _Cuts(text, section)
    done = start
    while end - start > max_chars:
        cut, inside_block = cuts.best(start, done, max_chars)
        yield _trim(text, start, cut)
        done, _ = _trim(text, cut, end)
        again, _ = _trim(text, cuts.resume(cut, overlap if inside_block else 0), end)
        start = again if again > start else done
    yield start, end


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


class _Cuts:
    """Where one section may be cut, best kind of place first."""

    def __init__(self, text: str, section: _Section) -> None:
        self._fences = [(b.start, b.end) for b in section.blocks if b.kind is BlockKind.FENCE]
        # A heading stays with what follows it: no cut between the two, if it can be helped.
        pairs = list(pairwise(section.blocks))
        self._heads = [(a.start, b.start + 1) for a, b in pairs if a.kind is BlockKind.HEADING]
        blocks = [b.start for a, b in pairs if a.kind is not BlockKind.HEADING]
        lines = _ends(_LINE_END, text, section)
        words = _ends(_WORD_END, text, section)
        whole_lines = self._outside(lines)
        sentences = self._outside(_ends(_SENTENCE_END, text, section))
        self._between_blocks = blocks
        self._whole = (blocks, whole_lines, sentences)
        self._torn = (lines, _ends(_CLAUSE_END, text, section), words)
        self._restart = (sorted({*whole_lines, *sentences}), words)

    def best(self, start: int, done: int, max_chars: int) -> tuple[int, bool]:
        """The cut that ends a chunk from ``start``, later than ``done``; and whether it is inside a block."""
        limit = self._before_fence(start, done, start + max_chars)
        for least in (max(done, start + max_chars // 2), done):
            for places in self._whole:
                at = _last(places, limit)
                if at > least:
                    return at, places is not self._between_blocks
        for places in self._torn:
            at = _last(places, limit)
            if at > done:
                return at, True
        return limit, True

    def resume(self, cut: int, overlap: int) -> int:
        """Where the chunk after ``cut`` starts: at most ``overlap`` characters earlier, never in the middle of code."""
        if overlap == 0 or any(start < cut and cut - overlap < end for start, end in self._fences):
            return cut
        for places in self._restart:
            index = bisect_right(places, cut - overlap - 1)
            if index < len(places) and places[index] < cut:
                return places[index]
        return cut

    def _before_fence(self, start: int, done: int, limit: int) -> int:
        """``limit``, or the start of a fence that crosses it and fits into a chunk of its own."""
        for fence_start, fence_end in self._fences:
            if max(start, done) < fence_start < limit < fence_end and fence_end - fence_start <= limit - start:
                return fence_start
        return limit

    def _outside(self, places: Iterable[int]) -> list[int]:
        """Those neither in a fence nor between a heading and what follows it."""
        spans = sorted([*self._fences, *self._heads])
        starts = [start for start, _ in spans]
        return [at for at in places if not _is_inside(at, spans, starts)]


def _is_inside(at: int, spans: list[tuple[int, int]], starts: list[int]) -> bool:
    index = bisect_left(starts, at) - 1
    return index >= 0 and at < spans[index][1]


def _ends(pattern: re.Pattern[str], text: str, section: _Section) -> list[int]:
    return [m.end() for m in pattern.finditer(text, section.start, section.end)]


def _last(places: list[int], limit: int) -> int:
    """The last place not after ``limit``; -1 when there is none."""
    index = bisect_right(places, limit)
    return places[index - 1] if index else -1
