"""Keyed hashes of prompts and answers: they prove which text was meant without holding it.

A plain hash of a short or guessable text can be undone by guessing; with a secret key it cannot. Whoever holds the
key can show that a given text is the one in the trail.
"""

from __future__ import annotations

import hmac

from airflow_ai_provider.errors import AuditError

MIN_KEY_BYTES = 16
HASH_HEX = 32
"""Hex digits of a content hash: 128 bits."""


def content_hash(key: bytes, text: str) -> str:
    """HMAC-SHA256 of the UTF-8 text, first 128 bits, in hex. ``AuditError`` when the key is under 16 bytes."""
    if len(key) < MIN_KEY_BYTES:
        raise AuditError(f"content hash key has {len(key)} bytes; expected at least {MIN_KEY_BYTES}")
    # A lone surrogate cannot be sent to a model either, but the trail must not be what fails on it.
    return hmac.digest(key, text.encode("utf-8", "surrogatepass"), "sha256").hex()[:HASH_HEX]


class MultisetHash:
    """A keyed hash over a collection in no order, such that hashes add up as collections do.

    The sum, modulo 2^128, of the content hashes of the members (MSet-Add-Hash of Clarke et al., *Incremental Multiset
    Hash Functions*, ASIACRYPT 2003). So the sum over many events can be compared with one reading of a table.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sum = 0

    def add(self, text: str) -> None:
        self.add_hash(content_hash(self._key, text))

    def add_hash(self, digest: str) -> None:
        """Add a member's content hash, or the ``hexdigest`` of a whole collection."""
        self._sum = (self._sum + int(digest, 16)) % 16**HASH_HEX

    def hexdigest(self) -> str:
        return f"{self._sum:0{HASH_HEX}x}"
