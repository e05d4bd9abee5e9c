"""Airflow connections, as people write them, become what the heart needs; secrets stay out of sight."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import pytest
from airflow.sdk import Connection
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from airflow_ai_provider.errors import KeyringError, PermanentError, PolicyError
from airflow_ai_provider.hooks import connections
from airflow_ai_provider.hooks.settings import resolve_endpoint, settings_from_airflow, with_archive

AI_OPTIONS = ("ledger", "cache", "vectors", "search", "keyring")


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    for name in ("HOME", "POLICY_PATH", "ARCHIVE_URI", *(f"{kind.upper()}_CONN_ID" for kind in AI_OPTIONS)):
        monkeypatch.delenv(f"AIRFLOW__AI__{name}", raising=False)


def configure(monkeypatch: pytest.MonkeyPatch, option: str, value: object, connection: object = None) -> None:
    monkeypatch.setenv(f"AIRFLOW__AI__{option.upper()}", str(value))
    if connection is not None:
        text = connection if isinstance(connection, str) else json.dumps(connection)
        monkeypatch.setenv(f"AIRFLOW_CONN_{str(value).upper()}", text)


def test_nothing_configured_is_embedded_in_airflows_home(tmp_path: Path) -> None:
    settings = settings_from_airflow()
    assert settings.home == tmp_path / "ai"
    assert settings.policy_path == tmp_path / "ai" / "policy.yaml"
    assert (settings.ledger_url, settings.cache_url, settings.archive_uri) == (None, None, None)
    assert (settings.vectors_uri, settings.keyring) == (None, None)


def test_relative_paths_of_the_configuration_start_at_airflows_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure(monkeypatch, "home", "state")
    configure(monkeypatch, "policy_path", "policies/policy.yaml")
    settings = settings_from_airflow()
    assert (settings.home, settings.policy_path) == (tmp_path / "state", tmp_path / "policies/policy.yaml")


def test_a_task_may_not_bring_its_own_policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configure(monkeypatch, "policy_path", "/etc/policy.yaml")
    with pytest.raises(PolicyError, match=r"from /etc/policy\.yaml .*Remove the argument.*allow_dag_policy = True"):
        settings_from_airflow(policy=str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("switch", ["True", "true", "1", "on"])
def test_where_it_is_allowed_a_tasks_own_policy_narrows_the_governing_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, switch: str
) -> None:
    configure(monkeypatch, "policy_path", "/etc/policy.yaml")
    configure(monkeypatch, "allow_dag_policy", switch)
    settings = settings_from_airflow(policy=str(tmp_path / "mine.yaml"))
    assert (settings.policy_path, settings.dag_policy_path) == (Path("/etc/policy.yaml"), tmp_path / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    assert settings_from_airflow(policy="mine.yaml").dag_policy_path == tmp_path / "mine.yaml"
    assert settings_from_airflow(policy="").dag_policy_path is None


def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configure(monkeypatch, "allow_dag_policy", "perhaps")
    with pytest.raises(PermanentError, match=r"\[ai\] allow_dag_policy 'perhaps': expected True or False"):
        settings_from_airflow(policy=str(tmp_path / "mine.yaml"))


def test_naming_the_governing_file_is_no_policy_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1\n")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "policy.yaml")
    configure(monkeypatch, "policy_path", str(tmp_path / "policy.yaml"))
    for name in ("policy.yaml", "link.yaml", "../" + tmp_path.name + "/policy.yaml"):
        settings = settings_from_airflow(policy=str(tmp_path / name))
        assert (settings.policy_path, settings.dag_policy_path) == (tmp_path / "policy.yaml", None)
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for name in ("loop.yaml", "a\0b"):
        with pytest.raises(PolicyError, match="may not bring its own policy file"):
            settings_from_airflow(policy=str(tmp_path / name))


@pytest.mark.parametrize("option", ["ledger_conn_id", "cache_conn_id", "vectors_conn_id", "keyring_conn_id"])
def test_a_missing_connection_names_its_id_and_its_option(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    configure(monkeypatch, option, "nowhere")
    with pytest.raises(
        PermanentError, match=rf"'nowhere', named by \[ai\] {option}, does not exist.*AIRFLOW_CONN_NOWHERE"
    ):
        settings_from_airflow()


def test_a_missing_vendor_connection_names_its_id_and_the_policy() -> None:
    with pytest.raises(PermanentError, match="'openai_nowhere', named by a deployment of the policy"):
        settings_from_airflow().endpoint("openai_nowhere")


def test_postgres_becomes_a_psycopg_url_with_its_libpq_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"sslmode": "require", "cursor": "dictcursor", "iam": False}
    configure(
        monkeypatch,
        "ledger_conn_id",
        "ledger_db",
        {"conn_type": "postgres", "host": "db", "login": "me", "password": "p@ss/w:rd", "schema": "ai", "extra": extra},
    )
    url = make_url(settings_from_airflow().ledger_url or "")
    assert (url.drivername, url.host, url.port, url.database) == ("postgresql+psycopg", "db", 5432, "ai")
    assert (url.username, url.password, dict(url.query)) == ("me", "p@ss/w:rd", {"sslmode": "require"})


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        ({"conn_type": "sqlite", "host": "/data/ledger.db"}, "sqlite:////data/ledger.db"),
        ("sqlite:///%2Fdata%2Fledger.db", "sqlite:////data/ledger.db"),
    ],
)
def test_sqlite_is_a_path(monkeypatch: pytest.MonkeyPatch, connection: object, expected: str) -> None:
    configure(monkeypatch, "ledger_conn_id", "ledger_db", connection)
    assert settings_from_airflow().ledger_url == expected


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        ("redis://cache:6380/2", "redis://cache:6380/2"),
        ({"conn_type": "redis", "host": "cache", "password": "a/b"}, "redis://:a%2Fb@cache:6379/0"),
        (
            {
                "conn_type": "redis",
                "host": "::1",
                "login": "me",
                "password": "x",
                "extra": {"db": 3, "ssl": True, "ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem"},
            },
            "rediss://me:x@[::1]:6379/3?ssl_cert_reqs=required&ssl_ca_certs=%2Fca.pem",
        ),
        ({"conn_type": "redis", "host": "cache", "extra": {"ssl": "false"}}, "redis://cache:6379/0"),
    ],
)
def test_redis_becomes_a_url_that_respects_tls(
    monkeypatch: pytest.MonkeyPatch, connection: object, expected: str
) -> None:
    configure(monkeypatch, "cache_conn_id", "cache", connection)
    assert settings_from_airflow().cache_url == expected


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        ({"conn_type": "generic", "host": "milvus"}, ("http://milvus:19530", None)),
        ({"conn_type": "http", "host": "milvus", "port": 443, "schema": "https"}, ("https://milvus:443", None)),
        ({"conn_type": "generic", "host": "https://milvus.example", "password": "t"}, ("https://milvus.example", "t")),
        ({"conn_type": "generic", "host": "m", "login": "root", "password": "p"}, ("http://m:19530", "root:p")),
    ],
)
def test_milvus_is_an_address_and_a_token(
    monkeypatch: pytest.MonkeyPatch, connection: object, expected: tuple[str, str | None]
) -> None:
    configure(monkeypatch, "vectors_conn_id", "vectors", connection)
    settings = settings_from_airflow()
    assert (settings.vectors_uri, settings.vectors_token) == expected


@pytest.mark.parametrize("field", ["password", "extra"])
def test_a_keyring_is_json_in_the_password_or_the_extra(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    ring = {"version": 1, "keys": {"k1": "c2VjcmV0"}}
    configure(monkeypatch, "keyring_conn_id", "ring", {"conn_type": "generic", field: json.dumps(ring)})
    assert settings_from_airflow().keyring == ring


@pytest.mark.parametrize("password", ["not json", "[1]", None])
def test_a_keyring_that_is_none_says_so_without_its_text(monkeypatch: pytest.MonkeyPatch, password: str | None) -> None:
    configure(monkeypatch, "keyring_conn_id", "ring", {"conn_type": "generic", "password": password})
    with pytest.raises(KeyringError, match="'ring'") as caught:
        settings_from_airflow()
    assert "not json" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "connection", "words"),
    [
        ("ledger_conn_id", {"conn_type": "mysql", "host": "db"}, "type 'mysql'.*PostgreSQL"),
        ("ledger_conn_id", {"conn_type": "postgres"}, "host is empty"),
        ("ledger_conn_id", {"conn_type": "sqlite"}, "names no file"),
        ("cache_conn_id", {"conn_type": "memcached", "host": "c"}, "type 'memcached'.*Redis"),
        ("cache_conn_id", {"conn_type": "redis", "host": "c", "extra": {"db": "zero"}}, "number of a Redis database"),
        ("vectors_conn_id", {"conn_type": "generic"}, "host is empty"),
    ],
)
def test_a_connection_of_the_wrong_kind_says_what_was_expected(
    monkeypatch: pytest.MonkeyPatch, option: str, connection: object, words: str
) -> None:
    configure(monkeypatch, option, "odd", connection)
    with pytest.raises(PermanentError, match=f"connection 'odd': .*{words}"):
        settings_from_airflow()


@pytest.mark.parametrize(
    ("fields", "api_base"),
    [
        ({"conn_type": "llm", "host": "https://api.example.com/v1/"}, "https://api.example.com/v1"),
        ({"conn_type": "openai"}, None),
        ({"conn_type": "openai", "host": "https://gw.example.com/v1", "port": 8443}, "https://gw.example.com:8443/v1"),
        ({"conn_type": "anthropic", "extra": '{"api_base": "https://a.example"}'}, "https://a.example"),
        ({"conn_type": "http", "host": "vllm", "port": 8000, "schema": "http"}, "http://vllm:8000"),
        ({"conn_type": "http", "host": "https://vllm/v1"}, "https://vllm/v1"),
        ({"conn_type": "generic", "extra": '{"base_url": "http://vllm:8000/v1"}'}, "http://vllm:8000/v1"),
    ],
)
def test_endpoint_of_every_connection_type_that_people_use(fields: dict[str, object], api_base: str | None) -> None:
    assert connections.endpoint(Connection(conn_id="c", password="k", **fields)).api_base == api_base


def test_endpoint_written_as_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_VENDOR", "llm://:sk-one@https%3A%2F%2Fapi.example.com%2Fv1")
    endpoint = resolve_endpoint("vendor")
    assert (endpoint.api_base, endpoint.api_key) == ("https://api.example.com/v1", "sk-one")


def test_endpoint_keeps_headers_and_further_arguments_apart() -> None:
    extra = {"headers": {"X-Team": "a"}, "organization": "org-1", "api_version": "", "aws_region_name": "eu-west-1"}
    endpoint = connections.endpoint(Connection(conn_id="c", conn_type="llm", extra=json.dumps(extra)))
    assert dict(endpoint.headers) == {"X-Team": "a"}
    assert dict(endpoint.extra) == {"organization": "org-1", "aws_region_name": "eu-west-1"}


@pytest.mark.parametrize("headers", ["[1]", "no json", "[[]]"])
def test_headers_that_are_no_object_are_an_error(headers: str) -> None:
    conn = Connection(conn_id="c", conn_type="llm", extra=json.dumps({"headers": headers}))
    with pytest.raises(PermanentError, match=r"connection 'c': extra\.headers"):
        connections.endpoint(conn)


def test_a_base_url_without_scheme_is_an_error_that_shows_one() -> None:
    with pytest.raises(PermanentError, match="connection 'c': the base URL has no scheme; expected for example https"):
        connections.endpoint(Connection(conn_id="c", conn_type="llm", host="api.example.com"))


def test_secrets_are_not_in_any_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "s3cr3t-value"
    configure(monkeypatch, "ledger_conn_id", "l", {"conn_type": "postgres", "host": "h", "password": secret})
    configure(monkeypatch, "cache_conn_id", "c", {"conn_type": "redis", "host": "h", "password": secret})
    configure(monkeypatch, "vectors_conn_id", "v", {"conn_type": "generic", "host": "h", "password": secret})
    configure(monkeypatch, "keyring_conn_id", "k", {"conn_type": "generic", "extra": {"k": secret}})
    conn = Connection(
        conn_id="e", conn_type="llm", password=secret, extra=json.dumps({"headers": {"a": secret}, "b": secret})
    )
    assert secret not in repr(settings_from_airflow())
    assert secret not in repr(connections.endpoint(conn))


def test_keys_and_secret_headers_are_masked_in_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk._shared.secrets_masker import redact

    extra = {"headers": {"X-Api-Key": "header-secret-1", "X-Team": "support"}}
    fields = {"conn_type": "llm", "password": "key-secret-2", "extra": json.dumps(extra)}
    monkeypatch.setenv("AIRFLOW_CONN_MASKED", json.dumps(fields))
    resolve_endpoint("masked")
    assert redact("header-secret-1 support key-secret-2") == "*** support ***"


def test_quoted_passwords_and_keys_of_a_keyring_are_masked_in_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk._shared.secrets_masker import redact

    configure(monkeypatch, "ledger_conn_id", "l", {"conn_type": "postgres", "host": "h", "password": "p@ss w0rd/long"})
    ring = {"active": "k1", "keys": {"k1": "bWFzdGVyLWtleS1pbi1iYXNlNjQ="}}
    configure(monkeypatch, "keyring_conn_id", "k", {"conn_type": "generic", "password": json.dumps(ring)})
    settings_from_airflow()
    assert redact("p%40ss%20w0rd%2Flong bWFzdGVyLWtleS1pbi1iYXNlNjQ= k1") == "*** *** k1"


def test_an_archive_may_name_its_connection_in_the_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {
        "conn_type": "aws",
        "login": "AKIA",
        "password": "sk",
        "extra": {"endpoint_url": "http://s3:9000", "region_name": "eu"},
    }
    configure(monkeypatch, "archive_uri", "s3://store@bucket/audit")
    monkeypatch.setenv("AIRFLOW_CONN_STORE", json.dumps(fields))
    settings = settings_from_airflow()
    assert settings.archive_uri == "s3://bucket/audit"
    assert dict(settings.storage_options) == {
        "key": "AKIA",
        "secret": "sk",
        "endpoint_url": "http://s3:9000",
        "client_kwargs": {"region_name": "eu"},
    }
    assert with_archive(settings, "/elsewhere").archive_uri == "/elsewhere"
    assert with_archive(settings, None) is settings


def test_sql_sources_open_through_the_connections_own_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_NODB", json.dumps({"conn_type": "generic", "host": "x"}))
    with pytest.raises(PermanentError, match="connection 'nodb': no hook for type 'generic'"):
        settings_from_airflow().database("nodb")  # type: ignore[misc]


@given(password=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30))
def test_any_password_survives_its_way_through_a_url(password: str) -> None:
    postgres = Connection(conn_id="c", conn_type="postgres", host="h", login="u", password=password, schema="d")
    assert make_url(connections.ledger_url(postgres)).password == password
    redis = connections.cache_url(Connection(conn_id="c", conn_type="redis", host="h", password=password))
    assert unquote(redis.removeprefix("redis://:").rpartition("@")[0]) == password
