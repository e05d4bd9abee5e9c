"""Numbers of documents, with letters in them: passports, driving licences, sort codes, Chinese licence plates.

None carries a checksum in print, so a form alone says little: all but the plates are found only behind a word that
names them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from airflow_ai_provider.privacy.normalise import LETTER, View
from airflow_ai_provider.privacy.regex import compile_bytes
from airflow_ai_provider.privacy.spans import Span

_EDGE = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") | {LETTER}
_REACH = 56
"""Bytes behind a word in which its number must end."""
_NUMBER_WORD = r"(?:[’']?s)?(?: ?(?:id|no|nr|num|number|#)\b\.?)?"
# A part holds a digit, or is a letter or two at the head: no words are taken in.
_PART = rb"[A-Za-z]{0,5}[0-9][A-Za-z0-9]*"


def _behind(form: bytes) -> re.Pattern[bytes]:
    """A number at the end of a gap without digits, token brackets or the end of a sentence."""
    return re.compile(rb"[^0-9\[\].;\n!?]{0,20}?(?<![A-Za-z0-9\xe0])(" + form + rb")(?![A-Za-z0-9\xe0])")


@dataclass(frozen=True, slots=True)
class Document:
    """The words that name a document, and what its number looks like."""

    entity: str
    words: re.Pattern[str]
    form: re.Pattern[bytes]
    loose: re.Pattern[bytes] | None
    """What may be a number with an error in it; it must hold five digits."""

    def find(self, view: View, *, by_word: bool) -> Iterator[Span]:
        """Yield the number behind each word."""
        for word in self.words.finditer(view.text):
            start = view.byte_at(word.end())
            found, digits = self.form.match(view.data, start, start + _REACH), 4
            if found is None and by_word and self.loose:
                found, digits = self.loose.match(view.data, start, start + _REACH), 5
            if found and sum(map(_is_digit, found[1])) >= digits:
                yield Span(*view.original(*found.span(1)), self.entity)


def _is_digit(byte: int) -> bool:
    return 48 <= byte <= 57


PASSPORT = Document(
    "passport",
    re.compile(rf"护照|護照|\b(?:passport|passeport|pasaporte|reisepass|passaporto){_NUMBER_WORD}", re.I),
    # China, the United States, and ICAO 9303's nine characters for others.
    _behind(
        rb"(?:[A-Za-z]{1,2}[ -]?)?[0-9](?:[ -]?[0-9]){5,8}|[0-9]{2}[A-Za-z]{2}[0-9]{5}"
        rb"|[CFGHJKcfghjk][CFGHJKLMNPRTVWXYZcfghjklmnprtvwxyz0-9]{8}"
    ),
    _behind(rb"(?:[A-Za-z]{1,3}-)?" + _PART + rb"(?:-" + _PART + rb"){0,3}"),
)
DRIVER_LICENSE = Document(
    "driver_license",
    re.compile(
        rf"驾驶证|駕駛證|驾照|駕照"
        rf"|\b(?:driv(?:er[’']?s?|ing) licen[cs]e|driver[’']?s? permit|f[üu]hrerschein|permis de conduire)"
        rf"{_NUMBER_WORD}",
        re.I,
    ),
    _behind(_PART + rb"(?:[ -]" + _PART + rb"){0,4}"),
    None,
)
SORT_CODE = Document(
    "bank_account", re.compile(r"\bsort[ -]?code", re.I), _behind(rb"[0-9]{2}[ -]?[0-9]{2}[ -]?[0-9]{2}"), None
)
PASSPORT_SIGN = rb"(?i:pass(?:e?port|aporto)|pasaporte|reisepass)|\xc0[^0-9\xc0.;\n!?]*[0-9]"
DRIVER_LICENSE_SIGN = rb"(?i:driv|f.hrersch|permis )|\xc0[^0-9\xc0.;\n!?]*[0-9]"
SORT_CODE_SIGN = rb"(?i:sort[ -]?code)"

# GA 36-2018: province, office, and five characters of which two may be letters; six with one of the first for the
# kind of engine, at the head or the end, for vehicles with new energy. I and O are not used.
_PROVINCES = frozenset("京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼")
_PLATE = compile_bytes(rb"\xc0[A-HJ-NP-Z][ \xb7.-]?(?:[A-HJ-NP-Z0-9]{5,6}|[A-HJ-NP-Z0-9]{4}\xc0)")
PLATE_SIGN = rb"\xc0[A-HJ-NP-Z][ \xb7.-]?[A-HJ-NP-Z0-9]{4}"
_PLATE_BODY = re.compile(r"(?=(?:[0-9]*[A-Z]){0,2}[0-9]*$)[0-9A-Z]{5}|[A-HJK][A-Z0-9][0-9]{4}|[0-9]{5}[A-HJK]")
_SPECIAL = frozenset("学警港澳挂试超领")


def find_plates(view: View) -> Iterator[Span]:
    """Yield Chinese licence plates."""
    for match in _PLATE.finditer(view.data):
        start, end = match.span()
        if end < len(view.data) and view.data[end] in _EDGE:
            continue
        first, last = view.original(start, end)
        if view.text[first] in _PROVINCES and _is_plate(view, start, end, view.text[last - 1]):
            yield Span(first, last, "cn_plate")


def _is_plate(view: View, start: int, end: int, final: str) -> bool:
    body = view.data[start + 2 : end].lstrip(b" \xb7.-")
    if body[-1] == 0xC0:
        return final in _SPECIAL and any(map(_is_digit, body))
    return _PLATE_BODY.fullmatch(body.decode("ascii")) is not None
