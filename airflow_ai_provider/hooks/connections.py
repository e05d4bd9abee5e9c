"""What an Airflow connection means to the heart: URLs, endpoints, a keyring.

Pure functions of a connection, so that any secrets backend and any notebook gives the same result. Values are quoted
into URLs; none of them stands in an error message, which names the connection and the field only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from airflow_ai_provider.audit.search import SearchAddress
from airflow_ai_provider.errors import KeyringError, PermanentError
from airflow_ai_provider.gateway.settings import Endpoint

_LIBPQ = frozenset(
    {
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "sslcrl",
        "connect_timeout",
        "application_name",
        "options",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "target_session_attrs",
        "channel_binding",
        "gssencmode",
    }
)
"""Parameters of libpq (PostgreSQL manual, 34.1.2) that an extra may hold; other fields belong to Airflow's hook."""
_REDIS = frozenset({"ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"})
"""Extras of Airflow's Redis connection that redis-py reads from a URL."""
_ENDPOINT_OWN = frozenset({"api_base", "base_url", "api_key", "headers"})
_SECRET_HEADERS = ("auth", "key", "token", "secret", "cookie")


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


def endpoint(conn: ConnectionLike) -> Endpoint:
    """How to reach a model vendor: host is the base URL, the password the API key, extra the rest.

    Extra's ``headers`` are sent with every request; every other field is a keyword argument of the adapter.
    Raises ``PermanentError`` where the base URL has no scheme or headers are no object.
    """
    extra = _extra(conn)
    headers = _headers(conn, extra.get("headers"))
    return Endpoint(
        api_base=_api_base(conn, extra),
        api_key=conn.password or _text(extra.get("api_key")),
        headers=headers,
        extra={name: value for name, value in extra.items() if name not in _ENDPOINT_OWN and value not in (None, "")},
    )


def secrets_of(endpoint: Endpoint) -> Iterable[str]:
    """Values that must never be logged; Airflow masks the password of a connection, but not single headers."""
    if endpoint.api_key:
        yield endpoint.api_key
    for name, value in endpoint.headers.items():
        if any(word in name.lower() for word in _SECRET_HEADERS):
            yield value


def ledger_url(conn: ConnectionLike) -> str:
    """SQLAlchemy URL of a postgres or sqlite connection. Raises ``PermanentError`` for any other."""
    match conn.conn_type:
        case "postgres" | "postgresql":
            if not conn.host:
                raise _wrong(conn, "host is empty; expected the PostgreSQL server's name")
            query = {name: str(value) for name, value in _extra(conn).items() if name in _LIBPQ}
            return (
                f"postgresql+psycopg://{_authority(conn, default_port=5432)}/{_quoted(conn.schema or '')}"
                f"{_query(query)}"
            )
        case "sqlite":
            # sqlite:///relative and sqlite:////absolute arrive split over host and schema, a form's path in host.
            path = conn.host or f"/{(conn.schema or '').lstrip('/')}"
            if not path.strip("/"):
                raise _wrong(conn, "names no file; expected its path as the host")
            return f"sqlite:///{path}"
    raise _wrong(conn, f"is of type {conn.conn_type!r}; the ledger is PostgreSQL (postgres) or SQLite (sqlite)")


def cache_url(conn: ConnectionLike) -> str:
    """``redis://`` or ``rediss://`` URL of a redis connection. Raises ``PermanentError`` for any other."""
    if conn.conn_type not in ("redis", "rediss"):
        raise _wrong(conn, f"is of type {conn.conn_type!r}; the response store is Redis (redis)")
    if not conn.host:
        raise _wrong(conn, "host is empty; expected the Redis server's name")
    extra = _extra(conn)
    secure = conn.conn_type == "rediss" or _truth(extra.get("ssl"))
    database = str(extra.get("db") or conn.schema or 0)
    if not database.isdigit():
        raise _wrong(conn, "db is no number; expected the number of a Redis database, such as 0")
    query = {name: str(value) for name, value in extra.items() if secure and name in _REDIS and value is not None}
    return f"{'rediss' if secure else 'redis'}://{_authority(conn, default_port=6379)}/{database}{_query(query)}"


def vectors_address(conn: ConnectionLike) -> tuple[str, str | None]:
    """URI and token of a Milvus server. ``login`` and password make a ``user:password`` token, a password alone one."""
    if not conn.host:
        raise _wrong(conn, "host is empty; expected the Milvus server's name or http(s):// URL")
    if "://" in conn.host:
        uri = conn.host if conn.port is None else f"{conn.host.rstrip('/')}:{conn.port}"
    else:
        secure = conn.schema == "https" or conn.conn_type == "https" or _truth(_extra(conn).get("secure"))
        uri = f"{'https' if secure else 'http'}://{_bracketed(conn.host)}:{conn.port or 19530}"
    if not conn.password:
        return uri, None
    return uri, f"{conn.login}:{conn.password}" if conn.login else conn.password


