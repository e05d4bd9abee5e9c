"""Fields of an Airflow connection, read with care: JSON may arrive as text, as it does from a URI's query.

Model vendors behind the connections that Airflow's own providers define, read as those providers store them.

Each reader turns the fields of one connection type into an ``Endpoint``. What a provider's hook would use and this
package decides elsewhere, such as a default model or a client's time-out, is named in ``Endpoint.unused``. What changes
who signs in and cannot be done here is an error: falling back to another identity would be worse than none.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from airflow_ai_provider.core.errors import PermanentError
from airflow_ai_provider.core.settings import Endpoint


class ConnectionLike(Protocol):
    """The part of ``airflow.sdk.Connection`` that is read here."""

    conn_id: str
    conn_type: str | None
    host: str | None
    login: str | None
    password: str | None
    schema: str | None
    port: int | None

    @property
    def extra_dejson(self) -> dict[str, Any]: ...


def extra_of(conn: ConnectionLike) -> dict[str, Any]:
    """The extra. Raises ``PermanentError`` where it is no JSON object."""
    extra = conn.extra_dejson
    if not isinstance(extra, dict):
        raise wrong(conn, "extra is no JSON object")
    return extra


def mapping_of(conn: ConnectionLike, name: str, value: Any) -> dict[str, Any]:
    """A field of the extra that holds a JSON object, or its text; empty where there is none."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise wrong(conn, f"extra.{name} is no JSON object") from None
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise wrong(conn, f"extra.{name} is no JSON object")
    return dict(value)


