"""Exported events are what their formats ask for, and only what was asked for."""

from __future__ import annotations

import io
import json
from datetime import date
from hashlib import sha256
from typing import Any

import jsonschema
import pytest

from airflow_ai_provider.core.audit.sinks import export
from airflow_ai_provider.core.audit.sinks.export import Exporter, to_ecs, to_ocsf
from airflow_ai_provider.core.audit.trail import schema
from airflow_ai_provider.core.audit.trail.events import build_event

# OCSF 1.7.0, class api_activity: its required attributes and those of the objects in them, and the enumerations.
ENTITY = {"type": "object", "minProperties": 1}
API_ACTIVITY: dict[str, Any] = {
    "type": "object",
    "required": [
        *("activity_id", "actor", "api", "category_uid", "class_uid", "metadata", "severity_id", "src_endpoint"),
        *("time", "type_uid"),
    ],
    "properties": {
        "activity_id": {"enum": [0, 1, 2, 3, 4, 99]},
        "category_uid": {"const": 6},
        "class_uid": {"const": 6003},
        "type_uid": {"enum": [600300, 600301, 600302, 600303, 600304, 600399]},
        "severity_id": {"enum": [0, 1, 2, 3, 4, 5, 6, 99]},
        "status_id": {"enum": [0, 1, 2, 99]},
        "time": {"type": "integer", "minimum": 1_500_000_000_000, "maximum": 9_999_999_999_999},
        "actor": {
            **ENTITY,
            "anyOf": [{"required": [each]} for each in ("process", "user", "session", "app_name", "app_uid")],
        },
        "api": {**ENTITY, "required": ["operation"]},
        "metadata": {
            "type": "object",
            "required": ["product", "version"],
            "properties": {
                "product": {"type": "object", "anyOf": [{"required": ["name"]}, {"required": ["uid"]}]},
                "version": {"pattern": r"^\d+\.\d+\.\d+$"},
            },
        },
        "src_endpoint": {**ENTITY, "anyOf": [{"required": [each]} for each in ("ip", "uid", "name", "hostname")]},
        "resources": {"type": "array", "items": {**ENTITY, "anyOf": [{"required": ["name"]}, {"required": ["uid"]}]}},
        "unmapped": {"type": "object"},
    },
}
EXAMPLES = {
    "name": "n",
    "token": "t",
    "digest": "0" * 32,
    "address": "192.0.2.7",
    "count": 3,
    "index": -1,
    "flag": True,
}
KIND_OF = {name: kind for kind, names in schema.FIELDS.items() for name in names.split()}


def event(action: str, outcome: str = "ok", *, timestamp: str = "2025-03-01T12:00:00.123Z") -> dict[str, Any]:
    """An event with every field its action may have."""
    _, required, optional = schema.ACTIONS[action]
    names = f"{required} {optional} {schema.WHO}".split()
    return build_event(action, outcome, "01a203b3b29c-1", timestamp, {name: EXAMPLES[KIND_OF[name]] for name in names})


@pytest.mark.parametrize("action", sorted(schema.ACTIONS))
def test_every_action_is_a_valid_api_activity(action: str) -> None:
    full = to_ocsf(event(action))
    _, required, _ = schema.ACTIONS[action]
    fields = {name: EXAMPLES[KIND_OF[name]] for name in required.split()}
    bare = to_ocsf(build_event(action, "unknown", "01a203b3b29c-1", "2025-03-01T12:00:00.123Z", fields))
    for each in (full, bare):
        jsonschema.validate(each, API_ACTIVITY)
        assert each["type_uid"] == each["class_uid"] * 100 + each["activity_id"]
        json.dumps(each)
    assert full["time"] == 1_740_830_400_123
    assert full["activity_id"] != 99, "every action has an activity of its own"


def test_nothing_of_an_event_is_lost_in_ocsf() -> None:
    record = event("llm.call", "error")
    found = json.dumps(to_ocsf(record))
    for value in record.values():
        assert json.dumps(value) in found or value in ("2025-03-01T12:00:00.123Z", "failure")


def test_who_what_and_how_it_went_are_where_ocsf_has_them() -> None:
    made = to_ocsf(event("login.refused", "error"))
    assert made["actor"]["user"] == {"name": "n"}
    assert made["src_endpoint"] == {"ip": "192.0.2.7", "hostname": "n"}
    assert (made["status"], made["severity"], made["api"]["operation"]) == ("Failure", "Low", "login.refused")
    assert made["metadata"]["uid"] == "01a203b3b29c-1"
    assert {"name": "n", "type": "model"} in to_ocsf(event("llm.call"))["resources"]


def test_ecs_documents_are_the_record_and_its_constants() -> None:
    record = event("llm.call")
    made = to_ecs(record)
    assert {name: made[name] for name in record} == record
    assert made["event.kind"] == "event"
    assert made["related.user"] == ["n"]


def test_an_export_holds_the_days_that_were_asked_for() -> None:
    days = [
        "2025-02-28T23:59:59.999Z",
        "2025-03-01T00:00:00.000Z",
        "2025-03-02T23:59:59.999Z",
        "2025-03-03T00:00:00.000Z",
    ]
    stream = io.BytesIO()
    exporter = Exporter(stream, "ecs", date(2025, 3, 1), date(2025, 3, 2))
    for moment in days:
        exporter.visit(event("keys.generated", timestamp=moment), b"")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["@timestamp"] for line in lines] == days[1:3]
    assert exporter.events == 2
    assert exporter.sha256() == sha256(stream.getvalue()).hexdigest()


def test_every_action_is_known_to_the_export() -> None:
    assert set(export._ACTIVITIES) == set(schema.ACTIONS)
