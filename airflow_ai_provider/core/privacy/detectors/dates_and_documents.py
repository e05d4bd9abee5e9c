"""Find dates, dates of birth and numbers of identity documents.

Calendar dates in the usual orders and languages, and dates of birth: those next to a word that says so.

A date counts if the day exists. Next to a word for birth, eight digits in a row and two-digit years count as well.

Numbers of documents, with letters in them: passports, driving licences, sort codes, Chinese licence plates.

None carries a checksum in print, so a form alone says little: all but the plates are found only behind a word that
names them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from airflow_ai_provider.core.privacy.detectors.checksums import plausible_date
from airflow_ai_provider.core.privacy.detectors.text_view import LETTER, Span, View, compile_bytes

_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "jan ene gen",
            "feb fév fev",
            "mar mär mrz",
            "apr avr abr",
            "may mai mei maj mag",
            "jun jui giu",
            "jul juil lug",
            "aug aoû ago",
            "sep set",
            "oct okt ott out",
            "nov",
            "dec dez déc dic",
        ),
        start=1,
    )
    for name in names.split()
}
_WORD = rb"[A-Za-z\xe0]{3,10}"
_DAY_FIRST = (
    rb"[0-9]{1,2}(?:st|nd|rd|th|er|\.)?[ -](?:de |of )?" + _WORD + rb"[.,]{0,2}[ -](?:de |of )?[0-9]{4}"
    rb"|[0-9]{1,2}-[A-Za-z]{3}-[0-9]{2}"
)
_MONTH_FIRST = _WORD + rb"\.? [0-9]{1,2}(?:st|nd|rd|th)?(?:,? |,)[0-9]{4}|" + _WORD + rb"[ -][12][0-9]{3}"
_TIME = rb"(?:[ T][0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?"
_NUMERIC = (
    rb"[0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}" + _TIME
) + rb"|[0-9]{1,2}[-/.][0-9]{1,2}[-/.](?:[0-9]{4}|[0-9]{2})|[0-9]{1,2}/[12][0-9]{3}"
# Chinese: year, month and day are marked; the view holds one WIDE byte for each mark.
_MARKED = rb"(?:[0-9]{4}|[0-9]{2}) ?\xc0 ?[0-9]{1,2} ?\xc0 ?[0-9]{1,2} ?\xc0"
_DATE = compile_bytes(b"|".join((_DAY_FIRST, _MONTH_FIRST, _NUMERIC, _MARKED)))
_COMPACT = compile_bytes(rb"(?:19|20)[0-9]{6}|[0-9]{2}(?:0[1-9]|1[0-2])[0-3][0-9]")
SIGN = (
    rb"[A-Za-z\xe0][.,]{0,2}[ -](?:de |of )?(?:19|20)[0-9]{2}\b"
    rb"|[A-Za-z\xe0]\.? [0-9]{1,2}(?:st|nd|rd|th)?[, ]{1,2}(?:19|20)[0-9]{2}\b"
    rb"|[0-9][-/.][0-9]{1,2}[-/.][0-9]|[0-9]-[A-Za-z]{3}-[0-9]|[0-9]/[12][0-9]{3}|[0-9] ?\xc0 ?[0-9]{1,2} ?\xc0 ?[0-9]"
)
BIRTH_SIGN = (
    rb"(?i:born|birth|d\.?o\.?b|geb|n\xe0e? le|naiss|nacid|nacim|nat[oa] il|nascita)"
    rb"|\xc0[^0-9\xc0.;\n!?]*[0-9]|[0-9]\xc0"
)

_BIRTH_BEFORE = re.compile(
    r"(?:出生(?:日期|年月日?|时间|于|在)?|生日|生辰|生于"
    r"|\b(?:born(?: on| in)?|d\.?o\.?b\.?|birth ?da(?:te|y)|date of birth|geboren(?: am)?|geburtsdatum"
    r"|né(?:e)? le|date de naissance|nacid[oa](?: el)?|fecha de nacimiento|nat[oa] il|data di nascita)(?![A-Za-z]))"
    r"[^0-9\[\]。；;\n\r!?！？]{0,16}$",
    re.I,
)
_BIRTH_WORD = re.compile(r"生|born|birth|d\.?o\.?b|geb|n[ée]e? le|naiss|nacid|nacim|nat[oa] il|nascita", re.I)
_BIRTH_AFTER = re.compile(r"\s{0,2}(?:出生|生(?![产效成日意活])|\(?(?:born|dob|date of birth)\b)", re.I)
_CONTEXT_BEFORE = 48
_NUMBERS = re.compile(rb"[0-9]+")
_MARKS = re.compile("年.*月.*[日号號]")
_EDGE = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\xe0")
_JOINS = b"-/."


def find_dates(view: View) -> Iterator[Span]:
    """Yield calendar dates, with the time of day where one follows."""
    for start, end in _dates(view, two_digit_years=False):
        yield Span(start, end, "date")


def find_birth_dates(view: View) -> Iterator[Span]:
    """Yield dates next to a word for birth."""
    if _BIRTH_WORD.search(view.text) is None:
        return
    for start, end in chain(_dates(view, two_digit_years=True), _compact_dates(view)):
        before = view.text[max(0, start - _CONTEXT_BEFORE) : start]
        if _BIRTH_BEFORE.search(before) or _BIRTH_AFTER.match(view.text, end, end + 20):
            yield Span(start, end, "birth_date")


def _dates(view: View, *, two_digit_years: bool) -> Iterator[tuple[int, int]]:
    data = view.data
    for match in _DATE.finditer(data):
        start, end = match.span()
        if _goes_on(data, start, end):
            continue
        first, last = view.original(start, end)
        if _is_date(view.text[first:last], data[start:end], two_digit_years):
            yield first, last


def _compact_dates(view: View) -> Iterator[tuple[int, int]]:
    data = view.data
    for match in _COMPACT.finditer(data):
        start, end = match.span()
        digits = match.group()
        if _goes_on(data, start, end):
            continue
        year = _full_year(int(digits[:-4]))
        if plausible_date(year, int(digits[-4:-2]), int(digits[-2:])):
            yield view.original(start, end)


def _goes_on(data: bytes, start: int, end: int) -> bool:
    """Whether letters or digits touch, or further digits join on with a date's own separators."""
    before, after = data[max(0, start - 2) : start], data[end : end + 2]
    if (before and before[-1] in _EDGE) or (after and after[0] in _EDGE):
        return True
    joined_before = len(before) == 2 and before[1] in _JOINS and before[:1].isdigit()
    joined_after = len(after) == 2 and after[0] in _JOINS and after[1:].isdigit()
    return joined_before or joined_after


