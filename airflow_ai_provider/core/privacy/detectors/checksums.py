"""Checksums and structures that decide whether a candidate is what it looks like. Pure functions of digits."""

from __future__ import annotations

import ipaddress
from datetime import date
from string import ascii_uppercase

_DOUBLED = bytes.maketrans(b"0123456789", b"0246813579")

# GB 11643-1999: weights of the 17 digits; the check character for each remainder (ISO 7064 MOD 11-2).
_CN_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CN_CHECKS = b"10X98765432"
# GB/T 2260: the first two digits name a province; 81-83 are residence permits of Hong Kong, Macao and Taiwan,
# 9x is the permanent residence card.
_CN_PROVINCES = frozenset(
    str(code).encode()
    for code in (*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66))
) | {b"71", b"81", b"82", b"83", b"91", b"92", b"93", b"94", b"95"}

# ISO 13616 registry: length of an IBAN by country.
IBAN_LENGTHS = {
    code: length
    for length, codes in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH CR HR LI LV",
        22: "BG BH DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for code in codes.split()
}

_IBAN_DIGITS = {ord(letter): str(value) for value, letter in enumerate(ascii_uppercase, start=10)}


def luhn(digits: bytes) -> bool:
    """Whether ASCII digits end with the right Luhn check digit (ISO/IEC 7812-1)."""
    doubled = digits[-2::-2].translate(_DOUBLED)
    return (sum(digits[::-2]) + sum(doubled) - 48 * len(digits)) % 10 == 0


def card(digits: bytes) -> bool:
    """Whether 12 to 19 ASCII digits are a payment card number: issuer range for its length, and Luhn."""
    return 12 <= len(digits) <= 19 and _card_issuer(digits) and luhn(digits)


def _card_issuer(digits: bytes) -> bool:
    length = len(digits)
    if length >= 16:
        return digits[:1] not in (b"0", b"1")
    if length == 15:  # American Express, old JCB, UATP
        return digits.startswith((b"34", b"37", b"2131", b"1"))
    if length == 14:  # Diners Club
        return digits.startswith((b"30", b"36", b"38", b"39"))
    # Visa of 13 digits; Maestro of 12 and 13, 0604 among them
    return digits.startswith((b"50", b"56", b"57", b"58", b"6", b"0604")) or (length == 13 and digits.startswith(b"4"))


def ssn(digits: bytes) -> bool:
    """Whether 9 digits can be a US social security number, or a taxpayer number of the same form (9xx).

    SSA: no area 000 or 666, no group 00, no serial 0000. IRS Publication 1915: a taxpayer number's fourth and fifth
    digits are 50-65, 70-88, 90-92 or 94-99.
    """
    area, group = digits[:3], int(digits[3:5])
    if area in (b"000", b"666") or group == 0 or digits[5:] == b"0000":
        return False
    return area[:1] != b"9" or 50 <= group <= 65 or 70 <= group <= 88 or (group >= 90 and group != 93)


def cn_id(digits: bytes, check: bytes) -> bool:
    """Whether 17 digits and a check character (``0``-``9`` or ``X``) are a Chinese resident identity number."""
    if digits[:2] not in _CN_PROVINCES or not plausible_date(int(digits[6:10]), int(digits[10:12]), int(digits[12:14])):
        return False
    total = sum((digit - 48) * weight for digit, weight in zip(digits, _CN_WEIGHTS, strict=True))
    return _CN_CHECKS[total % 11] == check.upper()[0]


def cn_id_15(digits: bytes) -> bool:
    """Whether 15 digits are a resident identity number of the first generation (no check digit; born 19yy)."""
    return digits[:2] in _CN_PROVINCES and plausible_date(
        1900 + int(digits[6:8]), int(digits[8:10]), int(digits[10:12])
    )


def plausible_date(year: int, month: int, day: int) -> bool:
    """Whether a day exists in the calendar and within a living memory: 1900 to 2099."""
    if not 1900 <= year <= 2099:
        return False
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def iban(code: bytes) -> bool:
    """Whether letters and digits without separators are an IBAN: country's length and remainder 1 modulo 97."""
    upper = code.upper()
    if IBAN_LENGTHS.get(upper[:2].decode("ascii")) != len(upper):
        return False
    turned = upper[4:] + upper[:4]
    return int(turned.decode("ascii").translate(_IBAN_DIGITS)) % 97 == 1


def ipv4(address: bytes) -> bool:
    """Whether dotted decimal numbers are four octets."""
    parts = address.split(b".")
    return len(parts) == 4 and all(len(part) <= 3 and int(part) <= 255 for part in parts)


def ipv6(address: bytes) -> bool:
    """Whether ASCII text is an IPv6 address that no ordinary word or time could be."""
    if not 3 <= len(address) <= 45:
        return False
    if b"::" not in address and address.count(b":") not in (6, 7):
        return False
    try:
        ipaddress.IPv6Address(address.decode("ascii"))
    except ValueError:
        return False
    return any(48 <= char <= 57 for char in address) or address.count(b":") >= 4
