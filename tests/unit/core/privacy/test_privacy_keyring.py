from __future__ import annotations

import base64
import json
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.errors import KeyringError


def _mapping(**keys: bytes) -> dict[str, Any]:
    entries = {
        key_id: {"secret": base64.b64encode(secret).decode(), "created": "2025-01-01T00:00:00+00:00"}
        for key_id, secret in keys.items()
    }
    return {"version": 1, "active": next(iter(keys)), "keys": entries}


def _open_in_process(path: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(Keyring.open(Path(path)).derive("p").hex())


def test_open_creates_a_private_file_and_reads_it_again(tmp_path: Path) -> None:
    """The first use makes a keyring, later uses find the same keys."""
    path = tmp_path / "home" / "keyring.json"
    first = Keyring.open(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    content = json.loads(path.read_text())
    assert content["version"] == 1
    assert content["active"] == first.active
    assert len(base64.b64decode(content["keys"][first.active]["secret"])) == 32
    assert Keyring.open(path).derive("p", "c") == first.derive("p", "c")


def test_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Keyring.open(tmp_path / "keyring.json")
    finally:
        os.umask(before)
    assert (tmp_path / "keyring.json").stat().st_mode & 0o777 == 0o600


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    """The loser of the race reads the winner's keyring."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.Queue()
    path = str(tmp_path / "keyring.json")
    workers = [context.Process(target=_open_in_process, args=(path, barrier, results)) for _ in range(6)]
    for worker in workers:
        worker.start()
    derived = {results.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(derived) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["keyring.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keyring.json"
    Keyring.open(path)
    path.chmod(mode)
    with pytest.raises(KeyringError, match="chmod 600"):
        Keyring.open(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "JSON object"),
        (b"[]", "JSON object"),
        (b'{"version": 2}', "version 1"),
        (b'{"version": 1, "keys": {}}', '"keys"'),
        (b'{"version": 1, "active": "k1", "keys": {"k1": {"secret": "c2hvcnQ="}}}', "'k1'.*32 bytes"),
        (b'{"version": 1, "active": "k1", "keys": {"k1": {"secret": "not base64!"}}}', "'k1'.*32 bytes"),
        (b'{"version": 1, "active": "k1", "keys": {"\xc3\xa9": {}}}', "key ids"),
    ],
)
def test_a_damaged_file_is_named_with_what_was_expected(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "keyring.json"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(KeyringError, match=expected) as caught:
        Keyring.open(path)
    assert str(path) in str(caught.value)


def test_a_damaged_file_is_not_quoted(tmp_path: Path) -> None:
    """The decoder's own error holds the document; it is not in the chain."""
    path = tmp_path / "keyring.json"
    path.touch(mode=0o600)
    path.write_text('{"keys": {"k1": {"secret": "TOPSECRET"')
    with pytest.raises(KeyringError) as caught:
        Keyring.open(path)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_active_must_be_one_of_the_keys() -> None:
    data = _mapping(k1=b"a" * 32) | {"active": "k2"}
    with pytest.raises(KeyringError, match="k1"):
        Keyring.from_mapping(data)


def test_a_folder_is_not_a_keyring(tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match="expected a file of this user"):
        Keyring.open(tmp_path)


def test_derived_keys_are_bound_to_key_purpose_context_and_length() -> None:
    keyring = Keyring.from_mapping(_mapping(k1=b"a" * 32, k2=b"b" * 32))
    derived = [
        keyring.derive("mask"),
        keyring.derive("mask", "team/a"),
        keyring.derive("maskteam/a"),
        keyring.derive("mas", "kteam/a"),
        keyring.derive("mask", key_id="k2"),
    ]
    assert len(set(derived)) == len(derived)
    assert keyring.derive("mask", key_id="k1") == keyring.derive("mask")
    assert len(keyring.derive("mask", length=64)) == 64


def test_derivation_is_stable() -> None:
    """What was encrypted yesterday opens tomorrow: the derivation may never change."""
    keyring = Keyring.from_mapping(_mapping(k1=bytes(range(32))))
    assert keyring.derive("purpose", "context").hex() == (
        "b7a926bc109d02dda16bbe6a17ce1a58fc601f49100ecc9d0dee3c7682d10028"
    )


def test_an_unknown_key_id_is_named() -> None:
    keyring = Keyring.from_mapping(_mapping(k1=b"a" * 32))
    with pytest.raises(KeyringError, match=r"'k9'.*k1"):
        keyring.derive("mask", key_id="k9")


def test_secrets_are_neither_shown_nor_pickled() -> None:
    keyring = Keyring.from_mapping(_mapping(k1=b"a" * 32))
    assert repr(keyring) == "Keyring(active='k1', key_ids=('k1',))"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(keyring)
