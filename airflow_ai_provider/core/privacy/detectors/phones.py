"""The shapes of telephone numbers.

A number is accepted for its shape, not for being in service: numbering plans change, and a wrong digit in a real
number is personal still. The ``phonenumbers`` library takes 20 µs a candidate and rejects such numbers.

Shapes are tried on one short window of a numeric run (at most 40 bytes), written as separators and digits.
"""

from __future__ import annotations

import re

from airflow_ai_provider.core.privacy.detectors.text_view import WIDE, View

_EXTENSION = re.compile(rb"[ ,]{0,2}(?:x|ext\.?|extn\.?|#|\xc0{1,3})[ .:]{0,2}\d{1,6}(?![0-9A-Za-z])", re.IGNORECASE)
# Chinese words for an extension; the view holds one WIDE byte for each of their characters.
_EXTENSION_WORDS = ("转", "轉", "分机", "分機", "内线")

_CN_MOBILE = re.compile(rb"(?:\(?(?:\+|00)?86\)?[ -]?)?1[ ._\xb7-]?[3-9](?:[ ._\xb7-]?\d){9}")
_CN_LANDLINE = re.compile(
    rb"(?:\(?(?:\+|00)?86\)?[ -]?)?\(?0?(?:10|2\d|[3-9]\d\d)\)?[ -]{0,3}\d{3,4}[ -]?\d{4}(?:-\d{1,5})?"
)
_NANP = re.compile(rb"(?:\+?1[ .-]?)?(?:\(\d{3}\)[ -]{0,2}|\d{3}([ .-]))\d{3}[ .-]?\d{4}")
_NANP_BARE = re.compile(rb"[2-9]\d\d[2-9]\d{6}")
_INTERNATIONAL = re.compile(rb"\(?(?:\+ ?\(?|00)[1-9][0-9 ()./_\xb7-]*\d")
_TRUNK = re.compile(rb"(?:\(0\d{1,5}\)|0\d{0,5})(?:[ ./-]{1,3}\d{1,8}){1,5}")
_AREA = re.compile(rb"\(\d{2,5}\)[ /-]{0,2}(?:\d{1,3}/)?\d{3,8}(?:[ -]?\d{2,5}){0,2}")
_GROUPED = re.compile(
    rb"\d{2,5}([ .-])\d{2,4}(?:\1\d{2,4}){1,4}|\d{2,4}[ .-]\d{4}|\d{5}[ .-]\d{5}|\d{2,5}[ -]\d{6,8}"
    rb"|\d{2,3}[ /]\d{3,5}[ -]\d{3,4}"  # area, then a pair
)
_IN_MOBILE = re.compile(rb"[6-9]\d{9}")
_RU_TRUNK = re.compile(rb"8[ -]?\(?\d{3}\)?[ -]?\d{3}[ -]?\d{2}[ -]?\d{2}")
_TRUNK_BARE = re.compile(rb"0[1-9]\d{7,9}")
_CURRENCIES = frozenset(b"USD EUR GBP CNY RMB JPY HKD CHF SEK NOK DKK PLN AUD CAD SGD INR".split())
_AMOUNT_AFTER = re.compile(rb"[ ]?(?:%|\$|(?:" + b"|".join(sorted(_CURRENCIES)) + rb"|kr|euros?|dollars?)\b)")
_STREET_WORDS = (
    rb"street|st|avenue|ave|road|rd|drive|dr|lane|ln|boulevard|blvd|court|ct|place|pl|square|sq|terrace|way|crescent"
    rb"|close|highway|parkway|suite|apt|apartment|unit|rue|via|calle|rua|stra(?:ss|\xe0)e|weg|gasse|platz|gade|gatan"
)
# A capitalised word, or within four words one that names a street.
_NAMED_STREET_AFTER = re.compile(rb" (?:[A-Za-z\xe0'.-]+,? ){1,4}?(?:" + _STREET_WORDS + rb")\b", re.I)
_NAME_AFTER = re.compile(rb" (?:[A-Z\xe0][a-z\xe0]|[A-Z][.])")
_UNIT_BEFORE = re.compile(rb"(?i:\b(?:suite|ste|apt|apartment|unit|flat|room|house|box)\.? ?)$")
_DIGIT_GROUPS = re.compile(rb"\d+")
_ISO_DATE = re.compile(rb"(?:19|20)\d\d([ ./-]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?:\D+\d\d?){0,3}")
_WRITTEN_DATE = re.compile(rb"(?:0[1-9]|[12]\d|3[01])([ ./-]?)(?:0[1-9]|[12]\d|3[01])\1(?:19|20)\d\d")
_YEAR = re.compile(rb"(?:19|20)\d\d")

