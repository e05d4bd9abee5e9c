"""Find e-mail addresses, IBANs, IP addresses, URLs and MAC addresses.

Scanners for what is written with signs of its own: e-mail addresses, IBANs, IP addresses.

Each is gated by a byte that its matches must hold, so a text without one costs nothing. Patterns find candidates;
boundaries and structure are decided here.

Addresses in networks: URLs and MAC addresses.

A URL with a user and a password in it is a secret and found as such (see ``credentials.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from airflow_ai_provider.core.privacy.detectors import checksums
from airflow_ai_provider.core.privacy.detectors.text_view import LETTER, Span, View, compile_bytes

_ALNUM = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") | {LETTER}

# The local part leaves out what RFC 5322 allows but texts use as delimiters: / = ? ` { | }
_LETTERS_DIGITS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\xe0"
_EMAIL_LOCAL = _LETTERS_DIGITS + b"!#$%&'*+^_~.-"
_EMAIL_DOMAIN = _LETTERS_DIGITS + b".-"
_WIDE_EMAIL = compile_bytes(rb"[A-Za-z0-9+_.\xe0\xc0-]+@[A-Za-z0-9\xe0\xc0-]+\.\xc0{2,6}")
_EMAIL_LEADING = b"!#$%&'*^~.-"
_LABEL = re.compile(rb"[A-Za-z0-9\xe0]+(?:-+[A-Za-z0-9\xe0]+)*")
_TOP_LABEL = re.compile(rb"[A-Za-z\xe0]{2,63}|[xX][nN]--[A-Za-z0-9-]{2,59}")
_DOMAIN = re.compile(rb"(?:" + _LABEL.pattern + rb"\.)+(?:" + _TOP_LABEL.pattern + rb")")
_MAX_EMAIL = 320
"""Octets: 64 of local part, 255 of domain (RFC 5321 §4.5.3.1)."""

_IBAN_HEAD = compile_bytes(rb"[A-Za-z]{2}[0-9]{2}[ -]?[A-Za-z0-9]{2}")
_IBAN_TAIL = re.compile(rb"[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){11,30}")
_IBAN_MAX = 34
_IBAN_WORDS = re.compile(r"\biban(?![A-Za-z_])[^0-9\[\].;。；\n]{0,16}$", re.I)

_IPV4 = compile_bytes(rb"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
_IPV6 = compile_bytes(rb"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*")
EMAIL_SIGN = rb"@"
IBAN_SIGN = _IBAN_HEAD.pattern
IP_SIGN = rb"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f]{0,4}:"
"""Where its sign is not, there is none of a kind."""
_ZONE = re.compile(rb"%[A-Za-z0-9]{1,15}")


def find_emails(view: View) -> Iterator[Span]:
    """Yield e-mail addresses: a local part, and a domain with a top level of letters."""
    data = view.data
    at = data.find(b"@")
    free = 0  # from here on
    while at >= 0:
        following = data.find(b"@", at + 1)
        # What stands between two signs is looked at by one slice from either side, so the time is linear.
        start = free + len(data[free:at].rstrip(_EMAIL_LOCAL))
        after = data[at + 1 : following] if following >= 0 else data[at + 1 :]
        end = at + 1 + len(after) - len(after.lstrip(_EMAIL_DOMAIN))
        free = at + 1
        if start < at and end > at + 1:
            free = end
            if found := _email(data, start, at, end):
                yield Span(*view.original(*found), "email")
        at = following
    if 0xC0 in data:
        for match in _WIDE_EMAIL.finditer(data):
            yield Span(*view.original(*match.span()), "email")


def _email(data: bytes, start: int, at: int, end: int) -> tuple[int, int] | None:
    local = data[start:at].lstrip(_EMAIL_LEADING)
    if not local:
        return None
    domain = data[at + 1 : min(end, at + 256)].rstrip(b".")
    if _DOMAIN.fullmatch(domain):
        return max(at - len(local), at - _MAX_EMAIL), at + 1 + len(domain)
    # Cut the domain back to its last label that can be a top level: "a@b.co.uk.7" ends at "uk".
    labels: list[bytes] = []
    for label in domain.split(b"."):
        whole = _LABEL.match(label)
        if whole is None:
            break
        labels.append(whole.group())
        if len(whole.group()) < len(label):
            break
    while labels and not _TOP_LABEL.fullmatch(labels[-1]):
        labels.pop()
    if len(labels) < 2:
        return None
    return max(at - len(local), at - _MAX_EMAIL), at + 1 + len(b".".join(labels))


def find_ibans(view: View, *, by_word: bool) -> Iterator[Span]:
    """Yield IBANs, compact or in groups; one that fails its checksum is found behind the word IBAN."""
    data = view.data
    for match in _IBAN_HEAD.finditer(data):
        start = match.start()
        if start and data[start - 1] in _ALNUM:
            continue
        length = checksums.IBAN_LENGTHS.get(data[start : start + 2].decode("ascii").upper())
        if length is None:
            continue
        candidate = _IBAN_TAIL.match(data, start, start + 2 * _IBAN_MAX)
        if candidate is None:
            continue
        end = _nth_alnum_end(data, start, candidate.end(), length)
        if end and not (end < len(data) and data[end] in _ALNUM):
            compact = data[start:end].replace(b" ", b"").replace(b"-", b"")
            first, last = view.original(start, end)
            if checksums.iban(compact) or (by_word and _IBAN_WORDS.search(view.text[max(0, first - 32) : first])):
                yield Span(first, last, "iban")


def _nth_alnum_end(data: bytes, start: int, end: int, count: int) -> int:
    """Where the ``count``-th letter or digit from ``start`` ends, or 0 if there are fewer before ``end``."""
    for position in range(start, end):
        if data[position] in _ALNUM:
            count -= 1
            if count == 0:
                return position + 1
    return 0


def find_ips(view: View) -> Iterator[Span]:
    """Yield IPv4 and IPv6 addresses, without port or prefix length."""
    data = view.data
    if b"." in data:
        for match in _IPV4.finditer(data):
            start, end = match.span()
            if not _continues(data, start, end) and checksums.ipv4(data[start:end]):
                yield Span(*view.original(start, end), "ip")
    if data.count(b":") >= 2:
        for match in _IPV6.finditer(data):
            found = _ipv6(data, *match.span())
            if found:
                yield Span(*view.original(*found), "ip")


def _continues(data: bytes, start: int, end: int) -> bool:
    """Whether digits or dotted digits go on before or after, as in a version with five parts."""
    before, after = data[max(0, start - 2) : start], data[end : end + 2]
    return before[-1:].isdigit() or after[:1].isdigit() or _dotted(after) or _dotted(before[::-1])


def _dotted(pair: bytes) -> bool:
    return len(pair) == 2 and pair[:1] == b"." and pair[1:].isdigit()


def _ipv6(data: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Cut what belongs to the sentence off a run of hexadecimal digits, colons and dots."""
    if end - start > 64:
        return None
    candidate = data[start:end]
    if start and data[start - 1] in _ALNUM:  # "addr:fe80::1": the word runs into the address
        colon = candidate.index(b":") + 1
        start, candidate = start + colon, candidate[colon:]
    stripped = candidate.rstrip(b".")
    if stripped[-1:] == b":" and stripped[-2:] != b"::":
        stripped = stripped[:-1]
    if stripped[:1] == b":" and stripped[:2] != b"::":
        start, stripped = start + 1, stripped[1:]
    end = start + len(stripped)
    if (end < len(data) and data[end] in _ALNUM) or not checksums.ipv6(stripped):
        return None
    zone = _ZONE.match(data, end)
    return start, zone.end() if zone else end


