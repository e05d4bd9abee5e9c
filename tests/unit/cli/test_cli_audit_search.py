"""``airflow ai audit search`` and its neighbours, from the configuration to the shell."""

from __future__ import annotations

import argparse
import json
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.cli.cli_parser import get_parser
from support.s3 import S3Store
from support.search_double import SearchDouble

from airflow_ai_provider.cli.audit import moment
from airflow_ai_provider.core.administration.audit import record, seal_audit
from airflow_ai_provider.core.administration.audit_delivery import open_index
from airflow_ai_provider.core.audit.sinks.s3_archive import s3_client
from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.errors import AuditError
from airflow_ai_provider.hooks.settings import settings_from_airflow
from airflow_ai_provider.operators.audit import AuditSealOperator

NOW = datetime(2025, 3, 10, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__AI__HOME", str(tmp_path / "ai"))
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    return tmp_path / "ai"


def happened(user: str = "ada", dag_id: str = "d", times: int = 1) -> None:
    """A task that says something to the trail."""
    caller = Caller(dag_id, "r", "t", user=user)
    for _ in range(times):
        record(settings_from_airflow(), "policy.loaded", caller, policy_hash="0" * 64)


def airflow(*words: str) -> int:
    """Run a command as Airflow would; returns its exit status."""
    args: argparse.Namespace = get_parser().parse_args(["ai", "audit", *words])
    try:
        args.func(args)
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_what_is_delivered_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    happened("ada", times=2)
    happened("bob", "other")
    assert airflow("deliver", "-o", "json") == 0
    sinks = json.loads(capsys.readouterr().out)
    assert [(each["sink"], int(each["events"]), int(each["dead_letters"])) for each in sinks] == [
        ("archive", 3, 0),
        ("index", 3, 0),
    ]
    assert airflow("search", "--user", "ada", "--since", "1d", "-o", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["user.name"] for each in found} == {"ada"}
    assert len(found) == 2
    assert airflow("search", "--dag", "other", "--action", "policy.loaded", "--outcome", "success") == 0
    assert "bob" in capsys.readouterr().out
    assert airflow("search", "--limit", "1", "-o", "yaml") == 0
    assert len(yaml.safe_load(capsys.readouterr().out)) == 1
    assert airflow("search", "--user", "nobody") == 0
    assert "nothing of the kind in SQLite" in capsys.readouterr().err


def test_a_user_of_python_asks_the_same_index() -> None:
    happened("ada", times=3)
    airflow("deliver")
    with open_index(settings_from_airflow()) as index:
        assert len(index.actions_of("ada", days=30, now=datetime.now(UTC))) == 3
        assert len(index.events_of_run("d", "r")) == 3


def test_the_seal_operator_delivers_and_a_sink_that_is_down_does_not_fail_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context: Any = {}
    happened("ada", times=3)
    sealed = AuditSealOperator(task_id="seal").execute(context)
    assert (sealed["events"], sealed["indexed"], sealed["dead_letters"]) == (3, 3, 0)
    monkeypatch.setattr("airflow_ai_provider.core.audit.sinks.elastic_index.TRIES", 1)
    monkeypatch.setenv("AIRFLOW_CONN_AI_SEARCH", '{"conn_type": "elasticsearch", "host": "127.0.0.1", "port": 9}')
    monkeypatch.setenv("AIRFLOW__AI__SEARCH_CONN_ID", "ai_search")
    happened("ada")
    sealed = AuditSealOperator(task_id="seal").execute(context)
    assert (sealed["events"], sealed["indexed"]) == (1, 0)
    monkeypatch.delenv("AIRFLOW__AI__SEARCH_CONN_ID")
    assert AuditSealOperator(task_id="seal").execute(context)["indexed"] == 1


def test_an_index_that_was_deleted_is_rebuilt(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    happened(times=3)
    seal_audit(settings_from_airflow())
    airflow("deliver")
    (home / "audit" / "search.db").unlink()
    capsys.readouterr()
    assert airflow("index", "rebuild", "-o", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert int(row["events"]) == 3
    assert airflow("dead-letters") == 0


def test_elasticsearch_and_s3_are_reached_by_configuration_alone(
    s3: S3Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = f"cli-{secrets.token_hex(6)}"
    s3_client(s3.options).create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    store = {"conn_type": "aws", "login": s3.access_key, "password": s3.secret_key}
    extra = {"endpoint_url": s3.url, "region_name": "us-east-1"}
    monkeypatch.setenv("AIRFLOW_CONN_AI_ARCHIVE", json.dumps({**store, "extra": extra}))
    monkeypatch.setenv("AIRFLOW__AI__ARCHIVE_URI", f"s3://ai_archive@{bucket}/trail")
    happened()
    assert airflow("deliver") == 1
    assert "set archive_lock in section ai to compliance, governance or none" in capsys.readouterr().err
    monkeypatch.setenv("AIRFLOW__AI__ARCHIVE_LOCK", "compliance")
    monkeypatch.setenv("AIRFLOW__AI__ARCHIVE_RETENTION_DAYS", "1")
    assert airflow("archive", "--set-up", "-o", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["default_retention"] == "COMPLIANCE 1 days"
    with SearchDouble(login=("ada", "word")) as double:
        search = {"conn_type": "elasticsearch", "host": "127.0.0.1", "port": double.port}
        monkeypatch.setenv("AIRFLOW_CONN_AI_SEARCH", json.dumps({**search, "login": "ada", "password": "word"}))
        monkeypatch.setenv("AIRFLOW__AI__SEARCH_CONN_ID", "ai_search")
        assert airflow("deliver") == 0
        seal_audit(settings_from_airflow())
        capsys.readouterr()
        assert airflow("search", "--user", "ada", "-o", "json") == 0
        assert len(json.loads(capsys.readouterr().out)) == 1
    assert airflow("verify") == 0
    assert airflow("archive", "--expire-days", "2") == 2
    assert "--expire-days is part of --set-up" in capsys.readouterr().err


def test_an_attempt_to_overwrite_the_archive_is_a_finding_of_verify(
    s3: S3Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket, client = f"cli-{secrets.token_hex(6)}", s3_client(s3.options)
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    store = {"conn_type": "aws", "login": s3.access_key, "password": s3.secret_key, "host": s3.url}
    monkeypatch.setenv("AIRFLOW_CONN_AI_ARCHIVE", json.dumps(store))
    monkeypatch.setenv("AIRFLOW__AI__ARCHIVE_URI", f"s3://ai_archive@{bucket}")
    monkeypatch.setenv("AIRFLOW__AI__ARCHIVE_LOCK", "governance")
    happened()
    seal_audit(settings_from_airflow())
    client.delete_object(Bucket=bucket, Key="manifests/000000000001.json")
    assert airflow("verify", "-o", "json") == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert (finding["kind"], finding["place"]) == ("object_overlaid", "manifests/000000000001.json")


def test_a_sink_that_is_down_is_a_finding_of_deliver(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("airflow_ai_provider.core.audit.sinks.elastic_index.TRIES", 1)
    monkeypatch.setenv("AIRFLOW_CONN_AI_SEARCH", '{"conn_type": "elasticsearch", "host": "127.0.0.1", "port": 9}')
    monkeypatch.setenv("AIRFLOW__AI__SEARCH_CONN_ID", "ai_search")
    happened()
    assert airflow("deliver", "-o", "json") == 1
    said = capsys.readouterr()
    assert "does not answer (ConnectionError); the rest waits for the next delivery" in said.err
    assert int(json.loads(said.out)[0]["events"]) == 1
    assert airflow("search") == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30d", NOW - timedelta(days=30)),
        ("12h", NOW - timedelta(hours=12)),
        ("15m", NOW - timedelta(minutes=15)),
        ("2025-03-01", datetime(2025, 3, 1, tzinfo=UTC)),
        ("2025-03-01T10:00:00Z", datetime(2025, 3, 1, 10, tzinfo=UTC)),
        ("2025-03-01T10:00:00+02:00", datetime(2025, 3, 1, 8, tzinfo=UTC)),
        ("2025-03-01T10:00", datetime(2025, 3, 1, 10, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_people_write_them(text: str, expected: datetime) -> None:
    assert moment(text, NOW) == expected


def test_the_last_day_counts_to_its_end() -> None:
    assert moment("2025-03-01", NOW, end=True) == datetime(2025, 3, 2, tzinfo=UTC)
    assert moment("2025-03-01T10:00:00Z", NOW, end=True) == datetime(2025, 3, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize("text", ["yesterday", "30", "2025-13-01", "x", "-3d"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(AuditError, match="expected 30d, 12h, 15m, 2025-01-31 or"):
        moment(text, NOW)


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "es.internal"}, "http://es.internal:9200"),
        ({"host": "es.internal", "port": 443, "schema": "https"}, "https://es.internal:443"),
        ({"host": "https://es.internal/prefix/"}, "https://es.internal/prefix"),
        ({"host": "::1"}, "http://[::1]:9200"),
        ({"host": "es.internal", "extra": {"use_ssl": True}}, "https://es.internal:9200"),
    ],
)
def test_connections_of_elasticsearch(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], url: str) -> None:
    extra = {"api_key": "the-key-of-ada", "verify_certs": False, **fields.pop("extra", {})}
    conn = {"conn_type": "elasticsearch", "password": "word", **fields, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AI_SEARCH", json.dumps(conn))
    monkeypatch.setenv("AIRFLOW__AI__SEARCH_CONN_ID", "ai_search")
    settings = settings_from_airflow()
    assert settings.search is not None
    assert (settings.search.url, settings.search.verify_certs) == (url, False)
    assert settings.search.api_key == "the-key-of-ada"
    assert "the-key-of-ada" not in repr(settings)
