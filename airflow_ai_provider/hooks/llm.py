"""The ``llm`` connection: a model vendor's address and key."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow.sdk import BaseHook

from airflow_ai_provider.core.errors import PermanentError
from airflow_ai_provider.core.settings import Endpoint
from airflow_ai_provider.hooks.settings import resolve_endpoint

_TEST_SECONDS = 10


class LLMHook(BaseHook):
    """Reads an ``llm`` connection. Calls are made by the gateway alone, never through this hook.

    :param llm_conn_id: the connection's id.
    """

    conn_name_attr = "llm_conn_id"
    default_conn_name = "llm_default"
    conn_type = "llm"
    hook_name = "LLM"

    def __init__(self, llm_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.llm_conn_id = llm_conn_id

    @property
    def endpoint(self) -> Endpoint:
        """How to reach the vendor. Raises ``PermanentError`` where the connection is missing or unusable."""
        return resolve_endpoint(self.llm_conn_id)

    def get_conn(self) -> Endpoint:
        """The endpoint, under the name that Airflow knows."""
        return self.endpoint

    def test_connection(self) -> tuple[bool, str]:
        """List the models of the server (``GET {base}/models``), which costs nothing, and say how that went."""
        try:
            endpoint = self.endpoint
        except PermanentError as error:
            return False, str(error)
        if not endpoint.api_base:
            return False, "No base URL to test; without one, the vendor's own address is used and cannot be listed"
        return _list_models(endpoint)


def _list_models(endpoint: Endpoint) -> tuple[bool, str]:
    import requests

    # Anthropic asks for another header than everybody else; both may be sent.
    headers = dict(endpoint.headers)
    if endpoint.api_key:
        headers.setdefault("Authorization", f"Bearer {endpoint.api_key}")
        if (urlsplit(endpoint.api_base or "").hostname or "").endswith("anthropic.com"):
            headers = {"x-api-key": endpoint.api_key, "anthropic-version": "2023-06-01", **endpoint.headers}
    url = f"{endpoint.api_base}/models"
    try:
        # Redirects are not followed: they could carry the key to another host.
        response = requests.get(url, headers=headers, timeout=_TEST_SECONDS, allow_redirects=False)
    except (requests.RequestException, ValueError) as error:
        return False, f"GET {url}: no answer ({error.__class__.__name__})"
    if response.status_code == 200:
        return True, f"GET {url}: the server answers"
    hint = {401: "the API key is refused", 403: "the API key is refused", 404: "is the path /v1 missing?"}
    return False, f"GET {url}: HTTP {response.status_code}, {hint.get(response.status_code, 'expected 200')}"
