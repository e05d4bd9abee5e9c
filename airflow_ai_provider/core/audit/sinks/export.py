"""Events for other systems: as ECS documents or as OCSF, one JSON object a line.

ECS documents are the records as they are, with the constants that the trail does not store for every event. OCSF is
the class API Activity (6003, schema 1.7.0), whose required attributes are ``activity_id``, ``actor``, ``api``,
``category_uid``, ``class_uid``, ``metadata``, ``severity_id``, ``src_endpoint``, ``time`` and ``type_uid``. What OCSF
has no attribute for is under ``unmapped``, by its ECS name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, time, timedelta
from datetime import date as Day
from hashlib import sha256
from typing import Any, BinaryIO, Final

import orjson

from airflow_ai_provider.core.audit.trail.events import format_time

ECS_VERSION: Final = "8.17.0"
OCSF_VERSION: Final = "1.7.0"
_PRODUCT: Final = {"name": "airflow-ai-provider", "vendor_name": "airflow-ai-provider"}
_CREATE, _READ, _UPDATE, _DELETE, _OTHER = 1, 2, 3, 4, 99
_ACTIVITIES: Final = {
    "policy.loaded": _READ,
    "policy.changed": _UPDATE,
    "policy.pinned": _UPDATE,
    "policy.unpinned": _UPDATE,
    "task.started": _CREATE,
    "task.finished": _UPDATE,
    "task.outcome": _UPDATE,
    "batch.started": _CREATE,
    "batch.reused": _READ,
    "llm.call": _CREATE,
    "answer.differs": _READ,
    "documents.synced": _UPDATE,
    "plan.made": _CREATE,
    "plan.approved": _UPDATE,
    "plan.rejected": _UPDATE,
    "budget.changed": _UPDATE,
    "budget.threshold": _UPDATE,
    "budget.stopped": _UPDATE,
    "deployment.stopped": _UPDATE,
    "deployment.resumed": _UPDATE,
    "circuit.opened": _UPDATE,
    "circuit.closed": _UPDATE,
    "holds.swept": _DELETE,
    "ledger.reconciled": _READ,
    "ledger.exported": _READ,
    "ledger.dropped": _DELETE,
    "ledger.repaired": _UPDATE,
    "ledger.granted": _UPDATE,
    "review.requested": _CREATE,
    "review.answered": _UPDATE,
    "review.decided": _UPDATE,
    "review.expired": _UPDATE,
    "rows.masked": _UPDATE,
    "rows.restored": _READ,
    "rows.encrypted": _UPDATE,
    "rows.decrypted": _READ,
    "keys.generated": _CREATE,
    "keys.rotated": _UPDATE,
    "keys.retired": _UPDATE,
    "keys.destroyed": _DELETE,
    "keys.reencrypted": _UPDATE,
    "reuse.purged": _DELETE,
    "webhook.delivered": _CREATE,
    "login.refused": _READ,
    "trail.sealed": _CREATE,
    "trail.verified": _READ,
    "audit.exported": _READ,
    "segment.recovered": _UPDATE,
}
_ACTIVITY_NAMES: Final = {_CREATE: "Create", _READ: "Read", _UPDATE: "Update", _DELETE: "Delete", _OTHER: "Other"}
_STATUS: Final = {"success": (1, "Success"), "failure": (2, "Failure"), "unknown": (0, "Unknown")}
_WARNING: Final = {
    "budget.stopped",
    "deployment.stopped",
    "login.refused",
    "keys.destroyed",
    "policy.changed",
    "policy.unpinned",
}
_CLASS, _CATEGORY = 6003, 6
_RESOURCES: Final = {
    "model": "gen_ai.request.model",
    "deployment": "airflow_ai.deployment",
    "budget": "airflow_ai.budget",
    "key": "airflow_ai.key_id",
    "collection": "airflow_ai.collection",
    "review": "airflow_ai.review",
    "webhook": "airflow_ai.webhook",
    "endpoint": "airflow_ai.endpoint",
}
"""Kinds of resources and the fields that name them."""
_MAPPED: Final = {
    "@timestamp",
    "event.action",
    "event.id",
    "event.outcome",
    "event.reason",
    "user.name",
    "host.name",
    "source.ip",
    "airflow_ai.session_id",
    "airflow_ai.request_id",
    "http.response.status_code",
}


def to_ecs(event: Mapping[str, Any]) -> dict[str, Any]:
    """An ECS document of a record."""
    users = [event["user.name"]] if "user.name" in event else []
    return {
        **event,
        "ecs.version": ECS_VERSION,
        "event.kind": "event",
        "event.module": "airflow_ai",
        "event.dataset": "airflow_ai.audit",
        **({"related.user": users} if users else {}),
    }


def to_ocsf(event: Mapping[str, Any]) -> dict[str, Any]:
    """An OCSF API Activity event of a record."""
    action = event["event.action"]
    activity = _ACTIVITIES.get(action, _OTHER)
    status, status_name = _STATUS[event["event.outcome"]]
    warning = status == 2 or action in _WARNING
    return {
        "activity_id": activity,
        "activity_name": _ACTIVITY_NAMES[activity],
        "actor": _actor(event),
        "api": _api(event),
        "category_name": "Application Activity",
        "category_uid": _CATEGORY,
        "class_name": "API Activity",
        "class_uid": _CLASS,
        "metadata": {
            "event_code": action,
            "log_name": "airflow_ai.audit",
            "product": _PRODUCT,
            "uid": event["event.id"],
            "version": OCSF_VERSION,
        },
        "severity": "Low" if warning else "Informational",
        "severity_id": 2 if warning else 1,
        "src_endpoint": _endpoint(event),
        "status": status_name,
        "status_id": status,
        "time": _epoch_ms(event["@timestamp"]),
        "type_name": f"API Activity: {_ACTIVITY_NAMES[activity]}",
        "type_uid": _CLASS * 100 + activity,
        **({"status_detail": event["event.reason"]} if "event.reason" in event else {}),
        **_resources(event),
        "unmapped": {name: value for name, value in event.items() if name not in _MAPPED},
    }


def _actor(event: Mapping[str, Any]) -> dict[str, Any]:
    """Who: always the application, and the user and session where they are known."""
    actor: dict[str, Any] = {"app_name": "Apache Airflow"}
    if dag := event.get("airflow_ai.dag_id"):
        actor["app_uid"] = f"{dag}/{event.get('airflow_ai.task_id', '')}"
    if user := event.get("user.name"):
        actor["user"] = {"name": user}
    if session := event.get("airflow_ai.session_id"):
        actor["session"] = {"uid": session}
    return actor


def _api(event: Mapping[str, Any]) -> dict[str, Any]:
    api: dict[str, Any] = {"operation": event["event.action"], "service": {"name": "airflow-ai-provider"}}
    if request := event.get("airflow_ai.request_id"):
        api["request"] = {"uid": request}
    if code := event.get("http.response.status_code"):
        api["response"] = {"code": code}
    return api


def _endpoint(event: Mapping[str, Any]) -> dict[str, Any]:
    """OCSF asks for one of ip, name, hostname and others."""
    endpoint = {}
    if address := event.get("source.ip"):
        endpoint["ip"] = address
    if host := event.get("host.name"):
        endpoint["hostname"] = host
    return endpoint or {"name": "unknown"}


def _resources(event: Mapping[str, Any]) -> dict[str, Any]:
    """What was acted on: the model of a call, or a named thing of another action."""
    named = {kind: event[name] for kind, name in _RESOURCES.items() if name in event}
    return {"resources": [{"name": name, "type": kind} for kind, name in named.items()]} if named else {}


def _epoch_ms(timestamp: str) -> int:
    return round(datetime.fromisoformat(timestamp).timestamp() * 1000)


FORMATS: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {"ecs": to_ecs, "ocsf": to_ocsf}


class Exporter:
    """Writes the events it is shown, those of the days ``since`` to ``until`` (UTC, both included)."""

    def __init__(self, stream: BinaryIO, form: str, since: Day | None = None, until: Day | None = None) -> None:
        self.events = 0
        self._stream = stream
        self._hash = sha256()
        self._convert = FORMATS[form]
        self._since = format_time(datetime.combine(since, time(), UTC)) if since else ""
        self._until = format_time(datetime.combine(until, time(), UTC) + timedelta(days=1)) if until else "~"

    def visit(self, document: dict[str, Any], body: bytes) -> None:
        """Take one event."""
        if self._since <= document["@timestamp"] < self._until:
            line = orjson.dumps(self._convert(document), option=orjson.OPT_APPEND_NEWLINE)
            self._stream.write(line)
            self._hash.update(line)
            self.events += 1

    def sha256(self) -> str:
        """Of what was written, hex."""
        return self._hash.hexdigest()
