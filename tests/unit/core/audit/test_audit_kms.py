"""Manifests signed by a key service over HTTP, verified with the public key alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.audit import House

from airflow_ai_provider.core.audit.sealing.seal import seal_trail
from airflow_ai_provider.core.audit.sealing.signing import KmsSigner, load_verify_keys, publish_key
from airflow_ai_provider.core.audit.verify.verify import verify
from airflow_ai_provider.errors import KeyringError, StoreUnavailable


@pytest.fixture(scope="module")
def kms() -> Iterator[Any]:
    """A boto3 client of a KMS server on this machine."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    yield boto3.client("kms", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", **keys)
    server.stop()


def make(kms: Any, spec: str, usage: str = "SIGN_VERIFY") -> str:
    key: str = kms.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["KeyId"]
    return key


@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "RSA_2048"])
def test_a_trail_signed_in_kms_is_verified_without_it(kms: Any, house: House, tmp_path: Path, spec: str) -> None:
    key = make(kms, spec)
    kms.create_alias(AliasName=f"alias/sealer-{spec}", TargetKeyId=key)
    signer = KmsSigner(kms, f"alias/sealer-{spec}")
    publish_key(tmp_path / "auditor", signer.public)
    for _ in range(2):
        house.write(3)
        seal_trail(house.spool, house.archive, house.store, signer, house.clock())
    report = verify(house.archive, house.spool, house.store, load_verify_keys(tmp_path / "auditor"))
    assert (report.status, report.manifests, report.events) == (0, 2, 6)
    assert list((house.root / "keys").glob("*")) == [], "no private key on this host"
    other = KmsSigner(kms, make(kms, spec))
    assert signer.sign(b"x") != other.sign(b"x")
    publish_key(tmp_path / "stranger", other.public)
    wrong = verify(house.archive, house.spool, house.store, load_verify_keys(tmp_path / "stranger"))
    assert {finding.kind for finding in wrong.findings} == {"manifest_key"}


def test_the_alias_is_resolved_once(kms: Any) -> None:
    """Moved to another key while a sealer works, it would sign with a key the manifest does not name."""
    first, second = make(kms, "ECC_NIST_P256"), make(kms, "ECC_NIST_P256")
    kms.create_alias(AliasName="alias/moved", TargetKeyId=first)
    signer = KmsSigner(kms, "alias/moved")
    kms.update_alias(AliasName="alias/moved", TargetKeyId=second)
    assert signer.sign(b"statement")


def test_keys_that_cannot_sign_are_refused(kms: Any) -> None:
    with pytest.raises(KeyringError, match=r"KMS key .*: expected an Ed25519, NIST P-256 or RSA"):
        KmsSigner(kms, make(kms, "ECC_NIST_P384"))
    with pytest.raises(KeyringError, match=r"KMS key alias/none: NotFoundException; check the key"):
        KmsSigner(kms, "alias/none")


def test_an_unreachable_service_may_be_tried_again() -> None:
    import boto3
    from botocore.config import Config

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    once = Config(retries={"total_max_attempts": 1}, connect_timeout=1)
    client = boto3.client("kms", endpoint_url="http://127.0.0.1:1", region_name="us-east-1", config=once, **keys)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        KmsSigner(client, "alias/any")


class Lying:
    """Returns a signature of something else."""

    def __init__(self, kms: Any) -> None:
        self.get_public_key = kms.get_public_key
        self._sign = kms.sign

    def sign(self, **request: Any) -> Any:
        return self._sign(**{**request, "Message": b"something else"})


def test_a_signature_that_does_not_fit_is_not_used(kms: Any) -> None:
    signer = KmsSigner(Lying(kms), make(kms, "ECC_NIST_P256"))
    with pytest.raises(KeyringError, match="does not verify"):
        signer.sign(b"statement")
