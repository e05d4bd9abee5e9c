"""The signing key: made once, private, read back the same."""

from __future__ import annotations

import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from airflow_ai_provider.audit.keys import load_or_create_signing_key, load_verify_keys
from airflow_ai_provider.errors import KeyringError


def test_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    first = load_or_create_signing_key(tmp_path / "keys")
    again = load_or_create_signing_key(tmp_path / "keys")
    assert first.key_id == again.key_id
    assert stat.S_IMODE((tmp_path / "keys" / "signing_key.pem").stat().st_mode) == 0o600
    assert "signing" not in repr(first).lower() or "private" not in repr(first)
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["signing_key.pem", "verify_key.pem"]


def test_key_id_is_the_hash_of_the_public_key(tmp_path: Path) -> None:
    key = load_or_create_signing_key(tmp_path)
    raw = key.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert key.key_id == sha256(raw).hexdigest()[:16]
    assert set(load_verify_keys(tmp_path)) == set(load_verify_keys(tmp_path / "verify_key.pem")) == {key.key_id}


def test_racing_makers_get_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: load_or_create_signing_key(tmp_path).key_id, range(8)))
    assert len(set(keys)) == 1
    assert set(load_verify_keys(tmp_path)) == set(keys)


def test_an_old_verify_key_is_kept_beside_the_new(tmp_path: Path) -> None:
    old = load_or_create_signing_key(tmp_path)
    (tmp_path / "verify_key.pem").rename(tmp_path / "verify_key-2024.pem")
    (tmp_path / "signing_key.pem").unlink()
    new = load_or_create_signing_key(tmp_path)
    assert set(load_verify_keys(tmp_path)) == {old.key_id, new.key_id}


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
    assert private.stdout == (tmp_path / "verify_key.pem").read_bytes()
