"""How the search index understands events: one strict type for each field of the schema.

Strict, so that a field nobody declared is refused and seen, and cannot widen the mapping by guesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from airflow_ai_provider.audit import events

_TYPES: Final[Mapping[Any, str]] = {
    events._is_count: "long",
    events._is_index: "long",
    events._is_flag: "boolean",
}
"""By the schema's check; every other kind of value is a short text that is matched whole."""

_ALWAYS: Final[Mapping[str, str]] = {
    "@timestamp": "date",
    "airflow_ai.schema": "long",
    "airflow_ai.reused": "boolean",
    "event.action": "keyword",
    "event.id": "keyword",
    "event.outcome": "keyword",
}


def field_types() -> dict[str, str]:
    """Elasticsearch type by field, in ECS names."""
    return {**_ALWAYS, **{name: _TYPES.get(check, "keyword") for name, check, *_ in events._FIELDS.values()}}


def mapping() -> dict[str, Any]:
    """The mapping of the data stream's indices."""
    root: dict[str, Any] = {"dynamic": "strict", "properties": {}}
    for name, kind in field_types().items():
        *path, leaf = name.split(".")
        node = root
        for part in path:
            node = node["properties"].setdefault(part, {"properties": {}})
        node["properties"][leaf] = {"type": kind}
    return root