def text_of(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def truth_of(value: Any) -> bool:
    return value is True or str(value).strip().lower() in ("true", "1", "yes", "on")


def bracketed(host: str) -> str:
    """An IPv6 address stands in brackets in a URL."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def wrong(conn: ConnectionLike, problem: str) -> PermanentError:
    return PermanentError(f"connection {conn.conn_id!r}: {problem}")


_OWN = frozenset({"api_base", "base_url", "api_key", "headers"})
_SCHEMES = ("http", "https")
_JSON = re.compile(r"application/json(?:\s*;\s*charset=\"?utf-?8\"?)?")
_HEADER = re.compile(r"(?=.*[A-Z-])[A-Za-z0-9-]+|authorization|cookie|accept")
"""Extras of an HTTP connection are headers; names that could be parameters as well are taken for those."""
_WITH_PORT = re.compile(r"(?:\[.*\]|[^:]*):\d+")
_HTTP_OPTIONS = frozenset(
    "stream cert proxies proxy timeout verify verify_ssl allow_redirects max_redirects trust_env check_response "
    "srv_lookup tcp_keep_alive".split()
)
_CLIENT_OPTIONS = frozenset({"timeout", "max_retries"})
_DEFAULTS = frozenset({"model", "fallback_conn_ids"})
"""Defaults of a connection for what the policy says: the deployment's model, and the next one of its tier."""
_SESSION = "airflow-ai"
_GOOGLE_PREFIX = "extra__google_cloud_platform__"
_AZURE_PREFIX = "extra__azure__"
_Extra = dict[str, Any]


def endpoint(conn: ConnectionLike) -> Endpoint:
    """How to reach a model vendor: host is the base URL, the password the API key, extra the rest.

    Extra's ``headers`` are sent with every request; every other field is a keyword argument of the adapter. Connection
    types of Airflow's own providers are read as those store them. Raises ``PermanentError`` where something cannot be
    used.
    """
    kind = (conn.conn_type or "").lower().replace("-", "_")
    return _READERS.get(kind, _plain)(conn, dict(extra_of(conn)))


def _plain(conn: ConnectionLike, extra: _Extra, *, unused: frozenset[str] = frozenset()) -> Endpoint:
    """``llm``, ``generic`` and any other type; ``unused`` are fields that are told of and not used."""
    key = conn.password or text_of(extra.get("api_key"))
    return _made(conn, extra, base=_api_base(conn, extra), key=key, unused=unused)


def _made(
    conn: ConnectionLike, extra: _Extra, *, base: str | None, key: str | None, unused: frozenset[str]
) -> Endpoint:
    given = {name: value for name, value in extra.items() if value not in (None, "")}
    headers = {str(name): str(text) for name, text in mapping_of(conn, "headers", given.get("headers")).items()}
    return Endpoint(
        api_base=base,
        api_key=key,
        headers={name: text for name, text in headers.items() if not _says_json(name, text)},
        extra={name: value for name, value in given.items() if name not in _OWN | unused},
        unused=tuple(sorted(unused & given.keys())),
    )


def _says_json(name: str, text: str) -> bool:
    """Whether a header says what every request says already, as most HTTP connections do."""
    return name.lower() == "content-type" and _JSON.fullmatch(text.strip().lower()) is not None


def _http(conn: ConnectionLike, extra: _Extra) -> Endpoint:
    """As ``HttpHook`` reads it: a login means basic authentication, other fields of the extra are headers."""
    headers = mapping_of(conn, "headers", extra.pop("headers", None))
    headers |= {name: extra.pop(name) for name in [*extra] if _HEADER.fullmatch(name)}
    if not conn.login:
        return _plain(conn, {**extra, "headers": headers}, unused=_HTTP_OPTIONS)
    word = base64.b64encode(f"{conn.login}:{conn.password or ''}".encode()).decode()
    extra["headers"] = {"Authorization": f"Basic {word}", **headers}
    return _made(conn, extra, base=_api_base(conn, extra), key=None, unused=_HTTP_OPTIONS)


def _openai(conn: ConnectionLike, extra: _Extra) -> Endpoint:
    if (auth := extra.pop("auth_type", None)) not in (None, "", "api_key"):
        raise wrong(conn, f"extra.auth_type {str(auth)[:40]!r} cannot be used here; store an API key as its password")
    unused = _client(conn, extra, "openai_client_kwargs", {"organization": "organization", "project": "project"})
    return _told(_plain(conn, extra, unused=_DEFAULTS), unused)


def _anthropic(conn: ConnectionLike, extra: _Extra) -> Endpoint:
    if extra.pop("workload_identity", None):
        raise wrong(conn, "extra.workload_identity cannot be used here; store an API key as its password")
    names = {
        "aws_region": "aws_region_name",
        "aws_access_key": "aws_access_key_id",
        "aws_secret_key": "aws_secret_access_key",
        "aws_session_token": "aws_session_token",
        "aws_profile": "aws_profile_name",
        "project_id": "vertex_project",
        "region": "vertex_location",
    }
    unused = _client(conn, extra, "anthropic_client_kwargs", names)
    platform, resource = extra.pop("platform", None) or "anthropic", extra.pop("resource", None)
    _rename(extra, names)
    if platform == "foundry" and resource and not (conn.host or extra.get("base_url")):
        extra["base_url"] = f"https://{resource}.services.ai.azure.com/anthropic"
    return _told(_plain(conn, extra, unused=_DEFAULTS), unused)


def _client(conn: ConnectionLike, extra: _Extra, field: str, names: Mapping[str, str]) -> list[str]:
    """Move what a client would be made with to the extra; returns what is not used of it.

    Raises ``PermanentError`` for what no request could be made without, and that cannot be used.
    """
    given = mapping_of(conn, field, extra.pop(field, None))
    given = {name: value for name, value in given.items() if value not in (None, "", {})}
    unused = [f"{field}.{name}" for name in sorted(given.keys() & _CLIENT_OPTIONS)]
    headers = mapping_of(conn, f"{field}.default_headers", given.pop("default_headers", None))
    if token := given.pop("auth_token", None):
        headers["Authorization"] = f"Bearer {token}"
    if headers:
        extra["headers"] = {**mapping_of(conn, "headers", extra.get("headers")), **headers}
    query = mapping_of(conn, f"{field}.default_query", given.pop("default_query", None))
    if query.keys() == {"api-version"}:
        extra["api_version"] = query.pop("api-version")
    _rename(given, names)
    moved = {"base_url", "api_key", "api_version", *names.values()}
    if bad := sorted(given.keys() - moved - _CLIENT_OPTIONS | ({"default_query"} if query else set())):
        raise wrong(conn, f"extra.{field}.{bad[0]} cannot be used here; take it out, or use another connection")
    extra |= {name: given[name] for name in given.keys() & moved}
    return unused


def _azure(conn: ConnectionLike, extra: _Extra) -> Endpoint:
    """Azure OpenAI with a key; or a service principal (login, password and tenant), as Azure's own hooks store it."""
    extra = {name.removeprefix(_AZURE_PREFIX): value for name, value in extra.items()}
    _rename(extra, {"openai_api_version": "api_version", "azure_endpoint": "base_url", "tenantId": "tenant_id"})
    unused = frozenset({"azure_deployment", "subscriptionId", "subscription_id", "resource_group_name", *_DEFAULTS})
    signs_in = {"key_path", "key_json", "managed_identity_client_id", "workload_identity_tenant_id"}
    if bad := sorted(signs_in & {name for name, value in extra.items() if value}):
        raise wrong(conn, f"extra.{bad[0]} cannot be used here; expected an API key, or client, secret and tenant")
    if not conn.login:
        return _plain(conn, extra, unused=unused)
    if not extra.get("tenant_id"):
        raise wrong(conn, "a login without extra.tenantId; expected an API key alone, or client, secret and tenant")
    extra |= {"client_id": conn.login, "client_secret": conn.password}
    base = _api_base(conn, extra) if "://" in (conn.host or "") or extra.get("base_url") else None
    return _made(conn, extra, base=base, key=None, unused=unused)


def _aws(conn: ConnectionLike, extra: _Extra) -> Endpoint:
    """Amazon Bedrock: login and password are the key and its secret; empty is boto3's own way of finding them."""
    session = mapping_of(conn, "session_kwargs", extra.pop("session_kwargs", None))
    service = mapping_of(conn, "service_config", extra.pop("service_config", None))
    role = mapping_of(conn, "assume_role_kwargs", extra.pop("assume_role_kwargs", None))
    if extra.pop("assume_role_method", None) not in (None, "", "assume_role"):
        raise wrong(conn, "extra.assume_role_method: only assume_role can be used here")
    runtime = mapping_of(conn, "service_config.bedrock-runtime", service.get("bedrock-runtime"))
    extra = {**session, **extra, **{name: runtime[name] for name in ("endpoint_url",) if name in runtime}}
    names = {
        "region_name": "aws_region_name",
        "profile_name": "aws_profile_name",
        "role_arn": "aws_role_name",
        "endpoint_url": "aws_bedrock_runtime_endpoint",
        "external_id": "aws_external_id",
    }
    _rename(extra, names)
    if external := role.get("ExternalId"):
        extra["aws_external_id"] = external
    if extra.get("aws_role_name"):
        extra.setdefault("aws_session_name", role.get("RoleSessionName") or _SESSION)
    if conn.login:
        extra |= {"aws_access_key_id": conn.login, "aws_secret_access_key": conn.password}
    unused = frozenset({"config_kwargs", "verify", "aws_account_id"})
    return _made(conn, extra, base=None, key=None, unused=unused)


def _bedrock(conn: ConnectionLike, extra: _Extra) -> Endpoint:
    names = {
        "region_name": "aws_region_name",
        "profile_name": "aws_profile_name",
        "base_url": "aws_bedrock_runtime_endpoint",
    }
    _rename(extra, names)
    timeouts = frozenset({"aws_read_timeout", "aws_connect_timeout"})
    return _plain(conn, extra, unused=timeouts | _DEFAULTS)


def _vertex(conn: ConnectionLike, extra: _Extra) -> Endpoint:
    account = mapping_of(conn, "service_account_info", extra.pop("service_account_info", None))
    _rename(extra, {"project": "vertex_project", "location": "vertex_location"})
    if account:
        extra["vertex_credentials"] = json.dumps(account)
    return _plain(conn, extra, unused=frozenset({"vertexai"}) | _DEFAULTS)


def _google(conn: ConnectionLike, extra: _Extra) -> Endpoint:
    """Vertex AI: the key file's path or content, or the machine's own credentials."""
    extra = {name.removeprefix(_GOOGLE_PREFIX): value for name, value in extra.items()}
    signs_in = {"impersonation_chain", "key_secret_name", "credential_config_file", "is_anonymous", "idp_issuer_url"}
    if bad := sorted(signs_in & {name for name, value in extra.items() if value}):
        raise wrong(conn, f"extra.{bad[0]} cannot be used here; expected keyfile_dict, key_path, or neither")
    account = mapping_of(conn, "keyfile_dict", extra.pop("keyfile_dict", None))
    path = extra.pop("key_path", None)
    _rename(extra, {"project": "vertex_project", "location": "vertex_location"})
    if account or path:
        extra["vertex_credentials"] = json.dumps(account) if account else path
    unused = frozenset({"scope", "num_retries", "key_secret_project_id", "idp_extra_parameters", "client_id_scope"})
    return _made(conn, extra, base=None, key=None, unused=unused)


def _pydantic_ai(conn: ConnectionLike, extra: _Extra) -> Endpoint:
    return _plain(conn, extra, unused=_DEFAULTS)


_READERS: Mapping[str, Callable[[ConnectionLike, _Extra], Endpoint]] = {
    "http": _http,
    "https": _http,
    "openai": _openai,
    "anthropic": _anthropic,
    "azure": _azure,
    "azure_openai": _azure,
    "aws": _aws,
    "google_cloud_platform": _google,
    "pydanticai": _pydantic_ai,
    "pydanticai_azure": _azure,
    "pydanticai_bedrock": _bedrock,
    "pydanticai_vertex": _vertex,
}


def _told(found: Endpoint, unused: list[str]) -> Endpoint:
    return Endpoint(found.api_base, found.api_key, found.headers, found.extra, (*found.unused, *unused))


def _rename(extra: _Extra, names: Mapping[str, str]) -> None:
    """Give fields the names that the adapters know; a field that has its name already goes first."""
    for theirs, ours in names.items():
        if theirs != ours and theirs in extra:
            value = extra.pop(theirs)
            extra.setdefault(ours, value)


def _api_base(conn: ConnectionLike, extra: Mapping[str, Any]) -> str | None:
    """The base URL. A URI's path arrives in the schema, which HTTP connections keep their scheme in as well."""
    if given := text_of(extra.get("api_base")) or text_of(extra.get("base_url")):
        return given.rstrip("/")
    if not conn.host:
        return None
    schema = (conn.schema or "").lower()
    scheme, separator, rest = conn.host.rpartition("://")
    if not separator:
        kind = (conn.conn_type or "").lower()
        if kind not in _SCHEMES:
            raise wrong(conn, "the base URL has no scheme; expected for example https://api.openai.com/v1")
        scheme = schema if schema in _SCHEMES else kind
    server, _, path = rest.partition("/")
    if not _WITH_PORT.fullmatch(server):
        server = f"{bracketed(server)}:{conn.port}" if conn.port else bracketed(server)
    further = "" if schema in ("", *_SCHEMES) else str(conn.schema)
    parts = [part.strip("/") for part in (path, further)]
    return "/".join([f"{scheme}://{server}", *(part for part in parts if part)])
