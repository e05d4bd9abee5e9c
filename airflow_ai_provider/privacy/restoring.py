"""Restoring: tokens of one row become its values again, and what an answer made of them is reported.

``Restorer`` holds a row's tokens. It looks at a text once: what it puts in is never looked at again, tokens that are
not in it stay as they are, and tokens are recognised in the forms that models give them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_ai_provider.privacy import normalise, tokens
from airflow_ai_provider.privacy.tokens import TokenPattern

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
        for found in self._pattern.find(normalise.view(text)):
            value = self.texts.get(found.token)
            if value is not None:
                pieces += text[position : found.start], value
                position = found.end
        pieces.append(text[position:])
        return "".join(pieces)

    def report(self, text: str) -> TokenReport:
        """What became of this row's tokens in a text."""
        view = normalise.view(text)
        found = Counter(item.token for item in self._pattern.find(view))
        exact = {item.token for item in tokens.exact(view)}
        missing = tuple(token for token in self.texts if token not in found)
        return TokenReport(
            missing=missing,
            mangled=tuple(_mangled(view.data, missing)),
            unknown=tuple(token for token in {**found, **dict.fromkeys(sorted(exact))} if token not in self.texts),
            repeated={token: count for token, count in found.items() if count > 1 and token in self.texts},
        )


def _mangled(data: bytes, missing: Iterable[str]) -> list[str]:
    """The tokens whose code stands in ``data`` by itself: five characters with a letter and a digit do so by chance
    once in millions of words."""
    found: list[str] = []
    upper = data.upper()
    for token in missing:
        code = tokens.code_of(token).encode("ascii")
        start = upper.find(code)
        while start >= 0 and not tokens.stands_alone(data, start, start + len(code)):
            start = upper.find(code, start + 1)
        if start >= 0:
            found.append(token)
    return found
