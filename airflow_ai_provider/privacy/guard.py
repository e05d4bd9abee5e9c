"""The leak guard: a last look at what is about to leave, whoever made it.

Masking is one piece of code, and any code can be wrong or be bypassed. The guard knows nothing of it: it searches the
finished text for validated values, and one that is there stops the call.
"""

from __future__ import annotations

from collections.abc import Iterable

from airflow_ai_provider.errors import PrivacyError
from airflow_ai_provider.privacy.detect import Detector
from airflow_ai_provider.privacy.spans import Span


class LeakGuard:
    """Looks for validated values of the given kinds. Safe to share between threads."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    @classmethod
    def of(cls, names: Iterable[str]) -> LeakGuard:
        """A guard for kinds or groups of kinds. Raises ``PrivacyError`` for an unknown name."""
        return cls(Detector(names, by_word=False))

    def findings(self, text: str) -> list[Span]:
        """The validated values in ``text``."""
        return self._detector.find(text)

    def check(self, text: str, *, place: str) -> None:
        """Raise ``PrivacyError``, which names place and kind and not the value, if a validated value is in ``text``."""
        found = self.findings(text)
        if found:
            kinds = ", ".join(sorted({span.entity for span in found}))
            raise PrivacyError(f"{place} holds a value of kind {kinds}; nothing was sent")

    def redact(self, text: str) -> str:
        """Return ``text`` with ``[kind]`` for each validated value."""
        pieces: list[str] = []
        position = 0
        for start, end, entity in self.findings(text):
            pieces += text[position:start], f"[{entity}]"
            position = end
        return "".join((*pieces, text[position:])) if pieces else text
