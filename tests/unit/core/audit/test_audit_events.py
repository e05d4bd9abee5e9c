"""Events are closed: what the schema does not know is refused, and no value shows in the refusal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from support.audit import call_fields

from airflow_ai_provider.core.audit.trail.chain import canonical
from airflow_ai_provider.core.audit.trail.events import build_context, build_event, content_hash, format_time
from airflow_ai_provider.errors import AuditError

NOW = "2025-03-01T12:00:00.000Z"


def build(action: str = "llm.call", outcome: str = "ok", **fields: Any) -> dict[str, Any]:
    return build_event(action, outcome, "w-1", NOW, fields)


def test_call_has_ecs_names() -> None:
    event = build(**call_fields(1), user="ada", cached_input_tokens=None)
    assert event["event.action"] == "llm.call"
    assert event["user.name"] == "ada"
    assert event["gen_ai.request.model"] == "openai/gpt-4o-mini"
    assert event["gen_ai.usage.input_tokens"] == 201
    assert event["airflow_ai.cost_nano"] == 54_001
    assert event["airflow_ai.schema"] == 1
    assert "airflow_ai.cached_input_tokens" not in event
    canonical(event)


@pytest.mark.parametrize(
    ("outcome", "ecs", "reused"),
    [("ok", "success", False), ("reused", "success", True), ("error", "failure", False), ("unknown", "unknown", False)],
)
def test_outcomes_become_those_of_ecs_without_loss(outcome: str, ecs: str, reused: bool) -> None:
    event = build(outcome=outcome, request_id="r")
    assert (event["event.outcome"], event.get("airflow_ai.reused", False)) == (ecs, reused)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "SECRET"},
        {"cost_nano": 0.1},
        {"cost_nano": True},
        {"cost_nano": -1},
        {"cost_nano": 2**53},
        {"input_tokens": "SECRET"},
        {"prompt_hash": "SECRET"},
        {"prompt_hash": "a" * 33},
        {"error_type": "SECRET with spaces"},
        {"error_type": "S" * 129},
        {"model": "SECRET\nline"},
        {"model": "S" * 257},
        {"model": ["SECRET"]},
        {"team": {"SECRET": 1}},
    ],
)
def test_content_cannot_slip_in(fields: dict[str, Any]) -> None:
    with pytest.raises(AuditError) as caught:
        build(request_id="r", **fields)
    assert "SECRET" not in str(caught.value)


def test_missing_and_unknown_names_are_refused() -> None:
    with pytest.raises(AuditError, match="request_id is missing"):
        build()
    with pytest.raises(AuditError, match="request_id is missing"):
        build(request_id=None)
    with pytest.raises(AuditError, match=r"llm\.cal"):
        build("llm.cal")
    with pytest.raises(AuditError, match="outcome 'success'"):
        build(outcome="success", request_id="r")


def test_who_and_where_may_stand_in_every_event_and_may_come_from_the_writer() -> None:
    who = {"user": "ada", "dag_id": "d", "host": "worker-1", "source_ip": "2001:db8::1", "session_id": "s-1"}
    context = build_context({**who, "team": None})
    event = build_event("keys.generated", "ok", "w-1", NOW, {"key_id": "k2", "user": "grace"}, context)
    assert (event["user.name"], event["host.name"], event["source.ip"]) == ("grace", "worker-1", "2001:db8::1")
    task = build_context({"dag_id": "d", "run_id": "r", "task_id": "t"})
    assert build_event("task.outcome", "ok", "w-1", NOW, {"state": "success"}, task)["airflow_ai.task_id"] == "t"
    with pytest.raises(AuditError, match="'prompt' is not in its schema"):
        build_context({"prompt": "SECRET"})
    with pytest.raises(AuditError, match="source_ip: expected an IPv4 or IPv6 address"):
        build_context({"source_ip": "SECRET"})


def test_time_is_utc_with_milliseconds() -> None:
    moment = datetime(2025, 3, 1, 20, 0, 0, 1999, tzinfo=timezone(timedelta(hours=8)))
    assert format_time(moment) == "2025-03-01T12:00:00.001Z"
    assert format_time(datetime(2025, 3, 1, tzinfo=UTC)) == "2025-03-01T00:00:00.000Z"
    with pytest.raises(AuditError, match="time zone"):
        format_time(datetime(2025, 3, 1))


def test_content_hash_depends_on_key_and_text() -> None:
    one, two = b"k" * 32, b"j" * 32
    assert content_hash(one, "text") == content_hash(one, "text")
    assert len({content_hash(one, "text"), content_hash(two, "text"), content_hash(one, "text ")}) == 3
    assert len(content_hash(one, "\ud800")) == 32
    build(request_id="r", prompt_hash=content_hash(one, "text"))
    with pytest.raises(AuditError, match="at least 16"):
        content_hash(b"short", "text")
