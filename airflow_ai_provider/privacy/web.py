"""Addresses in networks: URLs and MAC addresses.

A URL with a user and a password in it is a secret and found as such (``credentials.py``).
"""

from __future__ import annotations

from collections.abc import Iterator

from airflow_ai_provider.privacy.normalise import LETTER, View
from airflow_ai_provider.privacy.regex import compile_bytes
from airflow_ai_provider.privacy.spans import Span

_ALNUM = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") | {LETTER}
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
