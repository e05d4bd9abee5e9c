"""Find personal data and secrets in a text: RE2 finds candidates, validators decide, overlaps are resolved.

``KINDS`` is the register: a name as it stands in ``policy.yaml``, and what finds it. One pass of RE2 over the text
tells which kinds can be in it at all; only their finders are run, and most texts need none. All of it is linear in
the length of the text, whatever the text.

Two tiers of confidence. *Validated*: the checksum is right or, for kinds without one, the form is, next to a word
that names it where the form alone says little. *Context*: also what fails that but stands next to such a word; a
number with a typing error is personal too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from airflow_ai_provider.errors import PrivacyError
from airflow_ai_provider.privacy import (
    credentials,
    dates,
    documents,
    normalise,
    numbers,
    patterns,
    places,
    web,
)
from airflow_ai_provider.privacy.allowed import Allowed
from airflow_ai_provider.privacy.normalise import View
from airflow_ai_provider.privacy.numbers import NumberFinder, NumberKind
from airflow_ai_provider.privacy.regex import shared_gate
from airflow_ai_provider.privacy.spans import Span, resolve
from airflow_ai_provider.privacy.userpatterns import UserPatterns

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
    "passport": (Finder(documents.PASSPORT_SIGN, documents.PASSPORT.find, by_word=True),),
    "driver_license": (Finder(documents.DRIVER_LICENSE_SIGN, documents.DRIVER_LICENSE.find, by_word=True),),
    "bank_account": (
        numbers.BANK_ACCOUNT,
        Finder(documents.SORT_CODE_SIGN, documents.SORT_CODE.find, by_word=True),
    ),
    "cn_plate": (Finder(documents.PLATE_SIGN, documents.find_plates),),
    "mac": (Finder(web.MAC_SIGN, web.find_macs),),
    "ip": (Finder(patterns.IP_SIGN, patterns.find_ips),),
    "birth_date": (Finder(dates.BIRTH_SIGN, dates.find_birth_dates),),
    "date": (Finder(dates.SIGN, dates.find_dates),),
    "phone": (numbers.PHONE,),
    "url": (Finder(web.URL_SIGN, web.find_urls),),
    "address": (Finder(places.SIGN, places.find_addresses),),
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
    (``allowed.py``). Raises ``PrivacyError`` for a name that is neither kind nor group, or a pattern RE2 cannot use.
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
        found = self.candidates(normalise.view(text))
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
