"""The detector: all kinds of personal data and secrets, a profile's own patterns and its allow list.

What a profile says is not personal, though it looks so: the bank's own hotline, its addresses, its order numbers.

An entry is a value, or a pattern between slashes. Values of digits are compared without their separators, others
without regard to case and width.

A profile's own patterns, searched in a text as people mean it: full-width forms as ASCII, nothing invisible.

Find personal data and secrets in a text: RE2 finds candidates, validators decide, overlaps are resolved.

``KINDS`` is the register: a name as it stands in ``policy.yaml``, and what finds it. One pass of RE2 over the text
tells which kinds can be in it at all; only their finders are run, and most texts need none. All of it is linear in
the length of the text, whatever the text.

Two tiers of confidence. *Validated*: the checksum is right or, for kinds without one, the form is, next to a word
that names it where the form alone says little. *Context*: also what fails that but stands next to such a word; a
number with a typing error is personal too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from airflow_ai_provider.core.errors import PrivacyError
from airflow_ai_provider.core.policy.masking import bounded_options, compile_pattern
from airflow_ai_provider.core.privacy.detectors import (
    credentials,
    dates_and_documents,
    emails_ibans_urls,
    names_and_addresses,
    numbers,
    text_view,
)
from airflow_ai_provider.core.privacy.detectors import emails_ibans_urls as patterns
from airflow_ai_provider.core.privacy.detectors.numbers import NumberFinder, NumberKind
from airflow_ai_provider.core.privacy.detectors.text_view import Gate, Span, View, plain, resolve, shared_gate

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


Scanner = Callable[[View], Iterator[Span]]


class Finder(NamedTuple):
    """How a kind is found."""

    sign: bytes
    """A pattern that every text which holds one matches, on the bytes of its view."""
    scan: Callable[..., Iterator[Span]]
    by_word: bool = False
    """Whether ``scan`` takes ``by_word``: it has a second tier."""


KINDS: Mapping[str, tuple[Finder | NumberKind, ...]] = {
    "secret": (Finder(credentials.SIGN, credentials.find_secrets, by_word=True),),
    "email": (Finder(patterns.EMAIL_SIGN, patterns.find_emails),),
    "iban": (Finder(patterns.IBAN_SIGN, patterns.find_ibans, by_word=True),),
    "cn_id": (numbers.CN_ID, numbers.CN_ID_15),
    "card": (numbers.CARD,),
    "ssn": (numbers.SSN,),
    "passport": (Finder(dates_and_documents.PASSPORT_SIGN, dates_and_documents.PASSPORT.find, by_word=True),),
    "driver_license": (
        Finder(dates_and_documents.DRIVER_LICENSE_SIGN, dates_and_documents.DRIVER_LICENSE.find, by_word=True),
    ),
    "bank_account": (
        numbers.BANK_ACCOUNT,
        Finder(dates_and_documents.SORT_CODE_SIGN, dates_and_documents.SORT_CODE.find, by_word=True),
    ),
    "cn_plate": (Finder(dates_and_documents.PLATE_SIGN, dates_and_documents.find_plates),),
    "mac": (Finder(emails_ibans_urls.MAC_SIGN, emails_ibans_urls.find_macs),),
    "ip": (Finder(patterns.IP_SIGN, patterns.find_ips),),
    "birth_date": (Finder(dates_and_documents.BIRTH_SIGN, dates_and_documents.find_birth_dates),),
    "date": (Finder(dates_and_documents.SIGN, dates_and_documents.find_dates),),
    "phone": (numbers.PHONE,),
    "url": (Finder(emails_ibans_urls.URL_SIGN, emails_ibans_urls.find_urls),),
    "address": (Finder(names_and_addresses.SIGN, names_and_addresses.find_addresses),),
}
"""By name, the most specific first: that order settles which type equally long findings have."""

GROUPS: Mapping[str, frozenset[str]] = {
    "standard": frozenset(KINDS) - {"date", "url"},
    "all": frozenset(KINDS),
}
"""Names for several kinds. Dates and web addresses are seldom personal and often what a question is about."""

_RANK = tuple(KINDS)


def expand(names: Iterable[str]) -> frozenset[str]:
    """The kinds that names of kinds and groups stand for. Raises ``PrivacyError`` for a name that is neither."""
    kinds: set[str] = set()
    unknown: set[str] = set()
    for name in names:
        if name in GROUPS:
            kinds |= GROUPS[name]
        else:
            (kinds if name in KINDS else unknown).add(name)
    if unknown:
        listed = ", ".join(map(repr, sorted(unknown)))
        raise PrivacyError(f"unknown detector {listed}: expected some of {', '.join((*GROUPS, *KINDS))}")
    return frozenset(kinds)


class Detector:
    """Finds the chosen kinds, and what patterns of the user match; safe to share between threads.

    ``by_word`` is the second tier: see the module. ``patterns`` maps a type to a user's pattern, searched in the text
    with full-width forms folded and invisible characters left out. ``allow`` lists what is not personal here
    (see ``Allowed``). Raises ``PrivacyError`` for a name that is neither kind nor group, or a pattern RE2 cannot use.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        by_word: bool = True,
        patterns: Mapping[str, str] | None = None,
        allow: Iterable[str] = (),
    ) -> None:
        self.kinds = expand(names)
        self._allowed = Allowed(allow)
        self._patterns = UserPatterns(patterns) if patterns else None
        self._scanners, signs = _scanners(self.kinds, by_word)
        self._gate = shared_gate(tuple(signs)) if signs else None

    def find(self, text: str) -> list[Span]:
        """Return what is found, in order and disjoint. Offsets count code points of ``text``."""
        found = self.candidates(text_view.view(text))
        return resolve(found, _RANK) if found else found

    def candidates(self, view: View) -> list[Span]:
        """Return findings as they come; they may overlap."""
        found: list[Span] = []
        if self._gate is not None:
            for index in self._gate.open_for(view.data):
                found += self._scanners[index](view)
        if self._patterns is not None:
            found += self._patterns.find(view.text)
        if found and self._allowed:
            return [span for span in found if not self._allowed.covers(view.text[span.start : span.end])]
        return found


def _scanners(kinds: frozenset[str], by_word: bool) -> tuple[list[Scanner], list[bytes]]:
    """What to run for some kinds, and the sign of each."""
    chosen = [finder for name, finders in KINDS.items() if name in kinds for finder in finders]
    scanners: list[Scanner] = []
    signs: list[bytes] = []
    for finder in chosen:
        if isinstance(finder, Finder):
            scanners.append(partial(finder.scan, by_word=by_word) if finder.by_word else finder.scan)
            signs.append(finder.sign)
    # In the order in which they claim a window of digits: the stricter the validator, the earlier.
    if number_kinds := [kind for kind in numbers.NUMBER_KINDS if kind in chosen]:
        scanners.append(NumberFinder(number_kinds, by_word=by_word))
        signs.append(numbers.SIGN)
    return scanners, signs
