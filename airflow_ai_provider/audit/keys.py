"""The sealer's Ed25519 key: ``signing_key.pem`` (0600) and, for whoever verifies, ``verify_key.pem``.

A key id is the first 16 hex digits of SHA-256 of the raw 32-byte public key. To change the key, move the old
``verify_key.pem`` to ``verify_key-<anything>.pem`` and remove ``signing_key.pem``: the next seal makes a new one, and
``verify`` accepts every ``verify_key*.pem`` of the folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from airflow_ai_provider.errors import KeyringError

SIGNING_KEY = "signing_key.pem"
VERIFY_KEY = "verify_key.pem"
KEY_ID_HEX = 16

PublicKeys = Mapping[str, Ed25519PublicKey]
"""Public keys by key id."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The sealer's private key."""

    private: Ed25519PrivateKey = field(repr=False)

    @property
    def key_id(self) -> str:
        return key_id(self.private.public_key())

    def public_keys(self) -> dict[str, Ed25519PublicKey]:
        """Its public half, as ``verify`` takes it."""
        return {self.key_id: self.private.public_key()}


def key_id(public: Ed25519PublicKey) -> str:
    raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return sha256(raw).hexdigest()[:KEY_ID_HEX]


def load_or_create_signing_key(folder: Path) -> SigningKey:
    """The key of a folder, made at first use; of several processes at once, one makes it and all get the same.

    ``KeyringError`` when the file is unreadable, not Ed25519, or open to others.
    """
    path = folder / SIGNING_KEY
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create(path, _private_pem(Ed25519PrivateKey.generate()), 0o600)
        key = _read_private(path)
        _create(folder / VERIFY_KEY, _public_pem(key.private.public_key()), 0o644)
    except OSError as error:
        raise KeyringError(f"{path}: the audit signing key cannot be read or made: {error.strerror}") from error
    return key


def load_verify_keys(path: Path) -> dict[str, Ed25519PublicKey]:
    """The public keys of one PEM file, or of every ``verify_key*.pem`` in a folder; by key id."""
    files = sorted(path.glob("verify_key*.pem")) if path.is_dir() else [path]
    try:
        keys = [_read_public(file) for file in files]
    except OSError as error:
        raise KeyringError(f"{path}: the audit verify key cannot be read: {error.strerror}") from error
    return {key_id(key): key for key in keys}


def _read_private(path: Path) -> SigningKey:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise KeyringError(f"{path}: mode is {mode:04o}; expected 0600: others may have read it. Run chmod 600 on it")
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyringError(f"{path}: expected an unencrypted Ed25519 private key in PKCS8 PEM")
    return SigningKey(key)


def _read_public(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyringError(f"{path}: expected an Ed25519 public key in PEM")
    return key


def _create(path: Path, data: bytes, mode: int) -> None:
    """Make a file whole under its name, unless the name is taken."""
    if path.exists():
        return
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
