"""Tokens that stand for personal values: writing, finding and restoring them.

Tokens: what a model sees instead of a personal value, written so that they survive a model.

A token is ``[EMAIL_7K2QM]``: the type, and a code of five characters taken from a keyed hash of the value. The code's
alphabet has no characters that are read as one another (0 O, 1 I L, 5 S, 8 B, U V are told apart by leaving O, 1, 0,
I, L, S, B and U out). Every code has a letter and a digit, so no word or number reads as one.

Models change tokens: case, escapes, full-width brackets, HTML and URL encoding, lost brackets. ``TokenPattern`` finds
all of these forms. It is used on what goes out and on what comes back: whatever restoring would take for a token is
masked itself, so an input can neither smuggle a token in nor change by being masked and restored.

Restoring: tokens of one row become its values again, and what an answer made of them is reported.

``Restorer`` holds a row's tokens. It looks at a text once: what it puts in is never looked at again, tokens that are
not in it stay as they are, and tokens are recognised in the forms that models give them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from airflow_ai_provider.core.privacy.detectors import text_view
from airflow_ai_provider.core.privacy.detectors.text_view import LETTER, View, compile_bytes

PURPOSE = "tokens"
"""What the keyring derives the key of codes for; its context is the team, so that two teams share no token."""
ALPHABET = "23456789ACDEFGHJKMNPQRTVWXYZ"
SHORTEST = 5
"""Characters of a code, unless two values of a row collide: 28^5 is 17 million."""
LONGEST = 24
TYPE = re.compile(r"[A-Z](?:[A-Z_]*[A-Z])?")

_SYMBOLS = bytes(ord(ALPHABET[byte % len(ALPHABET)]) for byte in range(256))
_UNEVEN = bytes(range(256 - 256 % len(ALPHABET), 256))
"""Bytes left out of a digest, so that every symbol is as likely as another."""

_BLOCK = 64
"""Bytes that SHA-256 takes in at once."""
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))
_DIGITS = "".join(filter(str.isdigit, ALPHABET)).encode("ascii")
_ALNUM = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") | {LETTER}
_OPEN = rb"(?:\\{0,2}\[|&(?:#91|#x5b|lbrack|lsqb);|%5b)"
_CLOSE = rb"(?:\\{0,2}\]|&(?:#93|#x5d|rbrack|rsqb);|%5d)"
_JOIN = rb"(?:\\{0,2}[ _-]|&(?:#95|#x5f|lowbar);|%5f)"
_LOOSE_JOIN = rb"(?:" + _JOIN + rb"|[:\t\r\n])"
"""Between type and code, where brackets on both sides tell that it is a token."""
_LOOSE = re.compile(rb"[:\t\r\n]")
_ENTITY = re.compile(rb"&[#A-Za-z0-9]+;|%5[Ff]")
_ANY_TYPE = compile_bytes(b"\\[([A-Z](?:[A-Z_]*[A-Z])?)_([" + ALPHABET.encode("ascii") + b"]{5,24})\\]")


@dataclass(frozen=True, slots=True)
class Found:
    """Something that reads as a token. Offsets count code points of the text."""

    start: int
    end: int
    token: str
    """The token as it is written when nothing changed it."""


def write(entity: str, code: str) -> str:
    """Return a token."""
    return f"[{entity}_{code}]"


def code_symbols(key: bytes, scope: str, entity: str, value: str) -> str:
    """Return the ``LONGEST`` characters from which a value's code is cut: HMAC-SHA256 over scope, type and value.

    The first ``SHORTEST`` of them hold a letter and a digit. The same arguments give the same characters anywhere.
    """
    block = f"{len(scope)}:{scope}{entity}:{value}".encode("utf-8", "surrogatepass")
    symbols = ""
    while True:
        block = _mac(key, block)
        symbols += block.translate(_SYMBOLS, _UNEVEN).decode("ascii")
        for offset in range(len(symbols) - LONGEST + 1):
            head = symbols[offset : offset + SHORTEST]
            if not head.isdigit() and not head.isalpha():
                return symbols[offset : offset + LONGEST]


def _mac(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104) in a third of the time of ``hmac.digest``, which works the key in anew each time."""
    keyed_inner, keyed_outer = _keyed(key)
    inner, outer = keyed_inner.copy(), keyed_outer.copy()
    inner.update(message)
    outer.update(inner.digest())
    return outer.digest()


