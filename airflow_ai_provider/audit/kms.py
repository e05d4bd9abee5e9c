"""Signing with a key that AWS KMS never gives away: ECC_NIST_P256, ECC_NIST_EDWARDS25519 or RSA_2048 and up.

The sealer's role needs ``kms:Sign`` and ``kms:GetPublicKey`` on that key, and workers need neither. Each signature is
checked with the public key before it is used, so a service that answers wrongly seals nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from airflow_ai_provider.audit.keys import PublicKey, is_signature, public_key_from_der
from airflow_ai_provider.errors import KeyringError, StoreUnavailable

_ALGORITHMS: Final = {
    "ECC_NIST_P256": "ECDSA_SHA_256",
    "ECC_NIST_EDWARDS25519": "ED25519_SHA_512",
    "RSA_2048": "RSASSA_PSS_SHA_256",
    "RSA_3072": "RSASSA_PSS_SHA_256",
    "RSA_4096": "RSASSA_PSS_SHA_256",
}
"""By key spec, as ``GetPublicKey`` names it (AWS KMS Developer Guide, "Key spec reference")."""
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
        spec = found["KeySpec"]
        if found["KeyUsage"] != "SIGN_VERIFY" or spec not in _ALGORITHMS:
            raise KeyringError(
                f"{self._place}: is {spec} for {found['KeyUsage']}; expected SIGN_VERIFY and one of"
                f" {', '.join(_ALGORITHMS)}"
            )
        self._algorithm = _ALGORITHMS[spec]
        self._key = found["KeyId"]  # an alias may be moved to another key while we work
        self._public = public_key_from_der(found["PublicKey"], self._place)

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
