"""Find personal data and secrets in a text: RE2 finds candidates, validators decide, overlaps are resolved.

``DETECTORS`` is the register: a name as it stands in ``policy.yaml``, and what finds it. A type joins by one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from airflow_ai_provider.errors import PrivacyError
from airflow_ai_provider.privacy import normalise
from airflow_ai_provider.privacy.credentials import PATTERNS as secrets
from airflow_ai_provider.privacy.credentials import find_secrets
from airflow_ai_provider.privacy.normalise import View
from airflow_ai_provider.privacy.numbers import CARD, CN_ID, NUMBER_KINDS, PHONE, NumberKind, find_numbers
from airflow_ai_provider.privacy.numbers import PATTERNS as runs
from airflow_ai_provider.privacy.patterns import PATTERNS as signs
from airflow_ai_provider.privacy.patterns import find_emails, find_ibans, find_ips
from airflow_ai_provider.privacy.regex import compile_bytes
from airflow_ai_provider.privacy.spans import Span, resolve

Scanner = Callable[[View], Iterator[Span]]

DETECTORS: Mapping[str, Scanner | NumberKind] = {
    "secret": find_secrets,
    "email": find_emails,
    "iban": find_ibans,
    "cn_id": CN_ID,
    "card": CARD,
    "ip": find_ips,
    "phone": PHONE,
}
"""By name, the most specific first: that order settles which type equally long findings have."""

_RANK = tuple(DETECTORS)
_ANYTHING = compile_bytes(b"|".join(b"(?:%b)" % p.pattern for p in (*secrets, *signs, *runs)))
"""One look instead of one for each pattern: most texts hold nothing, and are through after it."""


def require_known(names: Iterable[str]) -> None:
    """Raise ``PrivacyError`` if a name is not in ``DETECTORS``."""
    unknown = sorted(set(names) - DETECTORS.keys())
    if unknown:
        listed = ", ".join(map(repr, unknown))
        raise PrivacyError(f"unknown detector {listed}: expected some of {', '.join(DETECTORS)}")


class Detector:
    """Finds the chosen types; safe to share between threads.

    Raises ``PrivacyError`` for a name that is not in ``DETECTORS``.
    """

    def __init__(self, entities: Iterable[str]) -> None:
        self.entities = frozenset(entities)
        require_known(self.entities)
        chosen = [finder for name, finder in DETECTORS.items() if name in self.entities]
        self._scanners = tuple(finder for finder in chosen if not isinstance(finder, NumberKind))
        self._numbers = tuple(kind for kind in NUMBER_KINDS if kind in chosen)

    def find(self, text: str) -> list[Span]:
        """Return what is found, in order and disjoint. Offsets count code points of ``text``."""
        return resolve(self.candidates(normalise.view(text)), _RANK)

    def candidates(self, view: View) -> Iterator[Span]:
        """Yield findings as they come; they may overlap."""
        data = view.data
        if b"@" not in data and _ANYTHING.search(data) is None:
            return
        for scan in self._scanners:
            yield from scan(view)
        if self._numbers:
            yield from find_numbers(view, self._numbers)
