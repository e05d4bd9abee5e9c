"""Field encryption: AES-256-GCM with the key's id in front, so that rotated keys still open what they closed.

    0x01 | length of key id (1 byte) | key id | nonce (12 bytes) | ciphertext and tag

The header and the caller's ``aad`` are authenticated: a ciphertext does not open in another place than its own.
Nonces are random; a derived key should close fewer than 2^32 values (NIST SP 800-38D §8.3), so give each kind of
data its own purpose.
"""

from __future__ import annotations

import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from airflow_ai_provider.errors import PrivacyError
from airflow_ai_provider.privacy.keyring import Keyring

_VERSION = 1
_NONCE = 12
_TAG = 16


def encrypt(keyring: Keyring, purpose: str, plaintext: bytes, aad: bytes) -> bytes:
    """Close ``plaintext`` with the active key, bound to ``purpose`` and ``aad``."""
    header = _header(keyring.active)
    nonce = os.urandom(_NONCE)
    return header + nonce + _aead(keyring.derive(purpose)).encrypt(nonce, plaintext, header + aad)


def decrypt(keyring: Keyring, purpose: str, data: bytes, aad: bytes) -> bytes:
    """Open what ``encrypt`` closed with the same purpose and ``aad``.

    Raises ``KeyringError`` if the key it names is not in the keyring, ``PrivacyError`` if it is not such a ciphertext,
    was changed, or was closed with another key, purpose or ``aad``.
    """
    start = 2 + (data[1] if len(data) > 1 else 0)
    if len(data) < start + _NONCE + _TAG or data[0] != _VERSION:
        raise PrivacyError("not a ciphertext of this package: expected its version byte, key id, nonce and tag")
    header = data[:start]
    if not header[2:].isascii():
        raise PrivacyError("not a ciphertext of this package: its key id is not ASCII")
    key = keyring.derive(purpose, key_id=header[2:].decode("ascii"))
    try:
        return _aead(key).decrypt(data[start : start + _NONCE], data[start + _NONCE :], header + aad)
    except InvalidTag:
        raise PrivacyError(
            f"a ciphertext does not open for purpose {purpose!r}: it was changed, belongs to another place, or the "
            "keyring holds another key under the same id"
        ) from None


@lru_cache(maxsize=256)
def _aead(key: bytes) -> AESGCM:
    return AESGCM(key)


@lru_cache(maxsize=64)
def _header(key_id: str) -> bytes:
    encoded = key_id.encode("ascii")
    return bytes((_VERSION, len(encoded))) + encoded
