"""The signing key: made once, private, read back the same."""

from __future__ import annotations

import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP192R1, SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from airflow_ai_provider.core.audit.sealing.signing import (
    Signer,
    is_signature,
    key_id,
    load_or_create_signing_key,
    load_verify_keys,
    publish_key,
)
from airflow_ai_provider.errors import KeyringError


def id_of(key: Signer) -> str:
    return key_id(key.public)


def test_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    first = load_or_create_signing_key(tmp_path / "keys")
    again = load_or_create_signing_key(tmp_path / "keys")
    assert id_of(first) == id_of(again)
    assert stat.S_IMODE((tmp_path / "keys" / "signing_key.pem").stat().st_mode) == 0o600
    assert "signing" not in repr(first).lower() or "private" not in repr(first)
    names = sorted(path.name for path in (tmp_path / "keys").iterdir())
    assert names == ["signing_key.pem", f"verify_key-{id_of(first)}.pem"]


def test_key_id_is_the_hash_of_the_public_key(tmp_path: Path) -> None:
    key = load_or_create_signing_key(tmp_path)
    der = key.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert id_of(key) == sha256(der).hexdigest()[:16]
    (file,) = tmp_path.glob("verify_key*.pem")
    assert set(load_verify_keys(tmp_path)) == set(load_verify_keys(file)) == {id_of(key)}


def test_racing_makers_get_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: id_of(load_or_create_signing_key(tmp_path)), range(8)))
    assert len(set(keys)) == 1
    assert set(load_verify_keys(tmp_path)) == set(keys)


def test_an_old_verify_key_stays_beside_the_new(tmp_path: Path) -> None:
    old = load_or_create_signing_key(tmp_path)
    (tmp_path / "signing_key.pem").unlink()
    new = load_or_create_signing_key(tmp_path)
    assert set(load_verify_keys(tmp_path)) == {id_of(old), id_of(new)}


@pytest.mark.parametrize("kind", ["ed25519", "p256", "rsa"])
def test_each_kind_of_key_signs_in_its_one_way(tmp_path: Path, kind: str) -> None:
    """Signed by the library's own calls, read back from PEM, checked; another text or signature does not fit."""
    data = b"statement"
    match kind:
        case "ed25519":
            private = Ed25519PrivateKey.generate()
            signature, public = private.sign(data), private.public_key()
        case "p256":
            curve = generate_private_key(SECP256R1())
            signature, public = curve.sign(data, ECDSA(SHA256())), curve.public_key()
        case _:
            big = rsa.generate_private_key(65537, 2048)
            signature, public = big.sign(data, PSS(MGF1(SHA256()), 32), SHA256()), big.public_key()
    (read,) = load_verify_keys(publish_key(tmp_path, public)).values()
    assert is_signature(read, signature, data)
    assert not is_signature(read, signature, b"statemenT")
    assert not is_signature(read, bytes(len(signature)), data)


def test_keys_that_could_be_forged_are_refused(tmp_path: Path) -> None:
    for weak in (rsa.generate_private_key(65537, 1024).public_key(), generate_private_key(SECP192R1()).public_key()):
        path = tmp_path / "verify_key.pem"
        path.write_bytes(weak.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        with pytest.raises(KeyringError, match="NIST P-256 or RSA"):
            load_verify_keys(path)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_or_create_signing_key(tmp_path)
    (tmp_path / "signing_key.pem").chmod(0o640)
    with pytest.raises(KeyringError, match="0640; expected 0600"):
        load_or_create_signing_key(tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing_key.pem"
    other = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for data in (b"", b"nonsense", other):
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(KeyringError, match="Ed25519"):
            load_or_create_signing_key(tmp_path)
    with pytest.raises(KeyringError, match="public key"):
        load_verify_keys(path)
    with pytest.raises(KeyringError, match="cannot be read"):
        load_verify_keys(tmp_path / "absent.pem")


def test_openssl_reads_both_files(tmp_path: Path) -> None:
    """PEM as everyone writes it."""
    load_or_create_signing_key(tmp_path)
    private = subprocess.run(
        ["openssl", "pkey", "-in", tmp_path / "signing_key.pem", "-pubout"], capture_output=True, check=True
    )
    (public,) = tmp_path.glob("verify_key*.pem")
    assert private.stdout == public.read_bytes()