def _is_date(text: str, written: bytes, two_digit_years: bool) -> bool:
    if 0xC0 in written:
        if not _MARKS.search(text):
            return False
        written = written.replace(b"\xc0", b" ")
    parts = _NUMBERS.findall(written)[:3]  # a time of day may follow
    numbers = [int(part) for part in parts]
    if len(numbers) < 3:
        return _has_month(text, numbers)
    first, second, third = numbers
    if first > 31 or len(parts[0]) == 4:
        return plausible_date(_full_year(first), second, third)
    if third < 100 and not two_digit_years and not (b"/" in written or all(len(part) == 2 for part in parts)):
        return False  # 1.2.13 is more often something else
    year = _full_year(third)
    return plausible_date(year, second, first) or plausible_date(year, first, second)


def _has_month(text: str, numbers: list[int]) -> bool:
    """A month's name with a year, and with a day before; or 5/1990."""
    month = _month(text)
    if len(numbers) == 1:
        return month is not None and plausible_date(numbers[0], month, 1)
    if month is None:
        return "/" in text and numbers[0] <= 12 and plausible_date(numbers[1], numbers[0], 1)
    return plausible_date(_full_year(numbers[1]), month, numbers[0])


def _month(text: str) -> int | None:
    for word in re.findall(r"[^\W\d_]{3,10}", text):
        folded = word.lower()
        month = _MONTHS.get(folded[:4]) or _MONTHS.get(folded[:3])
        if month:
            return month
    return None


def _full_year(year: int) -> int:
    """Two digits as a year of birth, 1930 to 2029; anything else as it is."""
    if year > 99:
        return year
    return 1900 + year if year >= 30 else 2000 + year


_DOCUMENT_EDGE = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") | {LETTER}
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
        if end < len(view.data) and view.data[end] in _DOCUMENT_EDGE:
            continue
        first, last = view.original(start, end)
        if view.text[first] in _PROVINCES and _is_plate(view, start, end, view.text[last - 1]):
            yield Span(first, last, "cn_plate")


def _is_plate(view: View, start: int, end: int, final: str) -> bool:
    body = view.data[start + 2 : end].lstrip(b" \xb7.-")
    if body[-1] == 0xC0:
        return final in _SPECIAL and any(map(_is_digit, body))
    return _PLATE_BODY.fullmatch(body.decode("ascii")) is not None
