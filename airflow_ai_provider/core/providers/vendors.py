"""Who speaks OpenAI's protocol, where, and how a request is addressed there. Nothing here opens a connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import orjson

from airflow_ai_provider import __version__
from airflow_ai_provider.core.errors import PolicyError
from airflow_ai_provider.core.policy import Deployment, advice, remedies, reserved, undeclared
from airflow_ai_provider.core.providers.parameters import StrictRules, dialect_of, strict_rules
from airflow_ai_provider.core.settings import Endpoint

AdapterName = Literal["openai_compatible", "litellm"]

OPENAI_COMPATIBLE: Mapping[str, str | None] = {
    "openai": "https://api.openai.com/v1",
    "azure": None,
    "cerebras": "https://api.cerebras.ai/v1",
    "custom_openai": None,
    "dashscope": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    "deepinfra": "https://api.deepinfra.com/v1/openai",
    "deepseek": "https://api.deepseek.com/v1",
    "fireworks_ai": "https://api.fireworks.ai/inference/v1",
    "groq": "https://api.groq.com/openai/v1",
    "hosted_vllm": None,
    "litellm_proxy": None,
    "llamafile": "http://127.0.0.1:8080/v1",
    "lm_studio": None,
    "mistral": "https://api.mistral.ai/v1",
    "moonshot": "https://api.moonshot.ai/v1",
    "nvidia_nim": "https://integrate.api.nvidia.com/v1",
    "ollama": "http://localhost:11434/v1",
    "openai_like": None,
    "openrouter": "https://openrouter.ai/api/v1",
    "sambanova": "https://api.sambanova.ai/v1",
    "together_ai": "https://api.together.xyz/v1",
    "volcengine": "https://ark.cn-beijing.volces.com/api/v3",
    "xai": "https://api.x.ai/v1",
    "xinference": None,
}
"""Providers whose chat completions are OpenAI's, by litellm's names; each one's base URL by its own documentation, or
``None`` where every user has another."""
_EXAMPLES = {"azure": "https://NAME.openai.azure.com"}
_ARGUMENTS = frozenset({"api_version", "azure_ad_token", "organization", "project"})
"""Fields of a connection's extra that are no part of a request's body."""
_AZURE_LOGIN = frozenset({"tenant_id", "client_id", "client_secret", "azure_scope", "azure_username", "azure_password"})
"""With these, litellm signs in to Entra ID."""
_OUR_HEADERS = frozenset(
    "host connection content-length content-type content-encoding transfer-encoding accept-encoding idempotency-key "
    "expect upgrade te trailer".split()
)
"""Headers that say where a request goes, how it is framed, or which attempt it is: no connection can set them."""
_AZURE_V1 = ("v1", "latest", "preview")
"""litellm's words for the interface that has no versions."""
_AZURE_SERIES = ("o_series/", "gpt5_series/")
"""litellm's way to say what a deployment of Azure is whose name does not: ``azure/o_series/NAME``."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a deployment's requests go, and what is the same in all of them."""

    url: str
    model: str
    headers: Mapping[str, str] = field(repr=False)
    params: Mapping[str, Any] = field(repr=False)
    limit_name: str
    """What the limit of an answer is called there, as far as the model's name tells."""
    strict: StrictRules | None = None
    """Which schemas are sent strictly; ``None``: none."""


def adapter_of(deployment: Deployment, endpoint: Endpoint) -> AdapterName:
    """The adapter that the policy names, or else the one that fits the provider or the form of ``api_base``."""
    if deployment.adapter is not None:
        return deployment.adapter
    if deployment.provider == "azure" and _AZURE_LOGIN & endpoint.extra.keys():
        return "litellm"
    path = urlsplit(deployment.api_base or endpoint.api_base or "").path
    speaks = deployment.provider in OPENAI_COMPATIBLE or "openai" in path.split("/")
    return "openai_compatible" if speaks else "litellm"


def address_of(name: str, deployment: Deployment, endpoint: Endpoint) -> Address:
    """Raises ``PolicyError`` that says what is missing or cannot be used."""
    place = f"deployments.{name}"
    check_endpoint(name, deployment, endpoint)
    given = {**endpoint.extra, **deployment.params}
    base = _base(place, deployment, endpoint)
    model = deployment.model.partition("/")[2]
    if deployment.provider == "azure":
        series, _, rest = model.rpartition("/")
        model = rest if f"{series}/" in _AZURE_SERIES else model
        url, secret = _azure_url(place, base, model, given), _azure_secret(place, endpoint, given)
    else:
        url, secret = _completions(base), _secret(place, deployment, endpoint)
    params = {key: value for key, value in given.items() if key not in _ARGUMENTS}
    return Address(
        url,
        model,
        _headers(place, {**_account(given), **secret, **endpoint.headers}),
        _writable(place, params),
        dialect_of(deployment).limit_name,
        strict_rules(deployment),
    )


def host_of(deployment: Deployment, api_base: str | None) -> str:
    """The host a deployment calls, without the rest of its address, which may hold a secret; else its provider."""
    try:
        host = urlsplit(api_base or OPENAI_COMPATIBLE.get(deployment.provider) or "").hostname
    except ValueError:
        host = None
    return host or deployment.provider


