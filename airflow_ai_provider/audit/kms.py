"""Signing with a key that AWS KMS never gives away: ECC_NIST_P256, ECC_NIST_EDWARDS25519 or RSA_2048 and up.

The sealer's role needs ``kms:Sign`` and ``kms:GetPublicKey`` on that key, and workers need neither. Each signature is
checked with the public key before it is used, so a service that answers wrongly seals nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from airflow_ai_provider.audit.keys import PublicKey, is_signature, public_key_from_der
from airflow_ai_provider.errors import KeyringError, StoreUnavailable

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
