"""The ``llm`` connection's own test: one free request, a plain verdict, and never the key."""

from __future__ import annotations

import json
import logging
import socket

import pytest

from airflow_ai_provider.hooks.llm import LLMHook
from airflow_ai_provider.testing.vendor import VendorDouble

KEY = "sk-hook-secret"


def connect(monkeypatch: pytest.MonkeyPatch, host: str, password: str = KEY) -> LLMHook:
    fields = {"conn_type": "llm", "host": host, "password": password}
    monkeypatch.setenv("AIRFLOW_CONN_LLM_DEFAULT", json.dumps(fields))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return LLMHook()


def test_a_server_that_answers_is_good(vendor: VendorDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    assert connect(monkeypatch, vendor.base_url).test_connection() == (
        True,
        f"GET {vendor.base_url}/models: the server answers",
    )
    assert vendor.stats().requests == 0, "listing models is no model request"


def test_get_conn_is_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = connect(monkeypatch, "https://api.example.com/v1").get_conn()
    assert (endpoint.api_base, endpoint.api_key) == ("https://api.example.com/v1", KEY)
    assert KEY not in repr(endpoint)


def test_a_refused_key_is_said_without_the_key(
    vendor: VendorDouble, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vendor.configure(api_key="another")
    with caplog.at_level(logging.DEBUG):
        good, message = connect(monkeypatch, vendor.base_url).test_connection()
    assert not good
    assert "HTTP 401, the API key is refused" in message
    assert KEY not in message + caplog.text


def test_a_server_that_is_not_there_is_said_to_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        assert connect(monkeypatch, url).test_connection() == (False, f"GET {url}/models: no answer (ConnectionError)")


@pytest.mark.parametrize(
    ("host", "message"), [("", "No base URL to test"), ("api.example.com", "the base URL has no scheme")]
)
def test_a_connection_that_cannot_be_tested_says_why(monkeypatch: pytest.MonkeyPatch, host: str, message: str) -> None:
    good, said = connect(monkeypatch, host).test_connection()
    assert not good
    assert message in said


def test_a_missing_connection_is_a_verdict_too() -> None:
    good, said = LLMHook("llm_nowhere").test_connection()
    assert not good
    assert "'llm_nowhere'" in said
