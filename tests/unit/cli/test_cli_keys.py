"""``airflow ai keys …``: rotation that loses nothing, words for keyrings in a backend, and never a secret on screen."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from airflow.cli.cli_parser import get_parser
from support.privacy_tables import ROWS, decrypt, encrypt, events, mask, read, restore, rows_of, write
from support.privacy_tables import home as _privacy_home

from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.schema import ai_keys
from airflow_ai_provider.core.privacy.crypto.fields import key_ids
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring, fresh_keyring

home = _privacy_home


@pytest.fixture(autouse=True)
def _as_a_server(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    monkeypatch.delenv("AIRFLOW__AI__KEYRING_CONN_ID", raising=False)


def keys(*words: str) -> int:
    """Run a command as Airflow would; returns its exit status."""
    args = get_parser().parse_args(["ai", "keys", *words])
    try:
        args.func(args)
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def secrets_in(content: Any) -> list[str]:
    return [entry["secret"] for entry in content["keys"].values()]


def use_connection(monkeypatch: pytest.MonkeyPatch, content: Any) -> None:
    monkeypatch.setenv("AIRFLOW__AI__KEYRING_CONN_ID", "ring")
    monkeypatch.setenv("AIRFLOW_CONN_RING", json.dumps({"conn_type": "generic", "password": json.dumps(content)}))


def test_a_keyring_is_made_listed_and_rotated(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "ai/keyring.json"
    assert keys("list") == 2
    assert "keyring.json: No such file" in capsys.readouterr().err
    assert not file.exists(), "listing makes nothing"
    assert keys("generate") == 0
    first = Keyring.open(file).active
    assert keys("rotate") == 0
    assert keys("list", "-o", "json") == 0
    shown = capsys.readouterr().out
    listed = json.loads(shown[shown.index("[{") :])
    assert [(row["key_id"], row["use"]) for row in listed] == [
        (first, "read"),
        (Keyring.open(file).active, "read and write"),
    ]
    assert all(row["created"] for row in listed)
    assert file.stat().st_mode & 0o777 == 0o600
    assert not any(secret in shown for secret in secrets_in(json.loads(file.read_text())))
    assert [event["event.action"] for event in events(home)] == ["keys.generated", "keys.rotated"]
    assert all(event["user.name"] and event["host.name"] for event in events(home))
    assert not any("airflow_ai.dag_id" in event for event in events(home)), "a person, and no task"
    assert all(event["user.name"] for event in events(home))


def test_a_keyring_is_never_made_twice(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys("generate") == 0
    before = (home / "ai/keyring.json").read_bytes()
    assert keys("generate") == 2
    assert "exists already" in capsys.readouterr().err
    assert (home / "ai/keyring.json").read_bytes() == before


def test_a_keyring_of_a_backend_is_written_to_a_private_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = fresh_keyring()
    use_connection(monkeypatch, content)
    for command in ("generate", "rotate"):
        assert keys(command) == 2
        assert "name a new file with --out" in capsys.readouterr().err
    out = home / "next.json"
    assert keys("rotate", "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "connection 'ring'" in said
    assert out.stat().st_mode & 0o777 == 0o600
    written = json.loads(out.read_text())
    assert next(iter(written["keys"])) == content["active"] != written["active"]
    assert secrets_in(written)[0] == secrets_in(content)[0]
    assert not any(secret in said for secret in secrets_in(written))
    assert keys("rotate", "--out", str(out)) == 2, "a file is never overwritten"
    assert keys("generate", "--out", str(home / "fresh.json")) == 0
    assert not (home / "ai/keyring.json").exists()


def test_a_fresh_keyring_can_be_made_before_its_connection_exists(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRFLOW__AI__KEYRING_CONN_ID", "nowhere")
    assert keys("generate", "--out", str(home / "fresh.json")) == 0
    Keyring.from_mapping(json.loads((home / "fresh.json").read_text()))
    assert keys("list") == 2
    assert "'nowhere'" in capsys.readouterr().err


def test_a_file_is_not_for_a_keyring_that_is_a_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys("generate") == 0
    assert keys("rotate", "--out", str(home / "x.json")) == 2
    assert "changed in place" in capsys.readouterr().err


def test_tables_move_to_the_new_key_and_need_the_old_one_no_more(home: Path) -> None:
    encrypt(home, columns={"text": "encrypt", "n": {"deterministic": "customer"}})
    mask(home)
    old = Keyring.open(home / "ai/keyring.json").active
    assert keys("rotate") == 0
    common = ["--team", "support", "--key", "id"]
    words = ["reencrypt", str(home / "closed"), "--sink", str(home / "new"), "--table", "customers", *common]
    assert keys(*words, "--columns", "text,n=customer") == 0
    sealed = ["reencrypt", str(home / "masked"), "--sink", str(home / "masked-new"), *common]
    assert keys(*sealed, "--columns", "tokens_sealed") == 0
    new = Keyring.open(home / "ai/keyring.json").active
    for name in ("text", "n"):
        assert key_ids(read(home / "new").column(name).to_pylist()) == {new}
    content = json.loads((home / "ai/keyring.json").read_text())
    del content["keys"][old]
    (home / "ai/keyring.json").write_text(json.dumps(content))
    decrypt(home, "new", columns={"text": "text", "n": "customer"})
    assert [(row["text"], row["n"]) for row in rows_of(home / "open")] == [(row["text"], row["n"]) for row in ROWS]
    assert restore(home, "masked-new")["ok"] == 3
    assert {event["event.action"] for event in events(home)} >= {"keys.reencrypted"}


def test_a_lost_key_is_a_finding_that_names_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encrypt(home, columns={"text": "encrypt"})
    old = Keyring.open(home / "ai/keyring.json").active
    (home / "ai/keyring.json").unlink()
    keys("generate")
    words = ["reencrypt", str(home / "closed"), "--sink", str(home / "new"), "--table", "customers"]
    assert keys(*words, "--team", "support", "--key", "id", "--columns", "text") == 1
    assert "3 rows could not be read (keyring 3)" in capsys.readouterr().err
    for row in rows_of(home / "new"):
        assert f"key '{old}' is not in the keyring" in row["privacy_error"]
        assert row["text"] is None


def test_moving_goes_on_where_it_was_interrupted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encrypt(home, columns={"text": "encrypt"})
    keys("rotate")
    words = [
        "reencrypt",
        str(home / "closed"),
        "--sink",
        str(home / "new"),
        "--table",
        "customers",
        "--batch-rows",
        "1",
    ]
    words += ["--team", "support", "--key", "id", "--columns", "text"]
    assert keys(*words) == 0
    (home / "new/part-00000-000001.parquet").unlink()
    untouched = pq.read_table(home / "new/part-00000-000000.parquet").column("text")
    assert keys(*words) == 0
    assert "2 of them by an earlier try" in capsys.readouterr().out
    assert pq.read_table(home / "new/part-00000-000000.parquet").column("text") == untouched


def _rotate(path: str, barrier: Any) -> None:
    barrier.wait()
    Keyring.rotate(Path(path))


def test_of_rotations_at_once_each_adds_its_key(home: Path) -> None:
    keys("generate")
    file = home / "ai/keyring.json"
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(6)
    workers = [context.Process(target=_rotate, args=(str(file), barrier)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    ring = Keyring.open(file)
    assert len(ring.key_ids) == 7
    assert ring.active == ring.key_ids[-1]
    assert [path.name for path in file.parent.glob("*keyring*")] == ["keyring.json"]


def test_a_key_that_the_trail_does_not_know_of_is_not_made(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys("generate")
    before = (home / "ai/keyring.json").read_bytes()
    monkeypatch.setenv("AIRFLOW__AI__LEDGER_CONN_ID", "away")
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", "postgres://me:pa55word@127.0.0.1:1/db")
    assert keys("rotate") == 2
    assert (home / "ai/keyring.json").read_bytes() == before


def test_a_damaged_keyring_is_not_rotated(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys("generate")
    file = home / "ai/keyring.json"
    file.write_text('{"version": 1, "keys": {"k1": {"secret": "c2hvcnQ="}}, "active": "k1"}')
    before = file.read_bytes()
    assert keys("rotate") == 2
    assert "base64 of 32 bytes" in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.parametrize("words", [["reencrypt", "x"], ["rotate", "now"], []])
def test_wrong_arguments_exit_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        get_parser().parse_args(["ai", "keys", *words])
    assert left.value.code == 2


def test_columns_must_be_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys("generate")
    write(home / "in.parquet", ROWS)
    words = ["reencrypt", "x", "--sink", "y", "--team", "t", "--key", "id", "--columns", ","]
    assert keys(*words) == 2
    assert "expected names" in capsys.readouterr().err


def registered_by(home: Path, host: str) -> None:
    with open_ledger(None, home / "ai") as ledger, ledger.write() as conn:
        conn.execute(sa.update(ai_keys).values(host=host))


def test_the_keyring_of_another_host_is_not_made_here(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "ai/keyring.json"
    assert keys("generate") == 0
    assert keys("rotate") == 0
    registered_by(home, "another-host")
    lost = Keyring.open(file).key_ids
    file.unlink()
    assert keys("generate") == 2
    told = capsys.readouterr().err
    assert "host another-host" in told
    assert "keys adopt keyring" in told
    assert keys("generate", "--out", str(file)) == 0
    assert keys("rotate") == 2
    assert "is not among the keys of this host" in capsys.readouterr().err
    assert keys("adopt", "keyring") == 0
    assert keys("rotate") == 0
    said = [(event["event.action"], event.get("airflow_ai.key_id")) for event in events(home)]
    assert {("keys.retired", key_id) for key_id in lost} <= set(said)
    assert keys("adopt", "keyring") == 0, "again changes nothing"


def test_a_host_that_lost_its_own_keyring_makes_a_new_one(home: Path) -> None:
    mask(home)
    file = home / "ai/keyring.json"
    old = Keyring.open(file).active
    file.unlink()
    assert keys("generate") == 0
    assert keys("rotate") == 0
    said = [(event["event.action"], event.get("airflow_ai.key_id")) for event in events(home)]
    assert ("keys.retired", old) in said


def test_a_signing_key_is_adopted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys("adopt", "signing") == 0
    assert "signing main: key" in capsys.readouterr().out