def signs_in(endpoint: Endpoint) -> bool:
    """Whether litellm signs in with what the connection holds, so that no key must be made up for it."""
    return bool(endpoint.extra.keys() & (_AZURE_LOGIN | {"azure_ad_token"}))


def check_endpoint(name: str, deployment: Deployment, endpoint: Endpoint) -> None:
    """What no adapter can use. Raises ``PolicyError``."""
    place, key, base = f"deployments.{name}", endpoint.api_key, deployment.api_base or endpoint.api_base
    if bad := reserved(endpoint.extra):
        raise PolicyError(f"{place}: its connection's extra sets {', '.join(bad)}: remove it there ({remedies(bad)})")
    if bad := undeclared(endpoint.extra, deployment.provider, deployment.surcharges):
        raise PolicyError(f"{place}: its connection's extra: {advice(bad, name)}")
    if key is not None and (not key.isprintable() or key != key.strip()):
        raise PolicyError(
            f"{place}: the API key of its connection begins or ends with a space, or has a line break in it; store it "
            "again without"
        )
    if bad := sorted(header for header in endpoint.headers if header.lower() in _OUR_HEADERS):
        raise PolicyError(
            f"{place}: its connection's headers set {', '.join(bad)}, which every request has already: remove it there"
        )
    if base is not None and not _is_url(base):
        raise PolicyError(f"{place}: api_base: expected a URL such as https://host/v1, without login or query")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    whole = parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
    return plain and whole and text.isprintable() and " " not in text


def _base(place: str, deployment: Deployment, endpoint: Endpoint) -> str:
    provider = deployment.provider
    base = deployment.api_base or endpoint.api_base or OPENAI_COMPATIBLE.get(provider)
    if base is None:
        example = _EXAMPLES.get(provider, "https://host/v1")
        raise PolicyError(
            f"{place}: api_base is not given: a deployment of {provider} needs it, such as {example}, in the policy or "
            "as the host of its connection"
        )
    base = base.rstrip("/")
    return f"{base}/v1" if provider == "ollama" and not urlsplit(base).path else base


def _completions(base: str) -> str:
    return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


def _azure_url(place: str, base: str, model: str, given: Mapping[str, Any]) -> str:
    """Azure's own paths with their ``api-version``, or its newer ``/openai/v1``, which has none."""
    path, version = urlsplit(base).path, given.get("api_version")
    if "/openai/v1" in path:
        return _completions(base)
    if version in _AZURE_V1:
        return _completions(f"{base}/openai/v1")
    if not isinstance(version, str) or not version:
        raise PolicyError(
            f"{place}: api_version is not given: Azure OpenAI needs one, such as 2024-10-21 or v1, in the extra of the "
            "connection"
        )
    if "/openai/deployments/" not in path:
        base = f"{base.removesuffix('/openai')}/openai/deployments/{quote(model, safe='')}"
    return f"{_completions(base)}?api-version={quote(version, safe='')}"


def _azure_secret(place: str, endpoint: Endpoint, given: Mapping[str, Any]) -> Mapping[str, str]:
    if endpoint.api_key:
        return {"api-key": endpoint.api_key}
    if isinstance(token := given.get("azure_ad_token"), str) and token:
        return _bearer(token)
    if login := sorted(_AZURE_LOGIN & endpoint.extra.keys()):
        raise PolicyError(f"{place}: its connection signs in by {', '.join(login)}: write adapter: litellm")
    raise _no_key(place)


def _secret(place: str, deployment: Deployment, endpoint: Endpoint) -> Mapping[str, str]:
    """A vendor's own address asks for a key; a server of one's own may ask for none."""
    if endpoint.api_key:
        return _bearer(endpoint.api_key)
    theirs = (OPENAI_COMPATIBLE.get(deployment.provider) or "").startswith("https://")
    headers = {header.lower() for header in endpoint.headers}
    if theirs and not (deployment.api_base or endpoint.api_base) and "authorization" not in headers:
        raise _no_key(place)
    return {}


def _bearer(secret: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def _no_key(place: str) -> PolicyError:
    return PolicyError(f"{place}: no API key: give the deployment a connection that holds one")


def _account(given: Mapping[str, Any]) -> Mapping[str, str]:
    """Whom the vendor bills, where it knows several."""
    named = {"organization": "OpenAI-Organization", "project": "OpenAI-Project"}
    return {header: str(given[key]) for key, header in named.items() if given.get(key)}


def _headers(place: str, more: Mapping[str, str]) -> Mapping[str, str]:
    """Answers are asked for as they are: a compressed one can be a thousand times what was bounded."""
    if bad := sorted(name for name, value in more.items() if not f"{name}{value}".isprintable()):
        raise PolicyError(f"{place}: header {bad[0]!r} of its connection has a line break or the like in it")
    ours = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
    return {**ours, "User-Agent": f"airflow-ai-provider/{__version__}", **more}


def _writable(place: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        orjson.dumps(params)
    except TypeError as error:
        raise PolicyError(f"{place}: params cannot be written as JSON: {error}") from None
    return params
