"""Encryption with the key's id in front, so that rotated keys still open what they closed.

    0x01 | length of key id (1 byte) | key id | nonce (12 bytes) | ciphertext and tag     AES-256-GCM
    0x02 | length of key id (1 byte) | key id | tag and ciphertext                        AES-256-SIV, deterministic

The header and the caller's ``aad`` are authenticated: a ciphertext does not open in another place than its own. Each
purpose has a key of its own, and so has each ``context`` of it, such as a team.

Nonces of GCM are random; a derived key should close fewer than 2^32 values (NIST SP 800-38D §8.3), so give each kind of
data its own purpose. SIV (RFC 5297) has none: equal values close equally, which is what it is for, and all it reveals.
"""

from __future__ import annotations

import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

from airflow_ai_provider.core.errors import PrivacyError
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring

_VERSION = 1
_DETERMINISTIC = 2
_NONCE = 12
_TAG = 16
_SIV_KEY = 64
"""Bytes of an AES-256-SIV key: one half authenticates, the other encrypts."""


def encrypt(keyring: Keyring, purpose: str, plaintext: bytes, aad: bytes, context: str = "") -> bytes:
    """Close ``plaintext`` with the active key, bound to ``purpose``, ``context`` and ``aad``."""
    header = _header(_VERSION, keyring.active)
    nonce = os.urandom(_NONCE)
    return header + nonce + _aead(keyring.derive(purpose, context)).encrypt(nonce, plaintext, header + aad)


def encrypt_deterministic(keyring: Keyring, purpose: str, plaintext: bytes, aad: bytes, context: str = "") -> bytes:
    """Close ``plaintext`` (not empty) so that equal ones, with equal other arguments, have equal ciphertexts."""
    header = _header(_DETERMINISTIC, keyring.active)
    key = keyring.derive(purpose, context, length=_SIV_KEY)
    return header + _siv(key).encrypt(plaintext, [header, aad])


def key_id_of(data: bytes) -> str:
    """Id of the key that closed a ciphertext. Raises ``PrivacyError`` if it is none."""
    return _split(data)[0]


def decrypt(keyring: Keyring, purpose: str, data: bytes, aad: bytes, context: str = "") -> bytes:
    """Open what ``encrypt`` or ``encrypt_deterministic`` closed with the same purpose, ``context`` and ``aad``.

    Raises ``KeyringError`` if the key it names is not in the keyring, ``PrivacyError`` if it is not such a ciphertext,
    was changed, or was closed with another key, purpose or ``aad``.
    """
    key_id, start = _split(data)
    header, sealed = data[:start], data[start:]
    try:
        if data[0] == _DETERMINISTIC:
            key = keyring.derive(purpose, context, key_id=key_id, length=_SIV_KEY)
            return _siv(key).decrypt(sealed, [header, aad])
        key = keyring.derive(purpose, context, key_id=key_id)
        return _aead(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], header + aad)
    except InvalidTag:
        raise _does_not_open(purpose) from None


class Sealer:
    """``encrypt`` and ``decrypt`` of one purpose for values by the thousand: what is the same for all is made once."""

    __slots__ = ("_aeads", "_context", "_header", "_keyring", "_purpose")

    def __init__(self, keyring: Keyring, purpose: str, context: str = "") -> None:
        self._keyring, self._purpose, self._context = keyring, purpose, context
        self._header = _header(_VERSION, keyring.active)
        # By header, of keys in the keyring only: entries of a store cannot make it grow.
        self._aeads = {self._header: _aead(keyring.derive(purpose, context))}

    def seal(self, plaintext: bytes, aad: bytes) -> bytes:
        """As ``encrypt``."""
        header, nonce = self._header, os.urandom(_NONCE)
        return header + nonce + self._aeads[header].encrypt(nonce, plaintext, header + aad)

    def open(self, data: bytes, aad: bytes) -> bytes:
        """As ``decrypt`` for what ``encrypt`` closed, with its errors."""
        start = 2 + data[1] if len(data) > 1 else 0
        header, end = data[:start], start + _NONCE
        aead = self._aeads.get(header) or self._known(data)
        try:
            return aead.decrypt(data[start:end], data[end:], header + aad)
        except (InvalidTag, ValueError):  # ValueError: shorter than a nonce
            raise _does_not_open(self._purpose) from None

    def _known(self, data: bytes) -> AESGCM:
        key_id, start = _split(data)
        if data[0] != _VERSION:
            raise _does_not_open(self._purpose)
        key = self._keyring.derive(self._purpose, self._context, key_id=key_id)
        aead = self._aeads[data[:start]] = _aead(key)
        return aead


def _does_not_open(purpose: str) -> PrivacyError:
    return PrivacyError(
        f"a ciphertext does not open for purpose {purpose!r}: it was changed, belongs to another place, or the "
        "keyring holds another key under the same id"
    )


def _split(data: bytes) -> tuple[str, int]:
    """The key id of a ciphertext, and where its header ends."""
    start = 2 + (data[1] if len(data) > 1 else 0)
    least = {_VERSION: _NONCE + _TAG, _DETERMINISTIC: _TAG}.get(data[0] if data else 0)
    if least is None or len(data) < start + least:
        raise PrivacyError("not a ciphertext of this package: expected its version byte, key id, nonce and tag")
    if not data[2:start].isascii():
        raise PrivacyError("not a ciphertext of this package: its key id is not ASCII")
    return data[2:start].decode("ascii"), start


@lru_cache(maxsize=256)
def _siv(key: bytes) -> AESSIV:
    return AESSIV(key)


@lru_cache(maxsize=256)
def _aead(key: bytes) -> AESGCM:
    return AESGCM(key)


@lru_cache(maxsize=64)
def _header(version: int, key_id: str) -> bytes:
    encoded = key_id.encode("ascii")
    return bytes((version, len(encoded))) + encoded