_HEX = frozenset(b"0123456789ABCDEFabcdefGHIJKLMNOPQRSTUVWXYZghijklmnopqrstuvwxyz:-.")

# RFC 3986 without square brackets, which are a token's; accented letters stand for internationalised names.
_REST = rb"[A-Za-z0-9._~:/?#@!$&'()*+,;=%\xe0-]"
_SCHEMES = rb"(?:[Hh][Tt][Tt][Pp][Ss]?|[Ff][Tt][Pp][Ss]?|[Ss][Ff][Tt][Pp]|[Ww][Ss]{1,2}|[Ss]{2}[Hh]|[Gg]it|file|ldaps?)"
_FULL = _SCHEMES + rb"://(?:\[[0-9A-Fa-f:.]{2,45}\])?" + _REST + rb"*"
_WWW = rb"[Ww][Ww][Ww]\.[A-Za-z0-9\xe0-]{1,63}\.[A-Za-z0-9\xe0-]" + _REST + rb"*"
_LABELS = rb"[A-Za-z0-9\xe0][A-Za-z0-9\xe0-]*(?:\.[A-Za-z0-9\xe0-]+)*\."
# Top levels that are no English word: a domain of theirs stands without a scheme.
_TOP = (
    rb"com|org|net|edu|gov|mil|info|biz|app|dev|io|ai|eu"
    rb"|cn|hk|tw|uk|fr|nl|dk|fi|pl|pt|cz|ch|se|jp|kr|ru|br|mx|za|ca|au|nz"
)
_WORD_TOP = rb"[A-Za-z]{2,12}"  # any other needs a path
_BARE = (
    rb"(?:"
    + _LABELS
    + rb"(?i:"
    + _TOP
    + rb")(?:[:/?#]"
    + _REST
    + rb"*)?|"
    + _LABELS
    + _WORD_TOP
    + rb"/"
    + _REST
    + rb"+)"
)
URL_SIGN = rb"://|(?i:www\.)|[A-Za-z0-9\xe0-]\.(?:(?i:" + _TOP + rb")|[A-Za-z]{2,12}/)"
_URL = compile_bytes(b"|".join((_FULL, _WWW, _BARE)))
_TRAILING = b".,;:!?'*_"

