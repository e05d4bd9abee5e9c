"""Mask and restore inside JSON texts and nested values.

JSON inside a text, changed literal by literal: everything that is not changed stays byte for byte as it was.

Parsing and writing again would lose the spacing, the spelling of numbers, and integers that a float cannot hold.

Masking and restoring inside values of any nesting.

A text that is a JSON object or array is looked at twice: string by string, since an escape such as ``\u0041`` hides a
letter from patterns, and as a whole, since ``"password": "…"`` is only telling as a whole. What changes is a string or
a number of it, never its punctuation, so JSON stays JSON and the rest stays as it was written.

Whatever was masked is restored exactly: where one more form of writing would not come back, the whole value has one
token.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_ai_provider.core.privacy.detectors.text_view import Span, resolve
from airflow_ai_provider.core.privacy.masking.tokens import TEXT, Restorer

if TYPE_CHECKING:
    from airflow_ai_provider.core.privacy.masking.masker import RowMask


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


@dataclass(frozen=True, slots=True)
class RawJson:
    """A literal of a JSON text as it was written: what a token in its place becomes."""

    text: str

    def __str__(self) -> str:
        return self.text


def mask_value(mask: RowMask, value: Any) -> Any:
    """Tokens in place of findings, inside; see ``RowMask.mask_value``."""
    match value:
        case None | bool():
            return value
        case str():
            return _mask_text(mask, value)
        case bytes():
            # Bytes that are no UTF-8 pass through the text as lone surrogates, and come back as they were.
            return _mask_text(mask, value.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        case Mapping():
            return {mask_value(mask, key): mask_value(mask, part) for key, part in value.items()}
        case list():
            return [mask_value(mask, part) for part in value]
        case tuple():
            return tuple(mask_value(mask, part) for part in value)
        case _:
            text = str(value)
            spans = mask.spans(text)
            return mask.token_for(spans[0].entity, text, value) if spans else value


def hide_value(mask: RowMask, entity: str, value: Any) -> Any:
    """Tokens in place of all leaves; see ``RowMask.hide_value``."""
    match value:
        case None | bool():
            return value
        case str():
            return mask.token_for(entity, value) if value else value
        case Mapping():
            return {key: hide_value(mask, entity, part) for key, part in value.items()}
        case list():
            return [hide_value(mask, entity, part) for part in value]
        case tuple():
            return tuple(hide_value(mask, entity, part) for part in value)
        case bytes():
            return mask.token_for(entity, value.decode("utf-8", "replace"), value)
        case _:
            return mask.token_for(entity, str(value), value)


def restore_value(restorer: Restorer, value: Any) -> Any:
    """Values in place of tokens, inside; see ``RowMask.restore_value``."""
    match value:
        case str():
            original = restorer.originals.get(value)
            return _restore_text(restorer, value) if original is None or isinstance(original, RawJson) else original
        case bytes():
            return _restore_bytes(restorer, value)
        case Mapping():
            restored: dict[Any, Any] = {}
            for key, part in value.items():
                name = restore_value(restorer, key)
                # Two keys may be forms of one token: the second keeps its own name, nothing is lost.
                restored[key if name in restored else name] = restore_value(restorer, part)
            return restored
        case list():
            return [restore_value(restorer, part) for part in value]
        case tuple():
            return tuple(restore_value(restorer, part) for part in value)
        case _:
            return value


def _restore_bytes(restorer: Restorer, value: bytes) -> bytes:
    """Values in place of tokens in bytes."""
    return _restore_text(restorer, value.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _mask_text(mask: RowMask, text: str) -> str:
    found = literals(text)
    return _masked(mask, text, mask.spans(text)) if found is None else _mask_json(mask, text, found)


def _masked(mask: RowMask, text: str, spans: list[Span]) -> str:
    """A text that is no JSON, with tokens in place of the spans."""
    if not spans:
        return text
    masked = mask.with_tokens(text, spans)
    # Masking what broke the JSON may have mended it, and then it would be restored as JSON.
    return masked if literals(masked) is None else mask.token_for(TEXT, text)


def _mask_json(mask: RowMask, text: str, found: list[Literal]) -> str:
    touched = _touched(found, mask.spans(text))
    return rewritten(text, found, lambda literal: _masked_literal(mask, literal, touched.get(literal.start, [])))


def _masked_literal(mask: RowMask, literal: Literal, from_whole: list[Span]) -> str | None:
    """A literal with its findings masked, ``None`` if there are none; ``from_whole`` counts from its start."""
    content, own = literal.content, mask.spans(literal.content)
    if literal.is_string and literal.raw == f'"{content}"' and literals(content) is None:
        inside = [Span(span.start - 1, span.end - 1, span.entity) for span in from_whole]
        spans = resolve([*own, *inside], ())
        return quoted(_masked(mask, content, spans)) if spans else None
    masked = _mask_text(mask, content) if literal.is_string else content
    if masked != content and quoted(content) == literal.raw:
        return quoted(masked)
    if masked == content and not from_whole and (literal.is_string or not own):
        return None
    entity = (from_whole or own or [Span(0, 0, TEXT)])[0].entity
    return quoted(mask.token_for(entity, content, RawJson(literal.raw)))


def _touched(found: list[Literal], whole: Iterable[Span]) -> dict[int, list[Span]]:
    """By the start of each literal, the parts of ``whole`` that lie inside it, counted from its start."""
    touched: dict[int, list[Span]] = {}
    spans = iter(whole)
    span = next(spans, None)
    for literal in found:
        edge = literal.is_string
        first, last = literal.start + edge, literal.end - edge
        while span is not None and span.end <= first:
            span = next(spans, None)
        here = span
        while here is not None and here.start < last:
            start, end = max(here.start, first), min(here.end, last)
            touched.setdefault(literal.start, []).append(Span(start - literal.start, end - literal.start, here.entity))
            if here.end > last:
                break
            span = here = next(spans, None)
    return touched


def _restore_text(restorer: Restorer, text: str) -> str:
    found = literals(text) if restorer.texts else None
    if found is None:
        return restorer.restore(text)
    return rewritten(text, found, lambda literal: _restored_literal(restorer, literal))


def _restored_literal(restorer: Restorer, literal: Literal) -> str | None:
    if not literal.is_string:
        return None
    original = restorer.originals.get(literal.content)
    if isinstance(original, RawJson):
        return original.text
    restored = _restore_text(restorer, literal.content)
    return None if restored == literal.content else quoted(restored)