# 123-45-6789 is a US social security number.
_OTHER_GROUPS = frozenset({(3, 2, 4)})


def has_own_form(window: bytes, digits: bytes) -> bool:
    """Whether a window of a numeric run (from ``+`` or ``(`` to the last digit) has a form that only phones have."""
    count = len(digits)
    if window[0] == 43 or window[:2] == b"(+":
        return _is_international(window, digits)
    if window[:2] == b"00" and _is_international(window, digits):
        return True
    if count == 10 and (_is_nanp(window) or _IN_MOBILE.fullmatch(window)):
        return True
    if count >= 11 and window[0] in b"18(" and (_CN_MOBILE.fullmatch(window) or _NANP.fullmatch(window)):
        return True
    if window[0] == 56 and _RU_TRUNK.fullmatch(window):
        return True
    if (window[0] == 48 or window[:2] == b"(0") and _has_trunk(window, count):
        return True
    return window[0] == 40 and 7 <= count <= 13 and _AREA.fullmatch(window) is not None


def _has_trunk(window: bytes, count: int) -> bool:
    """Whether a number with a leading zero is written as one that is dialled so."""
    if _CN_LANDLINE.fullmatch(window) or _TRUNK_BARE.fullmatch(window):
        return True
    if not _TRUNK.fullmatch(window) or is_date(window):
        return False
    return 9 <= count <= 13 or (count == 8 and not _YEAR.fullmatch(window[-4:])) or (count <= 14 and b"/" in window)


def is_grouped(window: bytes, digits: bytes, neighbours: bytes) -> bool:
    """Whether a window is grouped as national numbers are: ``612 345 678``, ``12-34-56-78``, ``555-0123``.

    ``neighbours`` holds the separators by which further groups of digits join on. A grouping counts only if they are
    not its own: otherwise it is part of something longer, such as a card number with a typing error.
    """
    separator = window.lstrip(b"0123456789")[:1]
    if len(digits) > 12 or not separator or separator in neighbours:
        return False
    if not _GROUPED.fullmatch(window) or is_date(window):
        return False
    groups = _DIGIT_GROUPS.findall(window)
    numbered = len(groups) == 2 and _YEAR.fullmatch(groups[0])  # 2023-2024, 2024-000123
    return not numbered and tuple(map(len, groups)) not in _OTHER_GROUPS


def is_amount(view: View, start: int, end: int) -> bool:
    """Whether grouped digits are an amount of money: ``12 345 678 EUR``. Offsets count bytes of the view."""
    before = view.data[max(0, start - 5) : start].rstrip(b" .")
    return before.endswith(b"$") or before[-3:] in _CURRENCIES or bool(_AMOUNT_AFTER.match(view.data, end))


def is_address(view: View, start: int, end: int, *, surely: bool) -> bool:
    """Whether two groups of digits are a postcode and a house number: ``704 1436 Redbud Drive``.

    Such stand side by side with a blank between, before a street's name; ``surely`` asks for a word such as "Drive" in
    it. Offsets count bytes of the view.
    """
    if view.data.count(b" ", start, end) != 1 or not view.data[start:end].replace(b" ", b"").isdigit():
        return False
    before, after = view.data[max(0, start - 12) : start], view.data[end : end + 60]
    if _NAMED_STREET_AFTER.match(after):
        return True
    return not surely and bool(_NAME_AFTER.match(after) or _UNIT_BEFORE.search(before))


def is_date(window: bytes) -> bool:
    """Whether a window is a calendar date in digits, possibly followed by a time."""
    return bool(_ISO_DATE.fullmatch(window) or _WRITTEN_DATE.fullmatch(window))


def extension_end(view: View, end: int) -> int:
    """Return where a phone number's extension ends, or ``end`` if none follows. Offsets count bytes of the view."""
    match = _EXTENSION.match(view.data, end, end + 20)
    if match is None:
        return end
    if WIDE in match.group():
        start, stop = view.original(*match.span())
        if not any(word in view.text[start:stop] for word in _EXTENSION_WORDS):
            return end
    return match.end()


def _is_nanp(window: bytes) -> bool:
    return bool(_NANP_BARE.fullmatch(window) or _NANP.fullmatch(window))


def _is_international(window: bytes, digits: bytes) -> bool:
    if not _INTERNATIONAL.fullmatch(window):
        return False
    number = digits if 43 in window[:2] else digits[2:]
    if number[:1] == b"1":
        return len(number) == 11
    if number[:2] == b"86":
        return 10 <= len(number) <= 13
    return 7 <= len(number) <= 15
