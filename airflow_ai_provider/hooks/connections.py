"""What an Airflow connection means to the core: URLs, endpoints, a keyring.

Pure functions of a connection, so that any secrets backend and any notebook gives the same result. Values are quoted
into URLs; none of them stands in an error message, which names the connection and the field only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from airflow_ai_provider.core.audit.sinks.search import SearchAddress
from airflow_ai_provider.core.errors import KeyringError
from airflow_ai_provider.core.settings import Endpoint
from airflow_ai_provider.hooks.endpoints import ConnectionLike, bracketed, endpoint, extra_of, text_of, truth_of, wrong

__all__ = [
    "ConnectionLike",
    "cache_url",
    "endpoint",
    "keyring",
    "ledger_url",
    "search_address",
    "secrets_of",
    "storage_options",
    "vectors_address",
]

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
_SECRET_NAMES = ("auth", "key", "token", "secret", "cookie", "credentials", "password")


def secrets_of(endpoint: Endpoint) -> Iterable[str]:
    """Values that must never be logged; Airflow masks the password of a connection, but not what is made of it."""
    if endpoint.api_key:
        yield endpoint.api_key
    for name, value in (*endpoint.headers.items(), *endpoint.extra.items()):
        if isinstance(value, str) and any(word in name.lower() for word in _SECRET_NAMES):
            yield value
            scheme, _, word = value.partition(" ")
            if word and scheme.lower() in ("basic", "bearer"):
                yield word


def ledger_url(conn: ConnectionLike) -> str:
    """SQLAlchemy URL of a postgres or sqlite connection. Raises ``PermanentError`` for any other."""
    match conn.conn_type:
        case "postgres" | "postgresql":
            if not conn.host:
                raise wrong(conn, "host is empty; expected the PostgreSQL server's name")
            query = {name: str(value) for name, value in extra_of(conn).items() if name in _LIBPQ}
            return (
                f"postgresql+psycopg://{_authority(conn, default_port=5432)}/{_quoted(conn.schema or '')}"
                f"{_query(query)}"
            )
        case "sqlite":
            # sqlite:///relative and sqlite:////absolute arrive split over host and schema, a form's path in host.
            path = conn.host or f"/{(conn.schema or '').lstrip('/')}"
            if not path.strip("/"):
                raise wrong(conn, "names no file; expected its path as the host")
            return f"sqlite:///{path}"
    raise wrong(conn, f"is of type {conn.conn_type!r}; the ledger is PostgreSQL (postgres) or SQLite (sqlite)")


def cache_url(conn: ConnectionLike) -> str:
    """``redis://`` or ``rediss://`` URL of a redis connection. Raises ``PermanentError`` for any other."""
    if conn.conn_type not in ("redis", "rediss"):
        raise wrong(conn, f"is of type {conn.conn_type!r}; the response store is Redis (redis)")
    if not conn.host:
        raise wrong(conn, "host is empty; expected the Redis server's name")
    extra = extra_of(conn)
    secure = conn.conn_type == "rediss" or truth_of(extra.get("ssl"))
    database = str(extra.get("db") or conn.schema or 0)
    if not database.isdigit():
        raise wrong(conn, "db is no number; expected the number of a Redis database, such as 0")
    query = {name: str(value) for name, value in extra.items() if secure and name in _REDIS and value is not None}
    return f"{'rediss' if secure else 'redis'}://{_authority(conn, default_port=6379)}/{database}{_query(query)}"


def vectors_address(conn: ConnectionLike) -> tuple[str, str | None]:
    """URI and token of a Milvus server. ``login`` and password make a ``user:password`` token, a password alone one."""
    if not conn.host:
        raise wrong(conn, "host is empty; expected the Milvus server's name or http(s):// URL")
    if "://" in conn.host:
        uri = conn.host if conn.port is None else f"{conn.host.rstrip('/')}:{conn.port}"
    else:
        secure = conn.schema == "https" or conn.conn_type == "https" or truth_of(extra_of(conn).get("secure"))
        uri = f"{'https' if secure else 'http'}://{bracketed(conn.host)}:{conn.port or 19530}"
    if not conn.password:
        return uri, None
    return uri, f"{conn.login}:{conn.password}" if conn.login else conn.password


def search_address(conn: ConnectionLike) -> SearchAddress:
    """Elasticsearch or OpenSearch: host, port (9200), schema (http or https), login and password or extra's api_key.

    Extra may hold ``ca_certs``, ``verify_certs`` and ``data_stream``. Raises ``PermanentError``.
    """
    if not conn.host:
        raise wrong(conn, "host is empty; expected the Elasticsearch server's name or http(s):// URL")
    extra = extra_of(conn)
    scheme, _, server = conn.host.rpartition("://")
    scheme = scheme or (conn.schema if conn.schema in ("http", "https") else "")
    scheme = scheme or ("https" if conn.conn_type == "https" or truth_of(extra.get("use_ssl")) else "http")
    server = server.rstrip("/") if "://" in conn.host else bracketed(server)
    port = conn.port or (None if "://" in conn.host else 9200)
    given = {"stream": text_of(extra.get("data_stream")), "ca_certs": text_of(extra.get("ca_certs"))}
    return SearchAddress(
        url=f"{scheme}://{server}{f':{port}' if port else ''}",
        user=conn.login or None,
        password=conn.password or None,
        api_key=text_of(extra.get("api_key")),
        verify_certs=truth_of(extra.get("verify_certs", True)),
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
    content = extra_of(conn)
    if not content:
        raise KeyringError(f"connection {conn.conn_id!r}: holds no keyring; put its JSON into the password or extra")
    return content


def storage_options(conn: ConnectionLike) -> Mapping[str, Any]:
    """``fsspec`` options of an aws connection, for ``s3://CONN_ID@bucket/prefix``."""
    if conn.conn_type != "aws":
        raise wrong(conn, f"is of type {conn.conn_type!r}; object stores take a connection of type aws")
    extra = extra_of(conn)
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


def _authority(conn: ConnectionLike, *, default_port: int) -> str:
    user = _quoted(conn.login or "")
    password = f":{_quoted(conn.password)}" if conn.password else ""
    at = "@" if user or password else ""
    return f"{user}{password}{at}{bracketed(conn.host or '')}:{conn.port or default_port}"


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _query(values: Mapping[str, str]) -> str:
    return f"?{urlencode(values)}" if values else ""
