from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.privacy.crypto.cipher import decrypt, encrypt
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.errors import KeyringError, PrivacyError


def _keyring(active: str = "k1", **secrets: bytes) -> Keyring:
    keys = {key: {"secret": base64.b64encode(secret).decode()} for key, secret in secrets.items()}
    return Keyring.from_mapping({"version": 1, "active": active, "keys": keys})


RING = _keyring(k1=b"a" * 32)


@given(plaintext=st.binary(max_size=200), aad=st.binary(max_size=50))
def test_what_was_closed_opens_again(plaintext: bytes, aad: bytes) -> None:
    assert decrypt(RING, "field", encrypt(RING, "field", plaintext, aad), aad) == plaintext


@given(position=st.integers(0, 200), bit=st.integers(0, 7))
def test_any_changed_bit_is_refused(position: int, bit: int) -> None:
    """No byte of the header, nonce, text or tag can be changed unnoticed."""
    data = bytearray(encrypt(RING, "field", b"a value", b"aad"))
    data[position % len(data)] ^= 1 << bit
    with pytest.raises((PrivacyError, KeyringError)):
        decrypt(RING, "field", bytes(data), b"aad")


@given(data=st.binary(max_size=80))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises((PrivacyError, KeyringError)):
        decrypt(RING, "field", data, b"")


def test_equal_values_close_differently() -> None:
    assert encrypt(RING, "field", b"x", b"") != encrypt(RING, "field", b"x", b"")


@pytest.mark.parametrize(("purpose", "aad"), [("other", b"row 1"), ("field", b"row 2")])
def test_a_ciphertext_does_not_open_in_another_place(purpose: str, aad: bytes) -> None:
    data = encrypt(RING, "field", b"x", b"row 1")
    with pytest.raises(PrivacyError, match="does not open") as caught:
        decrypt(RING, purpose, data, aad)
    assert caught.value.__cause__ is None


def test_another_secret_under_the_same_id_does_not_open() -> None:
    with pytest.raises(PrivacyError, match="does not open"):
        decrypt(_keyring(k1=b"b" * 32), "field", encrypt(RING, "field", b"x", b""), b"")


def test_rotated_keys_open_what_they_closed() -> None:
    rotated = _keyring("k2", k1=b"a" * 32, k2=b"b" * 32)
    old, new = encrypt(RING, "field", b"old", b""), encrypt(rotated, "field", b"new", b"")
    assert decrypt(rotated, "field", old, b"") == b"old"
    assert decrypt(rotated, "field", new, b"") == b"new"
    with pytest.raises(KeyringError, match="'k2'"):
        decrypt(RING, "field", new, b"")
