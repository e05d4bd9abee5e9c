"""``airflow ai audit …``: seal, verify, export, prove, over a folder and a ledger of their own."""

from __future__ import annotations

import getpass
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from support.cli import airflow, answer, install

from airflow_ai_provider.core.audit.verify.segment_reader import check_segment

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "verify_proof.py"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch)


@pytest.fixture
def sealed(home: Path, capsys: Captured) -> Path:
    answer(home)
    assert airflow("audit", "seal", "-o", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["sequence"], row["segments"], row["refused"]) == ("1", "1", "0")
    (home / "pins").write_text(f"{row['sequence']} {row['manifest_hash']}\n")
    return home


def segment(home: Path) -> Path:
    (path,) = (home / "ai/audit/archive").glob("segments/*/*/*/*.gz")
    return path


def kinds(capsys: Captured) -> set[str]:
    return {row["kind"] for row in json.loads(capsys.readouterr().out)}


def test_a_whole_trail_verifies_and_a_broken_one_does_not(sealed: Path, capsys: Captured) -> None:
    assert airflow("audit", "verify") == 0
    assert "0 findings" in capsys.readouterr().out
    segment(sealed).unlink()
    assert airflow("audit", "verify", "-o", "json") == 1
    shown = capsys.readouterr()
    found = {(row["kind"], row["probably"]) for row in json.loads(shown.out)}
    assert ("segment_missing", "segment dropped") in found
    assert ("ledger_without_event", "event deleted, or never written") in found
    assert "findings" in shown.err


def test_a_trail_never_sealed_could_not_be_verified(capsys: Captured) -> None:
    assert airflow("audit", "verify") == 2
    assert "no verify key" in capsys.readouterr().err


def test_a_changed_ledger_is_a_finding(sealed: Path, capsys: Captured) -> None:
    engine = create_engine(f"sqlite:///{sealed / 'ai/ledger.db'}")
    with engine.begin() as conn:
        conn.execute(text("UPDATE llm_requests SET cost_nano = 0 WHERE status = 'ok'"))
    assert airflow("audit", "verify", "-o", "json") == 1
    assert kinds(capsys) == {"ledger_differs"}


def test_the_auditors_pins_count_more_than_the_databases(sealed: Path, capsys: Captured) -> None:
    pins = sealed / "pins"
    assert airflow("audit", "verify", "--pin", str(pins)) == 0
    capsys.readouterr()
    pins.write_text(f"# of last month\n1 {'0' * 64}\n")
    assert airflow("audit", "verify", "--pin", str(pins), "-o", "json") == 1
    assert kinds(capsys) == {"pin_changed", "pin_mismatch"}
    for content, message in (("1 abc\n", "line 1: expected a manifest's number"), (None, "cannot be read")):
        pins.unlink(missing_ok=True)
        if content:
            pins.write_text(content)
        assert airflow("audit", "verify", "--pin", str(pins)) == 2
        assert message in capsys.readouterr().err


def test_an_auditors_own_copies_of_archive_and_key(sealed: Path, tmp_path: Path, capsys: Captured) -> None:
    shutil.copytree(sealed / "ai/audit/archive", tmp_path / "copy")
    (key,) = (sealed / "ai/audit/keys").glob("verify_key-*.pem")
    shutil.copy(key, tmp_path / "auditor.pem")
    assert airflow("audit", "verify", "--archive", str(tmp_path / "copy"), "--keys", str(tmp_path / "auditor.pem")) == 0
    assert airflow("audit", "verify", "--keys", str(tmp_path / "none.pem")) == 2
    assert airflow("audit", "verify", "--archive", str(tmp_path / "none")) == 2
    shown = capsys.readouterr().err
    assert "none.pem: no such file" in shown
    assert "none: no such folder" in shown


def test_days_bound_what_is_read(sealed: Path, capsys: Captured) -> None:
    today = datetime.now(UTC).date()
    tomorrow = str(today + timedelta(days=1))
    assert airflow("audit", "verify", "--from", str(today), "--to", tomorrow) == 0
    assert "in 1 segments" in capsys.readouterr().out
    assert airflow("audit", "verify", "--from", tomorrow) == 0
    assert "0 events in 0 segments" in capsys.readouterr().out
    segment(sealed).chmod(0o600)
    segment(sealed).write_bytes(b"")
    assert airflow("audit", "verify", "--to", str(today - timedelta(days=1))) == 0
    assert airflow("audit", "verify", "--from", str(today)) == 1