_MAC = compile_bytes(
    rb"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{2}(?:-[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}"
)
MAC_SIGN = rb"[0-9A-Fa-f]{2}[:-][0-9A-Fa-f]{2}[:-][0-9A-Fa-f]{2}[:-]|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}"


def find_urls(view: View) -> Iterator[Span]:
    """Yield URLs, and domains without a scheme where their top level leaves no doubt."""
    data = view.data
    for match in _URL.finditer(data):
        start, end = match.span()
        before = data[start - 1] if start else 0
        if before in _ALNUM or before in b"@._-/\\":
            continue
        end = _trimmed(data, start, end)
        if data[end : end + 1] != b"@" and data[start:end].rpartition(b"://")[2]:
            yield Span(*view.original(start, end), "url")


def _trimmed(data: bytes, start: int, end: int) -> int:
    """Where a URL ends once the sentence's own marks are taken off, and brackets that open before it."""
    unopened = data.count(b")", start, end) - data.count(b"(", start, end)
    while end > start and (data[end - 1] in _TRAILING or (data[end - 1] == 41 and unopened > 0)):
        end -= 1
        unopened -= data[end] == 41
    return end


def find_macs(view: View) -> Iterator[Span]:
    """Yield MAC addresses of six pairs, or three groups of four."""
    data = view.data
    for match in _MAC.finditer(data):
        start, end = match.span()
        if (start and data[start - 1] in _HEX) or _hex_follows(data, end):
            continue
        if b":" in match.group() or not match.group().translate(None, b"-.").isdigit():
            yield Span(*view.original(start, end), "mac")


def _hex_follows(data: bytes, end: int) -> bool:
    after = data[end : end + 2]
    return bool(after) and (after[0] in _ALNUM or (len(after) == 2 and after[0] in b":-." and after[1] in _ALNUM))