def search_address(conn: ConnectionLike) -> SearchAddress:
    """Elasticsearch or OpenSearch: host, port (9200), schema (http or https), login and password or extra's api_key.

    Extra may hold ``ca_certs``, ``verify_certs`` and ``data_stream``. Raises ``PermanentError``.
    """
    if not conn.host:
        raise _wrong(conn, "host is empty; expected the Elasticsearch server's name or http(s):// URL")
    extra = _extra(conn)
    scheme, _, server = conn.host.rpartition("://")
    scheme = scheme or (conn.schema if conn.schema in ("http", "https") else "")
    scheme = scheme or ("https" if conn.conn_type == "https" or _truth(extra.get("use_ssl")) else "http")
    server = server.rstrip("/") if "://" in conn.host else _bracketed(server)
    port = conn.port or (None if "://" in conn.host else 9200)
    given = {"stream": _text(extra.get("data_stream")), "ca_certs": _text(extra.get("ca_certs"))}
    return SearchAddress(
        url=f"{scheme}://{server}{f':{port}' if port else ''}",
        user=conn.login or None,
        password=conn.password or None,
        api_key=_text(extra.get("api_key")),
        verify_certs=_truth(extra.get("verify_certs", True)),
        **{name: value for name, value in given.items() if value},
    )


def keyring(conn: ConnectionLike) -> Mapping[str, Any]:
    """The keyring that stands as JSON in the password, or else is the extra. Raises ``KeyringError``."""
    if conn.password:
        try:
            content = json.loads(conn.password)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise KeyringError(f"connection {conn.conn_id!r}: expected the keyring as a JSON object in the password")
        return content
    content = _extra(conn)
    if not content:
        raise KeyringError(f"connection {conn.conn_id!r}: holds no keyring; put its JSON into the password or extra")
    return content


def storage_options(conn: ConnectionLike) -> Mapping[str, Any]:
    """``fsspec`` options of an aws connection, for ``s3://CONN_ID@bucket/prefix``."""
    if conn.conn_type != "aws":
        raise _wrong(conn, f"is of type {conn.conn_type!r}; object stores take a connection of type aws")
    extra = _extra(conn)
    options: dict[str, Any] = {}
    if conn.login:
        options |= {"key": conn.login, "secret": conn.password or ""}
    if token := extra.get("aws_session_token"):
        options["token"] = token
    if address := extra.get("endpoint_url") or conn.host:
        options["endpoint_url"] = address
    if region := extra.get("region_name"):
        options["client_kwargs"] = {"region_name": region}
    return options


def _api_base(conn: ConnectionLike, extra: Mapping[str, Any]) -> str | None:
    if given := _text(extra.get("api_base")) or _text(extra.get("base_url")):
        return given.rstrip("/")
    if not conn.host:
        return None
    if "://" in conn.host:
        scheme, _, rest = conn.host.partition("://")
        server, slash, path = rest.partition("/")
        if conn.port is not None and ":" not in server:
            server = f"{server}:{conn.port}"
        return f"{scheme}://{server}{slash}{path}".rstrip("/")
    if conn.conn_type in ("http", "https"):
        # Airflow's HTTP connections keep the scheme in the schema field.
        scheme = conn.schema if conn.schema in ("http", "https") else str(conn.conn_type)
        return f"{scheme}://{_bracketed(conn.host)}{f':{conn.port}' if conn.port else ''}"
    raise _wrong(conn, "the base URL has no scheme; expected for example https://api.openai.com/v1")


def _headers(conn: ConnectionLike, value: Any) -> Mapping[str, str]:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise _wrong(conn, "extra.headers is no JSON object") from None
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise _wrong(conn, "extra.headers is no JSON object")
    return {str(name): str(text) for name, text in value.items()}


def _extra(conn: ConnectionLike) -> dict[str, Any]:
    extra = conn.extra_dejson
    if not isinstance(extra, dict):
        raise _wrong(conn, "extra is no JSON object")
    return extra


def _authority(conn: ConnectionLike, *, default_port: int) -> str:
    user = _quoted(conn.login or "")
    password = f":{_quoted(conn.password)}" if conn.password else ""
    at = "@" if user or password else ""
    return f"{user}{password}{at}{_bracketed(conn.host or '')}:{conn.port or default_port}"


def _bracketed(host: str) -> str:
    """An IPv6 address stands in brackets in a URL."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _query(values: Mapping[str, str]) -> str:
    return f"?{urlencode(values)}" if values else ""


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _truth(value: Any) -> bool:
    return value is True or str(value).strip().lower() in ("true", "1", "yes", "on")


def _wrong(conn: ConnectionLike, problem: str) -> PermanentError:
    return PermanentError(f"connection {conn.conn_id!r}: {problem}")
