"""A profile's own patterns, searched in a text as people mean it: full-width forms as ASCII, nothing invisible."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from airflow_ai_provider.errors import PrivacyError
from airflow_ai_provider.patterns import bounded_options, compile_pattern
from airflow_ai_provider.privacy.normalise import plain
from airflow_ai_provider.privacy.regex import Gate
from airflow_ai_provider.privacy.spans import Span

_LONE = re.compile("[\ud800-\udfff]")


class UserPatterns:
    """Finds what a user's patterns match, by type. Raises ``PrivacyError`` for a pattern that cannot be used."""

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self._entities = tuple(patterns)
        self._compiled = []
        for entity, pattern in patterns.items():
            try:
                self._compiled.append(compile_pattern(pattern))
            except ValueError as problem:
                raise PrivacyError(f"masking: patterns: {entity}: {problem}") from None
        self._gate = Gate(tuple(patterns.values()), bounded_options())

    def find(self, text: str) -> Iterator[Span]:
        """Yield matches; those of different patterns may overlap."""
        visible = plain(text)
        searched = _LONE.sub("\ufffd", visible.text)  # RE2 takes no half of a surrogate pair
        for index in self._gate.open_for(searched):
            for match in self._compiled[index].finditer(searched):
                if match.end() > match.start():
                    yield Span(*visible.original(*match.span()), self._entities[index])
