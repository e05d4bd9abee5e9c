"""Queries of the audit index, and the mapping of its fields.

Questions to the trail: who did what, when, in which run. Answered by an index over the trail, never by the trail.

The index is for finding, not for proving: anyone who may write it can change what it says. Every event it returns names
its ``event.id``, which leads to the evidence.

How the search index understands events: one strict type for each field of the schema.

Strict, so that an undeclared field is refused and seen, and cannot widen the mapping by guesses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

from airflow_ai_provider.core.audit.trail import events
from airflow_ai_provider.core.errors import AuditError

Event = dict[str, Any]
"""A record of the trail: a flat object in ECS names, without its chain value."""

MOST: Final = 100_000
"""Events in one answer."""

STREAM: Final = "logs-airflow_ai.audit-default"
"""Data stream of the index in Elasticsearch, named as Elastic names them: type, data set, namespace."""

FIELDS: Final = {
    "user": "user.name",
    "action": "event.action",
    "outcome": "event.outcome",
    "dag_id": "airflow_ai.dag_id",
    "run_id": "airflow_ai.run_id",
    "task_id": "airflow_ai.task_id",
    "request_id": "airflow_ai.request_id",
}
"""What a query can ask for, and the field of the event that answers."""


@dataclass(frozen=True, slots=True)
class Query:
    """All that is given must hold. ``AuditError`` for a time without a zone and a limit out of range."""

    user: str | None = None
    action: str | None = None
    outcome: str | None = None
    """``success``, ``failure`` or ``unknown``."""
    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    request_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    """Not included."""
    limit: int = 100

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                raise AuditError(f"audit query: {name} has no time zone; expected for example 2025-01-31T00:00:00Z")
        if not 1 <= self.limit <= MOST:
            raise AuditError(f"audit query: limit {self.limit}; expected 1 to {MOST}")

    def terms(self) -> dict[str, str]:
        """Field of the event and the value it must have."""
        asked = ((field, getattr(self, name)) for name, field in FIELDS.items())
        return {field: value for field, value in asked if value is not None}


@dataclass(frozen=True, slots=True)
class SearchAddress:
    """How to reach a search server. Secrets never show in ``repr``."""

    url: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    ca_certs: str | None = None
    verify_certs: bool = True
    stream: str = STREAM


@dataclass(frozen=True, slots=True)
class Rejected:
    """An event that the index will never take."""

    event_id: str
    reason: str


class SearchIndex(ABC):
    """An index over the trail. ``StoreUnavailable`` where it does not answer, ``AuditError`` where it refuses."""

    name: str
    """For people: where it is."""

    @abstractmethod
    def prepare(self) -> None:
        """Make what the index needs before events are added. Again: nothing happens."""

    @abstractmethod
    def identity(self) -> str:
        """Differs when the index was made anew: what was delivered to another one was not delivered to this one."""

    @abstractmethod
    def add(self, events: Sequence[Event], *, replay: bool = False) -> list[Rejected]:
        """Index events and return those refused for good. An event that is there already stays as it is.

        ``replay`` says that some of them may be there since an earlier try.
        """

    @abstractmethod
    def refresh(self) -> None:
        """Let searches find what was added."""

    @abstractmethod
    def search(self, query: Query) -> list[Event]:
        """The newest events that fit, newest first, each once."""

    @abstractmethod
    def count(self) -> int:
        """Events in the index."""

    @abstractmethod
    def clear(self) -> None:
        """Forget everything."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections."""

    def actions_of(self, user: str, *, days: int, now: datetime, limit: int = MOST) -> list[Event]:
        """What a user did in the last ``days`` days, newest first."""
        return self.search(Query(user=user, since=now - timedelta(days=days), limit=limit))

    def events_of_run(self, dag_id: str, run_id: str, *, limit: int = MOST) -> list[Event]:
        """Everything one DAG run did."""
        return self.search(Query(dag_id=dag_id, run_id=run_id, limit=limit))

    def events_of_request(self, request_id: str) -> list[Event]:
        """Every attempt and reuse of one request."""
        return self.search(Query(request_id=request_id, limit=MOST))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