def lines(path: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("form", ["ecs", "ocsf"])
def test_an_export_holds_the_events_and_is_one_itself(sealed: Path, capsys: Captured, form: str) -> None:
    target = sealed / "events.jsonl"
    assert airflow("audit", "export", "--format", form, "-o", str(target)) == 0
    found = list(lines(target))
    named = {event["event.action"] if form == "ecs" else event["api"]["operation"] for event in found}
    assert {"policy.loaded", "task.started", "batch.started", "llm.call", "task.finished"} <= named
    assert f"{len(found)} events as {form}; the trail has 0 findings" in capsys.readouterr().err
    exported = [event for event in spooled(sealed) if event["event.action"] == "audit.exported"]
    assert [event["airflow_ai.events"] for event in exported] == [len(found)]
    assert exported[0]["user.name"] == getpass.getuser()


def spooled(home: Path) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    for path in (home / "ai/audit/spool").rglob("*.sealed"):
        check_segment([path.read_bytes()], sealed=True, visit=lambda document, body: seen.append(document))
    return seen


def test_an_export_of_a_broken_trail_says_so_and_holds_what_is_intact(sealed: Path, capsys: Captured) -> None:
    path = segment(sealed)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-20])
    target = sealed / "events.jsonl"
    assert airflow("audit", "export", "-o", str(target)) == 1
    assert "findings" in capsys.readouterr().err
    assert all(event["event.id"] for event in lines(target))
    assert airflow("audit", "export", "-o", str(sealed / "no" / "where.jsonl")) == 2
    assert not (sealed / "no").exists()


def test_a_proof_is_written_and_checked_by_the_script_alone(sealed: Path, tmp_path: Path, capsys: Captured) -> None:
    assert airflow("audit", "export", "-o", str(tmp_path / "events.jsonl")) == 0
    (call, *_) = (event for event in lines(tmp_path / "events.jsonl") if event["event.action"] == "llm.call")
    capsys.readouterr()
    assert airflow("audit", "prove", call["event.id"]) == 0
    proof = capsys.readouterr().out
    assert json.loads(proof)["format"] == "airflow-ai audit proof 1"
    (tmp_path / "proof.json").write_text(proof)
    (key,) = (sealed / "ai/audit/keys").glob("verify_key-*.pem")
    command = [sys.executable, "-I", str(SCRIPT), str(tmp_path / "proof.json"), str(key)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"proved: event {call['event.id']} (llm.call" in ran.stdout
    assert airflow("audit", "prove", "0" * 28 + "-1") == 2


def test_a_signing_key_apart_from_the_workers(sealed: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """A folder of its own: manifests of the old key and of the new one both verify."""
    apart = sealed / "sealer-only"
    monkeypatch.setenv("AIRFLOW__AI__AUDIT_SIGNING_KEY", str(apart))
    answer(sealed, "second")
    assert airflow("audit", "seal") == 0
    assert (apart / "signing_key.pem").exists()
    assert len(list((sealed / "ai/audit/keys").glob("verify_key-*.pem"))) == 2
    assert airflow("audit", "verify") == 0
    monkeypatch.setenv("AIRFLOW__AI__AUDIT_SIGNING_KEY", "vault://x")
    capsys.readouterr()
    assert airflow("audit", "seal") == 2
    assert "expected a folder, or kms://CONN_ID/KEY" in capsys.readouterr().err


def test_a_signing_key_in_kms_through_a_connection(
    sealed: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AIRFLOW__AI__AUDIT_SIGNING_KEY", "kms://sealer_aws/alias/sealer")
    assert airflow("audit", "seal") == 2
    assert "connection 'sealer_aws', named by [ai] audit_signing_key, does not exist" in capsys.readouterr().err
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        extra = {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"}
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        client = boto3.client("kms", **extra, **keys)
        made = client.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
        client.create_alias(AliasName="alias/sealer", TargetKeyId=made)
        conn = {"conn_type": "aws", "login": "test", "password": "test", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_SEALER_AWS", json.dumps(conn))
        answer(sealed, "second")
        assert airflow("audit", "seal") == 0
    finally:
        server.stop()
    assert airflow("audit", "verify") == 0, "without the service, by the public key alone"
    assert len(list((sealed / "ai/audit/keys").glob("verify_key-*.pem"))) == 2


@pytest.mark.parametrize("value", ["many", "0", "-1", "1.5"])
def test_a_wrong_spool_limit_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Captured, value: str) -> None:
    monkeypatch.setenv("AIRFLOW__AI__AUDIT_SPOOL_LIMIT_MB", value)
    assert airflow("audit", "verify") == 2
    assert f"audit_spool_limit_mb '{value}': expected megabytes" in capsys.readouterr().err
