"""Find personal data and secrets in a text: RE2 finds candidates, validators decide, overlaps are resolved.

``KINDS`` is the register: a name as it stands in ``policy.yaml``, and what finds it. One pass of RE2 over the text
tells which kinds can be in it at all; only their finders are run, and most texts need none. All of it is linear in
the length of the text, whatever the text.

Two tiers of confidence. *Validated*: the checksum is right or, for kinds without one, the form is, next to a word
that names it where the form alone says little. *Context*: also what fails that but stands next to such a word; a
number with a typing error is personal too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import re2

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
from airflow_ai_provider.privacy.normalise import View
from airflow_ai_provider.privacy.numbers import NumberFinder, NumberKind
from airflow_ai_provider.privacy.regex import bytes_options
from airflow_ai_provider.privacy.spans import Span, resolve

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
    "cn_id": (numbers.CN_ID,),
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
    """Finds the chosen kinds; safe to share between threads.

    ``by_word`` is the second tier: see the module. Raises ``PrivacyError`` for a name that is neither kind nor group.
    """

    def __init__(self, names: Iterable[str], *, by_word: bool = True) -> None:
        self.kinds = expand(names)
        chosen = [finder for name, finders in KINDS.items() if name in self.kinds for finder in finders]
        scanners: list[tuple[bytes, Scanner]] = [
            (finder.sign, partial(finder.scan, by_word=by_word) if finder.by_word else finder.scan)
            for finder in chosen
            if isinstance(finder, Finder)
        ]
        # In the order in which they claim a window of digits: the stricter the validator, the earlier.
        kinds = [kind for kind in numbers.NUMBER_KINDS if kind in chosen]
        if kinds:
            scanners.append((numbers.SIGN, NumberFinder(kinds, by_word=by_word)))
        self._scanners = [scan for _, scan in scanners]
        self._gate = _Gate([sign for sign, _ in scanners])

    def find(self, text: str) -> list[Span]:
        """Return what is found, in order and disjoint. Offsets count code points of ``text``."""
        return resolve(self.candidates(normalise.view(text)), _RANK)

    def candidates(self, view: View) -> Iterator[Span]:
        """Yield findings as they come; they may overlap."""
        for index in self._gate.open_for(view.data):
            yield from self._scanners[index](view)


class _Gate:
    """Tells in one pass which of several patterns are in a text."""

    def __init__(self, signs: Sequence[bytes]) -> None:
        self._everything = range(len(signs))
        self._set = re2.Set.SearchSet(bytes_options())
        for sign in signs:
            self._set.Add(sign)
        # RE2 reports a search for which it had too little memory as one without a match. This one always matches.
        self._always = self._set.Add(b"")
        self._set.Compile()

    def open_for(self, data: bytes) -> Iterable[int]:
        """Indexes of the patterns that are there; all of them where the search gave up."""
        found = self._set.Match(data)
        if found is None or self._always not in found:
            return self._everything
        found.remove(self._always)
        return sorted(found)
