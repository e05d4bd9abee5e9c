"""One schema: what is built validates against the JSON Schema that is shipped, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.audit.trail import schema
from airflow_ai_provider.core.audit.trail.events import ACTIONS, build_event

SHIPPED = Path(schema.__file__).with_name("schema.json")
NOW = "2025-03-01T12:00:00.000Z"
KIND_OF = {name: kind for kind, names in schema.FIELDS.items() for name in names.split()}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "name": st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=20),
    "token": st.from_regex(r"[A-Za-z0-9_.:/+=-]{1,128}", fullmatch=True),
    "digest": st.from_regex("[0-9a-f]{32}([0-9a-f]{32})?", fullmatch=True),
    "address": st.ip_addresses().map(str),
    "count": st.integers(0, schema.MAX_INTEGER),
    "index": st.integers(-1, schema.MAX_INTEGER),
    "flag": st.booleans(),
}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    document = json.loads(SHIPPED.read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


def test_the_shipped_schema_is_the_one_in_the_code() -> None:
    """After a change, write to it what ``python -m airflow_ai_provider.core.audit.trail.schema`` prints."""
    assert json.loads(SHIPPED.read_text()) == json.loads(json.dumps(schema.json_schema()))


def test_every_field_has_one_kind_and_some_action() -> None:
    listed = [name for names in schema.FIELDS.values() for name in names.split()]
    assert len(listed) == len(set(listed))
    used = {name for _, *fields in schema.ACTIONS.values() for names in fields for name in names.split()}
    assert set(listed) == used | set(schema.WHO.split())


@given(st.data())
def test_whatever_is_built_validates(validator: jsonschema.Draft202012Validator, data: st.DataObject) -> None:
    action = data.draw(st.sampled_from(sorted(ACTIONS)))
    _, required, optional = schema.ACTIONS[action]
    names = required.split() + data.draw(st.lists(st.sampled_from(f"{optional} {schema.WHO}".split()), unique=True))
    fields = {name: data.draw(VALUES[KIND_OF[name]]) for name in names}
    outcome = data.draw(st.sampled_from(sorted(schema.OUTCOMES)))
    event = build_event(action, outcome, "01a203b3b29c7d29-1", NOW, fields)
    validator.validate(event)
    for fault in ({"airflow_ai.prompt": "text"}, {"event.action": "llm.cal"}, {"airflow_ai.schema": 2}):
        assert not validator.is_valid({**event, **fault})
    for name in required.split():
        assert not validator.is_valid({key: event[key] for key in event if key != schema.record_name(name)})


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_a_field_of_another_action_is_invalid(validator: jsonschema.Draft202012Validator, action: str) -> None:
    _, required, optional = schema.ACTIONS[action]
    other = next(name for name in KIND_OF if name not in f"{required} {optional} {schema.WHO}".split())
    event: dict[str, Any] = {
        "@timestamp": NOW,
        "airflow_ai.schema": 1,
        "event.action": action,
        "event.id": "12345678-1",
    }
    examples = {"name": "x", "token": "x", "digest": "0" * 32, "count": 1, "index": 1, "flag": True}
    for name in required.split():
        event[schema.record_name(name)] = examples[KIND_OF[name]]
    event["event.outcome"] = "success"
    validator.validate(event)
    assert not validator.is_valid({**event, schema.record_name(other): examples[KIND_OF[other]]})
