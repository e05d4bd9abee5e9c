"""What an event may say: a flat object in ECS names, closed on purpose.

Each action has its own list of fields, each field its own kind of value. What is not listed is refused, names are
short, and hashes must look like hashes: nobody can put a prompt, an answer or an error message into the trail by
accident. Money is integer nano-dollars. There are no floats.

Callers use short names (``input_tokens``); the record has the ECS name (``gen_ai.usage.input_tokens``), or, where
ECS has none, one under ``airflow_ai.``. ``SCHEMA`` rises when a name changes its meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from airflow_ai_provider.audit.canonical import MAX_INTEGER
from airflow_ai_provider.errors import AuditError

SCHEMA: Final = 1
MAX_NAME: Final = 256
"""Characters; Airflow's own identifiers have at most 250."""

Fields = Mapping[str, Any]
_Check = Callable[[Any], bool]

OUTCOMES: Final[Mapping[str, str]] = {"ok": "success", "reused": "success", "error": "failure", "unknown": "unknown"}
"""Our outcomes and the three that ECS allows; ``reused`` is a success that also sets ``airflow_ai.reused``."""

_token = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}").fullmatch
_digest = re.compile(r"[0-9a-f]{32}(?:[0-9a-f]{32})?").fullmatch


def _is_name(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_NAME and "\n" not in value


def _is_token(value: Any) -> bool:
    return type(value) is str and _token(value) is not None


def _is_digest(value: Any) -> bool:
    return type(value) is str and _digest(value) is not None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_INTEGER


def _is_index(value: Any) -> bool:
    return type(value) is int and -1 <= value <= MAX_INTEGER


def _is_flag(value: Any) -> bool:
    return type(value) is bool


_EXPECTED: Final[Mapping[_Check, str]] = {
    _is_name: f"a name of at most {MAX_NAME} characters in one line",
    _is_token: "1 to 128 characters of A-Z a-z 0-9 _ . : / + = -",
    _is_digest: "32 or 64 lower-case hex digits",
    _is_count: "an integer from 0 to 2^53 - 1",
    _is_index: "an integer from -1 to 2^53 - 1",
    _is_flag: "true or false",
}

_ECS: Final[Mapping[str, str]] = {
    "user": "user.name",
    "operation": "gen_ai.operation.name",
    "provider": "gen_ai.system",
    "model": "gen_ai.request.model",
    "response_model": "gen_ai.response.model",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "error_type": "error.type",
    "http_status": "http.response.status_code",
}

_KINDS: Final[Mapping[_Check, str]] = {
    _is_name: "user dag_id run_id task_id team route tier deployment model response_model provider collection shard"
    " period role",
    _is_token: "request_id attempt_id error_type operation hash_key_id price_version segment",
    _is_digest: "policy_hash prompt_hash answer_hash reused_hash manifest_hash",
    _is_count: "try_number policy_version batch rows rows_ok rows_reused rows_rejected rows_over_budget rows_error"
    " rows_skipped input_tokens output_tokens cached_input_tokens cost_nano saved_nano hold_nano latency_ms duration_ms"
    " http_status attempt documents documents_added documents_changed documents_removed chunks sequence segments"
    " events torn_bytes days bytes",
    _is_index: "map_index",
    _is_flag: "damaged",
}

_WHO = "user dag_id run_id task_id map_index try_number team"
_COST = "input_tokens output_tokens cached_input_tokens cost_nano saved_nano"

_ACTIONS: Final[Mapping[str, tuple[str, str]]] = {
    # action: (required, optional)
    "policy.loaded": ("policy_hash", f"{_WHO} policy_version"),
    "task.started": ("dag_id run_id task_id", f"{_WHO} route shard policy_hash"),
    "task.finished": (
        "dag_id run_id task_id",
        f"{_WHO} {_COST} route shard rows rows_ok rows_reused rows_rejected rows_over_budget rows_error rows_skipped"
        " duration_ms error_type",
    ),
    "batch.started": ("batch rows", f"{_WHO} route tier deployment hold_nano shard"),
    "batch.reused": ("batch rows reused_hash", f"{_WHO} route saved_nano hash_key_id"),
    "llm.call": (
        "request_id",
        f"{_WHO} {_COST} attempt_id attempt batch operation route tier deployment model response_model provider"
        " price_version latency_ms http_status error_type prompt_hash answer_hash hash_key_id",
    ),
    "documents.synced": (
        "collection",
        f"{_WHO} {_COST} documents documents_added documents_changed documents_removed chunks duration_ms error_type",
    ),
    "ledger.exported": ("rows", f"{_WHO} days bytes manifest_hash"),
    "ledger.dropped": ("period rows", _WHO),
    "ledger.repaired": ("period", _WHO),
    "ledger.granted": ("role", _WHO),
    "trail.sealed": ("sequence manifest_hash", f"{_WHO} segments events"),
    "segment.recovered": ("segment", f"{_WHO} events torn_bytes damaged"),
}

_FIELDS: Final = {
    name: (_ECS.get(name, f"airflow_ai.{name}"), check) for check, names in _KINDS.items() for name in names.split()
}
_SCHEMAS: Final = {
    action: (
        tuple(required.split()),
        {name: _FIELDS[name] for name in f"{required} {optional}".split()},
    )
    for action, (required, optional) in _ACTIONS.items()
}
ACTIONS: Final = frozenset(_ACTIONS)


def build_event(action: str, outcome: str, event_id: str, timestamp: str, fields: Fields) -> dict[str, Any]:
    """The record of one event, in ECS names. A field that is ``None`` is left out.

    ``timestamp`` is from ``format_time``. Raises ``AuditError`` for an action, outcome or field that is not in the
    schema, a value of the wrong kind, or a required field that is missing; the value itself is never in the message.
    """
    try:
        required, allowed = _SCHEMAS[action]
        ecs_outcome = OUTCOMES[outcome]
    except KeyError:
        raise AuditError(_unknown(action, outcome)) from None
    event: dict[str, Any] = {
        "@timestamp": timestamp,
        "airflow_ai.schema": SCHEMA,
        "event.action": action,
        "event.id": event_id,
        "event.outcome": ecs_outcome,
    }
    if outcome == "reused":
        event["airflow_ai.reused"] = True
    for name, value in fields.items():
        if value is None:
            continue
        field = allowed.get(name)
        if field is None:
            raise AuditError(f"audit event {action}: field {name!r} is not in its schema; expected {sorted(allowed)}")
        ecs_name, check = field
        if not check(value):
            raise AuditError(f"audit event {action}: field {name}: expected {_EXPECTED[check]}")
        event[ecs_name] = value
    for name in required:
        if fields.get(name) is None:
            raise AuditError(f"audit event {action}: field {name} is missing")
    return event


def format_time(moment: datetime) -> str:
    """UTC, milliseconds, ``2025-01-31T12:00:00.000Z``. ``AuditError`` for a time without a zone."""
    if moment.tzinfo is None:
        raise AuditError("audit time has no time zone; pass datetime.now(UTC)")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def utc_now() -> datetime:
    return datetime.now(UTC)


def _unknown(action: str, outcome: str) -> str:
    if action not in _SCHEMAS:
        return f"audit action {action!r} is not known; expected one of {sorted(ACTIONS)}"
    return f"audit event {action}: outcome {outcome!r} is not known; expected one of {sorted(OUTCOMES)}"
