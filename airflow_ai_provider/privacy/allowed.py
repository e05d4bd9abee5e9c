"""What a profile says is not personal, though it looks so: the bank's own hotline, its addresses, its order numbers.

An entry is a value, or a pattern between slashes. Values of digits are compared without their separators, others
without regard to case and width.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from airflow_ai_provider.errors import PrivacyError
from airflow_ai_provider.patterns import compile_pattern

_SEPARATORS = re.compile(r"[\s()./_·-]+")
_DIGITS = re.compile(r"\+?[\d\s()./_·-]+")


def pattern_of(entry: str) -> str | None:
    """The pattern that an entry is, or ``None`` for a value."""
    return entry[1:-1] if len(entry) > 2 and entry[0] == entry[-1] == "/" else None


class Allowed:
    """Answers whether a finding is allowed. Raises ``PrivacyError`` for a pattern that cannot be used."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._values: set[str] = set()
        self._patterns = []
        for entry in entries:
            pattern = pattern_of(entry)
            if pattern is None:
                self._values.add(_folded(entry))
                continue
            try:
                self._patterns.append(compile_pattern(pattern))
            except ValueError as problem:
                raise PrivacyError(f"masking: allow: {problem}") from None

    def __bool__(self) -> bool:
        return bool(self._values or self._patterns)

    def covers(self, found: str) -> bool:
        """Whether a finding, as written in the text, is one of the values or matches a pattern whole."""
        if _folded(found) in self._values:
            return True
        plain = unicodedata.normalize("NFKC", found)
        return any(pattern.fullmatch(plain) is not None for pattern in self._patterns)


def _folded(value: str) -> str:
    plain = unicodedata.normalize("NFKC", value).strip()
    return _SEPARATORS.sub("", plain) if _DIGITS.fullmatch(plain) else plain.casefold()
