"""Sign manifests with a key in a file or in AWS KMS, and read verify keys.

Who signs manifests, and who can check it.

The sealer's key is ``signing_key.pem`` (Ed25519, 0600) in a folder that workers cannot read, or lies in a key service
that never gives it away (``kms``). Its public half is ``verify_key-<key id>.pem``; ``verify`` accepts every
``verify_key*.pem`` of the folder, so manifests of earlier keys stay verifiable. A key id is the first 16 hex digits of
SHA-256 over the public key's SubjectPublicKeyInfo in DER. The kind of key decides how it signs: Ed25519 (RFC 8032),
ECDSA over SHA-256 for NIST P-256, RSASSA-PSS over SHA-256 for RSA (RFC 8017); a signature cannot choose.

Signing with a key that AWS KMS never gives away: ECC_NIST_P256, ECC_NIST_EDWARDS25519 or RSA_2048 and up.

The sealer's role needs ``kms:Sign`` and ``kms:GetPublicKey`` on that key, and workers need neither. Each signature is
checked with the public key before it is used, so a service that answers wrongly seals nothing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from airflow_ai_provider.core.errors import KeyringError, StoreUnavailable

SIGNING_KEY = "signing_key.pem"
KEY_ID_HEX = 16
_MIN_RSA_BITS = 2048

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey
PublicKeys = Mapping[str, PublicKey]
"""Public keys by key id."""


class Signer(Protocol):
    """Signs for the sealer, wherever its key is."""

    @property
    def public(self) -> PublicKey: ...

    def sign(self, data: bytes) -> bytes:
        """The signature of ``data``, which has at most 4,096 bytes."""
        ...


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key in this process."""

    private: Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> Ed25519PublicKey:
        return self.private.public_key()

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data)


def key_id(public: PublicKey) -> str:
    return fingerprint(public)[:KEY_ID_HEX]


def public_keys(*signers: Signer) -> dict[str, PublicKey]:
    """Public halves, as ``verify`` takes them."""
    return {key_id(signer.public): signer.public for signer in signers}


def is_signature(public: PublicKey, signature: bytes, data: bytes) -> bool:
    """Whether ``signature`` is of ``data`` under ``public``."""
    try:
        match public:
            case Ed25519PublicKey():
                public.verify(signature, data)
            case EllipticCurvePublicKey():
                public.verify(signature, data, ECDSA(SHA256()))
            case RSAPublicKey():
                public.verify(signature, data, PSS(MGF1(SHA256()), PSS.AUTO), SHA256())
    except InvalidSignature:
        return False
    return True


def fingerprint(public: PublicKey) -> str:
    """SHA-256 of a public key's SubjectPublicKeyInfo, 64 hex; a key id is its beginning."""
    return sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


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
    except OSError as error:
        raise KeyringError(f"{path}: the audit signing key cannot be read or made: {error.strerror}") from error
    publish_key(folder, key.public)
    return key


def publish_key(folder: Path, public: PublicKey) -> Path:
    """Put a public key where ``verify`` looks for it. ``KeyringError`` when it cannot be written."""
    path = folder / f"verify_key-{key_id(public)}.pem"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create(path, _public_pem(public), 0o644)
    except OSError as error:
        raise KeyringError(f"{path}: the audit verify key cannot be written: {error.strerror}") from error
    return path


def load_verify_keys(path: Path) -> dict[str, PublicKey]:
    """The public keys of one PEM file, or of every ``verify_key*.pem`` in a folder; by key id."""
    files = sorted(path.glob("verify_key*.pem")) if path.is_dir() else [path]
    try:
        keys = [_read_public(file) for file in files]
    except OSError as error:
        raise KeyringError(f"{path}: the audit verify key cannot be read: {error.strerror}") from error
    return {key_id(key): key for key in keys}


def public_key_from_der(der: bytes, place: str) -> PublicKey:
    """A public key from its SubjectPublicKeyInfo. ``KeyringError`` names ``place`` when it cannot sign manifests."""
    return _usable(load_der_public_key(der), place)


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


def _read_public(path: Path) -> PublicKey:
    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        raise KeyringError(f"{path}: expected a public key in PEM") from None
    return _usable(key, str(path))


def _usable(key: object, place: str) -> PublicKey:
    match key:
        case Ed25519PublicKey():
            return key
        case EllipticCurvePublicKey() if isinstance(key.curve, SECP256R1):
            return key
        case RSAPublicKey() if key.key_size >= _MIN_RSA_BITS:
            return key
    raise KeyringError(f"{place}: expected an Ed25519, NIST P-256 or RSA public key (RSA of 2048 bits or more)")


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


def _public_pem(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


_PASSING: Final = (
    "DependencyTimeoutException",
    "KMSInternalException",
    "LimitExceededException",
    "ThrottlingException",
)


class KmsClient(Protocol):
    """What is used of boto3's ``kms`` client."""

    def get_public_key(self, *, KeyId: str) -> dict[str, Any]: ...

    def sign(self, *, KeyId: str, Message: bytes, MessageType: str, SigningAlgorithm: str) -> dict[str, Any]: ...


class KmsSigner:
    """A ``Signer`` whose key is in KMS. ``key`` is its id, ARN or ``alias/NAME``.

    Raises ``KeyringError`` where the key is missing, may not be used or cannot sign manifests, and
    ``StoreUnavailable`` where the service cannot be reached.
    """

    def __init__(self, client: KmsClient, key: str) -> None:
        self._client = client
        self._place = f"KMS key {key}"
        with _kms_errors(self._place):
            found = client.get_public_key(KeyId=key)
        usage = found.get("KeyUsage", "SIGN_VERIFY")
        if usage != "SIGN_VERIFY":
            raise KeyringError(f"{self._place}: is for {usage}; expected a key for SIGN_VERIFY")
        self._public = public_key_from_der(found["PublicKey"], self._place)
        self._algorithm = _algorithm(self._public)
        self._key = found["KeyId"]  # an alias may be moved to another key while we work

    @property
    def public(self) -> PublicKey:
        return self._public

    def sign(self, data: bytes) -> bytes:
        with _kms_errors(self._place):
            answer = self._client.sign(
                KeyId=self._key, Message=data, MessageType="RAW", SigningAlgorithm=self._algorithm
            )
        signature: bytes = answer["Signature"]
        if not is_signature(self._public, signature, data):
            raise KeyringError(f"{self._place}: returned a signature that its public key does not verify")
        return signature


def _algorithm(public: PublicKey) -> str:
    """What KMS calls the one way in which a kind of key signs manifests."""
    match public:
        case Ed25519PublicKey():
            return "ED25519_SHA_512"
        case EllipticCurvePublicKey():
            return "ECDSA_SHA_256"
        case RSAPublicKey():
            return "RSASSA_PSS_SHA_256"


@contextmanager
def _kms_errors(place: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _PASSING or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
            raise StoreUnavailable(f"{place}: {code}; nothing was signed") from None
        raise KeyringError(f"{place}: {code}; check the key and the role's kms:Sign and kms:GetPublicKey") from None
    except BotoCoreError as error:
        raise StoreUnavailable(f"{place}: cannot be reached ({type(error).__name__})") from None
