"""Connections as other operators have them: read unchanged, from JSON, a URI and an environment variable alike."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from airflow.sdk import Connection

from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.providers import open_provider
from airflow_ai_provider.core.providers.base import ModelRequest
from airflow_ai_provider.core.providers.vendors import check_endpoint
from airflow_ai_provider.core.settings import Endpoint, Settings
from airflow_ai_provider.errors import PermanentError, PolicyError
from airflow_ai_provider.hooks import connections
from airflow_ai_provider.hooks.settings import resolve_endpoint
from airflow_ai_provider.testing.vendor import VendorDouble

KEY = "sk-0123456789-secret"
ACCOUNT = {"type": "service_account", "project_id": "p", "private_key": "k-0123456789"}
BASIC = "Basic " + base64.b64encode(b"me:pass").decode()

KNOWN: dict[str, tuple[dict[str, Any], Endpoint]] = {
    "openai": (
        {
            "conn_type": "openai",
            "host": "https://gw.example/v1",
            "password": KEY,
            "extra": {"openai_client_kwargs": {"organization": "org-1", "default_headers": {"X-Team": "a"}}},
        },
        Endpoint("https://gw.example/v1", KEY, {"X-Team": "a"}, {"organization": "org-1"}),
    ),
    "openai by its client alone": (
        {
            "conn_type": "openai",
            "host": "https://other.example/v1",
            "extra": {
                "auth_type": "api_key",
                "openai_client_kwargs": {"base_url": "https://gw.example/v1/", "api_key": KEY, "timeout": 30},
            },
        },
        Endpoint("https://gw.example/v1", KEY, unused=("openai_client_kwargs.timeout",)),
    ),
    "anthropic": (
        {
            "conn_type": "anthropic",
            "password": KEY,
            "extra": {"model": "claude", "platform": "anthropic", "anthropic_client_kwargs": {"max_retries": 5}},
        },
        Endpoint(None, KEY, unused=("model", "anthropic_client_kwargs.max_retries")),
    ),
    "anthropic on Bedrock": (
        {"conn_type": "anthropic", "extra": {"platform": "bedrock", "aws_region": "us-west-2"}},
        Endpoint(extra={"aws_region_name": "us-west-2"}),
    ),
    "anthropic on Vertex": (
        {"conn_type": "anthropic", "extra": {"platform": "vertex", "project_id": "p", "region": "europe-west1"}},
        Endpoint(extra={"vertex_project": "p", "vertex_location": "europe-west1"}),
    ),
    "pydanticai": (
        {
            "conn_type": "pydanticai",
            "host": "http://ollama:11434/v1",
            "password": KEY,
            "extra": {"model": "openai:gpt-5", "fallback_conn_ids": ["a", "b"]},
        },
        Endpoint("http://ollama:11434/v1", KEY, unused=("fallback_conn_ids", "model")),
    ),
    "pydanticai on Azure": (
        {
            "conn_type": "pydanticai-azure",
            "host": "https://x.openai.azure.com",
            "password": KEY,
            "extra": {"model": "azure:gpt-5", "api_version": "2024-10-21"},
        },
        Endpoint("https://x.openai.azure.com", KEY, extra={"api_version": "2024-10-21"}, unused=("model",)),
    ),
    "pydanticai on Bedrock": (
        {
            "conn_type": "pydanticai_bedrock",
            "extra": {
                "model": "bedrock:claude",
                "region_name": "us-east-1",
                "aws_access_key_id": "AKIA",
                "aws_secret_access_key": "secret-0123456789",
                "profile_name": "p",
                "aws_read_timeout": 60.0,
            },
        },
        Endpoint(
            extra={
                "aws_region_name": "us-east-1",
                "aws_access_key_id": "AKIA",
                "aws_secret_access_key": "secret-0123456789",
                "aws_profile_name": "p",
            },
            unused=("aws_read_timeout", "model"),
        ),
    ),
    "pydanticai on Vertex": (
        {
            "conn_type": "pydanticai_vertex",
            "extra": {"project": "p", "location": "us-central1", "service_account_info": ACCOUNT, "vertexai": True},
        },
        Endpoint(
            extra={
                "vertex_project": "p",
                "vertex_location": "us-central1",
                "vertex_credentials": json.dumps(ACCOUNT),
            },
            unused=("vertexai",),
        ),
    ),
    "azure_openai": (
        {
            "conn_type": "azure_openai",
            "password": KEY,
            "extra": {"azure_endpoint": "https://x.openai.azure.com/", "openai_api_version": "v1"},
        },
        Endpoint("https://x.openai.azure.com", KEY, extra={"api_version": "v1"}),
    ),
    "azure, a service principal": (
        {
            "conn_type": "azure",
            "login": "client",
            "password": "secret-0123456789",
            "extra": {"tenantId": "tenant", "subscriptionId": "s"},
        },
        Endpoint(
            extra={"tenant_id": "tenant", "client_id": "client", "client_secret": "secret-0123456789"},
            unused=("subscriptionId",),
        ),
    ),
    "http with a port": (
        {"conn_type": "http", "host": "vllm", "port": 8000, "schema": "https", "password": KEY},
        Endpoint("https://vllm:8000", KEY),
    ),
    "http with headers as extra": (
        {"conn_type": "http", "host": "https://gw.example/v1", "extra": {"X-Team": "a", "timeout": 5, "verify": True}},
        Endpoint("https://gw.example/v1", None, {"X-Team": "a"}, unused=("timeout", "verify")),
    ),
    "http with the header that every request has": (
        {
            "conn_type": "http",
            "host": "https://gw.example/v1",
            "extra": {"Content-Type": "application/json; charset=UTF-8", "X-Team": "a"},
        },
        Endpoint("https://gw.example/v1", None, {"X-Team": "a"}),
    ),
    "openai with the header that every request has": (
        {
            "conn_type": "openai",
            "password": KEY,
            "extra": {"openai_client_kwargs": {"default_headers": {"content-type": "application/json"}}},
        },
        Endpoint(None, KEY),
    ),
    "http in capitals": (
        {"conn_type": "HTTP", "host": "vllm", "schema": "HTTPS", "password": KEY},
        Endpoint("https://vllm", KEY),
    ),
    "azure, as it used to be stored": (
        {
            "conn_type": "azure",
            "login": "client",
            "password": "secret-0123456789",
            "extra": {"extra__azure__tenantId": "tenant", "extra__azure__subscriptionId": "s"},
        },
        Endpoint(
            extra={"tenant_id": "tenant", "client_id": "client", "client_secret": "secret-0123456789"},
            unused=("subscriptionId",),
        ),
    ),
    "http with a login": (
        {"conn_type": "http", "host": "https://gw.example/v1", "login": "me", "password": "pass"},
        Endpoint("https://gw.example/v1", None, {"Authorization": BASIC}),
    ),
    "aws": (
        {
            "conn_type": "aws",
            "login": "AKIA",
            "password": "secret-0123456789",
            "extra": {"region_name": "eu-west-1", "role_arn": "arn:aws:iam::1:role/r", "config_kwargs": {"a": 1}},
        },
        Endpoint(
            extra={
                "aws_region_name": "eu-west-1",
                "aws_role_name": "arn:aws:iam::1:role/r",
                "aws_session_name": "airflow-ai",
                "aws_access_key_id": "AKIA",
                "aws_secret_access_key": "secret-0123456789",
            },
            unused=("config_kwargs",),
        ),
    ),
    "google, a key": (
        {
            "conn_type": "google_cloud_platform",
            "extra": {"project": "p", "keyfile_dict": json.dumps(ACCOUNT), "scope": "s", "num_retries": 5},
        },
        Endpoint(
            extra={"vertex_project": "p", "vertex_credentials": json.dumps(ACCOUNT)}, unused=("num_retries", "scope")
        ),
    ),
    "google, as it used to be stored": (
        {
            "conn_type": "google_cloud_platform",
            "extra": {
                "extra__google_cloud_platform__project": "p",
                "extra__google_cloud_platform__key_path": "/keys/g.json",
            },
        },
        Endpoint(extra={"vertex_project": "p", "vertex_credentials": "/keys/g.json"}),
    ),
    "generic": (
        {"conn_type": "generic", "host": "https://gw.example/v1", "password": KEY, "extra": {"temperature": 0}},
        Endpoint("https://gw.example/v1", KEY, extra={"temperature": 0}),
    ),
}


def uri_of(fields: dict[str, Any]) -> str:
    """The same connection as Airflow writes it as a URI, with the extra as one JSON text."""
    port = f":{fields['port']}" if "port" in fields else ""
    login = f"{quote(fields.get('login', ''), safe='')}:{quote(fields.get('password', ''), safe='')}@"
    place = f"{login}{quote(fields.get('host', ''), safe='')}{port}/{fields.get('schema', '')}"
    query = urlencode({"__extra__": json.dumps(fields["extra"])}) if "extra" in fields else ""
    return f"{fields['conn_type'].replace('_', '-')}://{place}?{query}"


@pytest.mark.parametrize("case", KNOWN)
def test_a_connection_of_another_operator_is_read_the_same_in_every_form(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, expected = KNOWN[case]
    plain = {**fields, "extra": json.dumps(fields["extra"])} if "extra" in fields else fields
    assert connections.endpoint(Connection(conn_id="c", **plain)) == expected
    for form in (json.dumps(fields), uri_of(fields)):
        monkeypatch.setenv("AIRFLOW_CONN_VENDOR", form)
        assert resolve_endpoint("vendor") == expected


@pytest.mark.parametrize(
    ("uri", "base"),
    [
        ("http://:key@host:8000/v1", "http://host:8000/v1"),
        ("https://:key@host/openai/v1", "https://host/openai/v1"),
        ("https://:key@host:8443/v1/", "https://host:8443/v1"),
        ("http://host:8000/https", "https://host:8000"),
        ("http://https%3A%2F%2Fhost%2Fv1", "https://host/v1"),
        ("http://https://host:8080/v1", "https://host:8080/v1"),
        ("http://https://host", "https://host"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("openai://:key@https%3A%2F%2Fgw.example%2Fv1", "https://gw.example/v1"),
        ("llm://:key@https%3A%2F%2Fgw.example%2Fv1:8443", "https://gw.example:8443/v1"),
        ("generic://:key@http%3A%2F%2Fvllm:8000/v1", "http://vllm:8000/v1"),
    ],
)
def test_a_path_in_the_uri_is_part_of_the_base_url(uri: str, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_VENDOR", uri)
    assert resolve_endpoint("vendor").api_base == base


@pytest.mark.parametrize(
    ("fields", "base"),
    [
        ({"conn_type": "http", "host": "vllm:8000/v1"}, "http://vllm:8000/v1"),
        ({"conn_type": "http", "host": "vllm/v1", "port": 8000}, "http://vllm:8000/v1"),
        ({"conn_type": "http", "host": "::1", "port": 8000}, "http://[::1]:8000"),
        ({"conn_type": "http", "host": "https://h:1/v1", "port": 2}, "https://h:1/v1"),
        ({"conn_type": "openai", "host": "https://h/v1", "schema": "https"}, "https://h/v1"),
    ],
)
def test_host_port_and_schema_make_one_address(fields: dict[str, Any], base: str) -> None:
    assert connections.endpoint(Connection(conn_id="c", **fields)).api_base == base


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"conn_type": "openai", "extra": {"auth_type": "workload_identity"}}, "auth_type 'workload_identity'"),
        ({"conn_type": "openai", "extra": {"openai_client_kwargs": {"http_client": "x"}}}, "kwargs.http_client cannot"),
        (
            {"conn_type": "openai", "extra": {"openai_client_kwargs": {"default_query": {"a": "b"}}}},
            "kwargs.default_query cannot be used",
        ),
        ({"conn_type": "openai", "extra": {"openai_client_kwargs": "no json"}}, "openai_client_kwargs is no JSON"),
        ({"conn_type": "openai", "host": "gw.example", "schema": "v1"}, "the base URL has no scheme"),
        ({"conn_type": "anthropic", "extra": {"workload_identity": {"a": "b"}}}, "workload_identity cannot be used"),
        ({"conn_type": "azure", "login": "client", "password": "s"}, "a login without extra.tenantId"),
        ({"conn_type": "azure", "extra": {"managed_identity_client_id": "m"}}, "managed_identity_client_id cannot"),
        ({"conn_type": "aws", "extra": {"assume_role_method": "assume_role_with_saml"}}, "only assume_role can"),
        ({"conn_type": "google_cloud_platform", "extra": {"impersonation_chain": "a"}}, "impersonation_chain cannot"),
    ],
)
def test_another_identity_is_an_error_and_never_a_guess(fields: dict[str, Any], words: str) -> None:
    plain = {**fields, "extra": json.dumps(fields.get("extra", {}))}
    with pytest.raises(PermanentError, match=f"^connection 'c': .*{words}"):
        connections.endpoint(Connection(conn_id="c", **plain))


@pytest.mark.parametrize("text", ["text/plain", "application/json, text/html", "application/x-ndjson"])
def test_another_content_type_is_kept_and_so_refused(text: str) -> None:
    extra = json.dumps({"Content-Type": text})
    found = connections.endpoint(Connection(conn_id="c", conn_type="http", host="https://h", extra=extra))
    with pytest.raises(PolicyError, match="headers set Content-Type, which every request has"):
        check_endpoint("small", Deployment(model="openai/x"), found)


@pytest.mark.parametrize("kind", ["aws", "azure", "http"])
def test_a_password_that_is_no_key_is_never_sent_as_one(kind: str) -> None:
    extra = json.dumps({"tenantId": "t"} if kind == "azure" else {})
    conn = Connection(conn_id="c", conn_type=kind, host="https://h", login="me", password="secret-1", extra=extra)
    assert connections.endpoint(conn).api_key is None


@pytest.mark.parametrize("adapter", ["openai_compatible", "litellm"])
@pytest.mark.parametrize("form", ["http", "openai", "pydanticai", "generic"])
async def test_a_call_goes_out_by_such_a_connection(
    vendor: VendorDouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str, adapter: str
) -> None:
    vendor.configure(api_key=KEY)
    place = vendor.base_url.removeprefix("http://")
    uri = f"http://:{KEY}@{place}" if form == "http" else f"{form}://:{KEY}@{quote(vendor.base_url, safe='')}"
    monkeypatch.setenv("AIRFLOW_CONN_VENDOR", f"{uri}?model=openai%3Agpt-5" if form == "pydanticai" else uri)
    settings = Settings(home=tmp_path, policy_path=tmp_path / "p", endpoint=resolve_endpoint)
    deployment = Deployment.model_validate({"model": "openai/x", "connection": "vendor", "adapter": adapter})
    provider = open_provider("small", deployment, settings)
    try:
        reply = await provider.complete(ModelRequest("a" * 32, [{"role": "user", "content": "hi"}], 50, None, 20))
    finally:
        await provider.close()
    (seen,) = vendor.requests()
    assert reply.text
    assert seen.body == {"model": "x", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}


def test_what_has_no_effect_is_said_once_by_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"model": "openai:gpt-5-secret-name", "fallback_conn_ids": ["spare"]}
    monkeypatch.setenv("AIRFLOW_CONN_TELLS", json.dumps({"conn_type": "pydanticai", "extra": extra}))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            resolve_endpoint("tells")
    said = [record.getMessage() for record in caplog.records if "is not used" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("connection 'tells': extra's fallback_conn_ids, model is not used")
    assert "gpt-5-secret-name" not in caplog.text


def test_what_is_made_of_secrets_is_masked_as_well() -> None:
    basic = connections.endpoint(
        Connection(conn_id="c", conn_type="http", host="https://h", login="me", password="pass")
    )
    assert {BASIC, BASIC.removeprefix("Basic ")} <= {*connections.secrets_of(basic)}
    for case in ("aws", "azure, a service principal", "pydanticai on Vertex"):
        fields, _ = KNOWN[case]
        found = connections.endpoint(Connection(conn_id="c", **{**fields, "extra": json.dumps(fields["extra"])}))
        secrets = {*connections.secrets_of(found)}
        assert {value for name, value in found.extra.items() if "secret" in name or "credentials" in name} <= secrets
