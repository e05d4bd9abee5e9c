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
