"""Fields of an Airflow connection, read with care: JSON may arrive as text, as it does from a URI's query."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from airflow_ai_provider.errors import PermanentError


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