@lru_cache(maxsize=64)
def _keyed(key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    padded = (hashlib.sha256(key).digest() if len(key) > _BLOCK else key).ljust(_BLOCK, b"\0")
    return hashlib.sha256(padded.translate(_INNER)), hashlib.sha256(padded.translate(_OUTER))


class TokenPattern:
    """Finds whatever reads as a token of the given types, in any of the forms a model may give it."""

    def __init__(self, entities: Iterable[str]) -> None:
        # Longest first: of two types that fit, the whole name counts.
        names = sorted(set(entities), key=lambda name: (-len(name), name))
        types = b"|".join((_JOIN + b"{1,3}").join(name.encode("ascii").split(b"_")) for name in names)
        code = f"[{ALPHABET}]{{{SHORTEST},{LONGEST}}}".encode("ascii")
        self._pattern = compile_bytes(
            b"(?i)(" + _OPEN + b"?)(" + types + b")(" + _LOOSE_JOIN + b"{0,3})(" + code + b")(" + _CLOSE + b"?)"
        )

    def find(self, view: View) -> Iterator[Found]:
        """Yield token-like texts, in order. One as ``write`` writes it is found without what surrounds it."""
        data = view.data
        if len(data.translate(None, _DIGITS)) == len(data):
            return  # every code has a digit
        for match in self._pattern.finditer(data):
            opening, name, join, code, closing = match.groups()
            if not _is_token(data, match.span(), opening, join, code, closing):
                continue
            token = write(_canonical(name), code.upper().decode("ascii"))
            start, end = view.original(*match.span())
            if view.text[start:end].endswith(token):
                start = end - len(token)  # a backslash before an unchanged token is the text's own
            yield Found(start, end, token)


def exact(view: View) -> Iterator[Found]:
    """Yield what is written exactly as ``write`` writes a token, of whatever type."""
    for match in _ANY_TYPE.finditer(view.data):
        entity, code = match.groups()
        if not code.isdigit() and not code.isalpha():
            token = write(entity.decode("ascii"), code.decode("ascii"))
            yield Found(*view.original(*match.span()), token)


def stands_alone(data: bytes, start: int, end: int) -> bool:
    """Whether no letter or digit touches ``data[start:end]`` of a view."""
    return not ((start and data[start - 1] in _ALNUM) or (end < len(data) and data[end] in _ALNUM))


def is_token(text: str) -> bool:
    """Whether a text is a token as ``write`` writes it, of whatever type, and nothing else."""
    match = _ANY_TYPE.fullmatch(text.encode("utf-8", "surrogatepass"))
    return match is not None and not match[2].isdigit() and not match[2].isalpha()


def type_of(token: str) -> str:
    """The type of a token as ``write`` writes it."""
    return token[1 : token.rindex("_")]


def code_of(token: str) -> str:
    """The code of a token as ``write`` writes it."""
    return token[token.rindex("_") + 1 : -1]


def _is_token(data: bytes, span: tuple[int, int], opening: bytes, join: bytes, code: bytes, closing: bytes) -> bool:
    if code.isdigit() or code.isalpha():
        return False
    start, end = span
    if not opening and start and data[start - 1] in _ALNUM:
        return False
    if not closing and end < len(data) and data[end] in _ALNUM:
        return False
    if opening and closing:
        return True
    if not join or _LOOSE.search(join):
        return False
    # Without any bracket, a blank is not enough to join a type and a code.
    return bool(opening or closing or join.strip(b" \\"))


def _canonical(name: bytes) -> str:
    plain = _ENTITY.sub(b"_", name).decode("latin-1").upper()
    return "_".join(re.findall(r"[A-Z]+", plain))


TEXT = "TEXT"
"""Type of what is masked only because it reads as a token."""


@dataclass(frozen=True, slots=True)
class TokenReport:
    """What an answer made of its row's tokens. Tokens are not personal: they say nothing without the key."""

    missing: tuple[str, ...] = ()
    """Minted for the row and not in the answer. An answer need not repeat a token."""
    mangled: tuple[str, ...] = ()
    """Those of ``missing`` whose code is in the answer: the value is meant, and cannot be put back."""
    unknown: tuple[str, ...] = ()
    """In the answer and not minted for the row: invented, or another row's."""
    repeated: Mapping[str, int] = field(default_factory=dict)
    """In the answer more than once, with how often."""

    @property
    def problem(self) -> str | None:
        """Why the answer cannot be given back as it is; ``None`` if every token in it becomes a value."""
        if not self.unknown and not self.mangled:
            return None
        return f"tokens that are not the row's: {len(self.unknown)}, that cannot be read: {len(self.mangled)}"


class Restorer:
    """The tokens of one row and what they stand for."""

    __slots__ = ("_pattern", "originals", "texts")

    def __init__(self, pattern: TokenPattern) -> None:
        self._pattern = pattern
        self.texts: dict[str, str] = {}
        """Token → the text it stands for."""
        self.originals: dict[str, Any] = {}
        """Token → value, where that was no text: what a token that stands alone becomes."""

    @classmethod
    def of(cls, entities: Iterable[str], texts: Mapping[str, str], originals: Mapping[str, Any]) -> Restorer:
        """A restorer of tokens that were minted elsewhere, by a masker of these types."""
        restorer = cls(TokenPattern({TEXT, *entities}))
        restorer.texts.update(texts)
        restorer.originals.update(originals)
        return restorer

    def restore(self, text: str) -> str:
        """``text`` with this row's tokens replaced, in one pass."""
        if not self.texts:
            return text
        pieces: list[str] = []
        position = 0
        for found in self._pattern.find(text_view.view(text)):
            value = self.texts.get(found.token)
            if value is not None:
                pieces += text[position : found.start], value
                position = found.end
        pieces.append(text[position:])
        return "".join(pieces)

    def report(self, text: str) -> TokenReport:
        """What became of this row's tokens in a text."""
        view = text_view.view(text)
        found = Counter(item.token for item in self._pattern.find(view))
        written = {item.token for item in exact(view)}
        missing = tuple(token for token in self.texts if token not in found)
        return TokenReport(
            missing=missing,
            mangled=tuple(_mangled(view.data, missing)),
            unknown=tuple(token for token in {**found, **dict.fromkeys(sorted(written))} if token not in self.texts),
            repeated={token: count for token, count in found.items() if count > 1 and token in self.texts},
        )


def _mangled(data: bytes, missing: Iterable[str]) -> list[str]:
    """The tokens whose code stands in ``data`` by itself: five characters with a letter and a digit do so by chance
    once in millions of words."""
    found: list[str] = []
    upper = data.upper()
    for token in missing:
        code = code_of(token).encode("ascii")
        start = upper.find(code)
        while start >= 0 and not stands_alone(data, start, start + len(code)):
            start = upper.find(code, start + 1)
        if start >= 0:
            found.append(token)
    return found
