"""The schema of audit events: every field, every action, and which fields an action may have.

This is the one place where events are described. ``events`` builds and checks them from these tables, and
``schema.json``, the JSON Schema for other tools that read the trail, is generated from them:

    python -m airflow_ai_provider.core.audit.trail.schema > airflow_ai_provider/core/audit/trail/schema.json

``VERSION`` stands in every event as ``airflow_ai.schema``. It rises when a name changes its meaning or is taken away;
new fields and new actions do not raise it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

VERSION: Final = 1
MAX_NAME: Final = 256
"""Characters; Airflow's own identifiers have at most 250."""
MAX_INTEGER: Final = 2**53 - 1
"""Largest integer that every JSON reader keeps exact (RFC 8785, section 3.2.2.3)."""

OUTCOMES: Final[Mapping[str, str]] = {"ok": "success", "reused": "success", "error": "failure", "unknown": "unknown"}
"""Our outcomes and the three that ECS allows; ``reused`` is a success that also sets ``airflow_ai.reused``."""

KINDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "name": {"type": "string", "maxLength": MAX_NAME, "pattern": r"^[^\n\r]*$"},
    "token": {"type": "string", "pattern": r"^[A-Za-z0-9_.:/+=-]{1,128}$"},
    "digest": {"type": "string", "pattern": "^[0-9a-f]{32}([0-9a-f]{32})?$"},
    "address": {"type": "string", "pattern": "^[0-9A-Fa-f:.]{2,45}$"},
    "count": {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER},
    "index": {"type": "integer", "minimum": -1, "maximum": MAX_INTEGER},
    "flag": {"type": "boolean"},
}
"""What a value may be. A name is for people and is one short line; a token is for programs."""

ECS: Final[Mapping[str, str]] = {
    "user": "user.name",
    "host": "host.name",
    "source_ip": "source.ip",
    "operation": "gen_ai.operation.name",
    "provider": "gen_ai.system",
    "model": "gen_ai.request.model",
    "response_model": "gen_ai.response.model",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "error_type": "error.type",
    "http_status": "http.response.status_code",
    "reason": "event.reason",
}
"""Our short names that the Elastic Common Schema has a field for; every other one is ``airflow_ai.<name>``."""

FIELDS: Final[Mapping[str, str]] = {
    "name": "user host dag_id run_id task_id team route tier deployment model response_model provider collection shard"
    " operator budget period reason webhook endpoint review decision decided_by column table profile hash_key_id"
    " key_id role routed_by fallback_from fallback_reason policy_path dag_policy_path account",
    "token": "session_id request_id attempt_id error_type operation price_version segment state format invoice_format"
    " decided_at",
    "digest": "policy_hash old_policy_hash dag_policy_hash prompt_hash answer_hash reused_hash manifest_hash"
    " invoice_hash plan_hash content_hash",
    "address": "source_ip",
    "count": "try_number policy_version batch rows rows_ok rows_reused rows_rejected rows_over_budget rows_error"
    " rows_skipped rows_matched rows_resolved rows_corrected input_tokens output_tokens cached_input_tokens cost_nano"
    " saved_nano hold_nano limit_nano old_limit_nano spent_nano worst_nano raised_nano lowered_nano"
    " latency_ms duration_ms http_status attempt attempts calls holds percent documents documents_added"
    " documents_changed documents_removed chunks sequence segments events findings torn_bytes columns days bytes"
    " answers subjects",
    "index": "map_index",
    "flag": "damaged",
}
"""Short names by kind."""

WHO: Final = "user account dag_id run_id task_id map_index try_number team host source_ip session_id"
"""On whose behalf and from where; every action may have these."""
_COST: Final = "input_tokens output_tokens cached_input_tokens cost_nano saved_nano"
_PLAN: Final = "route shard cost_nano worst_nano limit_nano decided_by decided_at"
_REVIEW: Final = "request_id route tier deployment model reason"
_ROWS: Final = (
    "batch route shard table column columns key_id policy_hash content_hash rows_rejected rows_error error_type reason"
)

ACTIONS: Final[Mapping[str, tuple[str, str, str]]] = {
    # action: (what it says, required fields, optional fields besides WHO)
    "policy.loaded": (
        "a task has read the policy",
        "policy_hash",
        "policy_version policy_path dag_policy_hash dag_policy_path",
    ),
    "policy.changed": (
        "the policy is another one than this host last read",
        "policy_hash",
        "old_policy_hash policy_path",
    ),
    "policy.pinned": ("the ledger accepts a policy, and none that is not pinned", "policy_hash", "policy_path reason"),
    "policy.unpinned": ("the ledger accepts a policy no more", "policy_hash", "reason"),
    "task.started": ("a task begins to use the gateway", "dag_id run_id task_id", "route shard policy_hash"),
    "task.finished": (
        "a task has ended its use of the gateway; counts of rows",
        "dag_id run_id task_id",
        f"{_COST} route shard rows rows_ok rows_reused rows_rejected rows_over_budget rows_error rows_skipped"
        " duration_ms error_type",
    ),
    "task.outcome": (
        "what Airflow made of a task instance: success, failed, skipped",
        "dag_id run_id task_id state",
        "operator duration_ms error_type",
    ),
    "batch.started": ("before the calls of a batch", "batch rows", "route tier deployment hold_nano shard"),
    "batch.reused": (
        "rows of a batch answered from the response store, with a keyed hash over their request ids",
        "batch rows reused_hash",
        "route saved_nano hash_key_id",
    ),
    "llm.call": (
        "one attempt at a vendor: request, model, tokens, cost, outcome, keyed hashes of prompt and answer",
        "request_id",
        f"{_COST} attempt_id attempt batch operation route tier deployment model response_model provider"
        " price_version latency_ms http_status error_type prompt_hash answer_hash hash_key_id routed_by fallback_from"
        " fallback_reason",
    ),
    "documents.synced": (
        "a collection was brought up to date",
        "collection",
        f"{_COST} documents documents_added documents_changed documents_removed chunks duration_ms error_type",
    ),
    "plan.made": (
        "what a job would cost was worked out",
        "plan_hash",
        "route shard rows calls cost_nano worst_nano limit_nano",
    ),
    "plan.approved": ("somebody approved a planned cost", "plan_hash", _PLAN),
    "plan.rejected": ("a planned cost was refused, or nobody decided in time", "plan_hash", f"{_PLAN} reason"),
    "budget.changed": (
        "a limit was set or changed",
        "budget period limit_nano",
        "old_limit_nano reason policy_hash policy_path",
    ),
    "budget.threshold": ("a share of a budget is used up", "budget percent", "period spent_nano limit_nano"),
    "budget.stopped": ("a budget has no room left", "budget", "period spent_nano limit_nano reason"),
    "deployment.stopped": ("calls to a deployment were stopped", "deployment", "reason"),
    "deployment.resumed": ("calls to a deployment may go on", "deployment", "reason"),
    "answer.differs": (
        "answers of a deployment state another model, service_tier or cost (the reason) than was asked for; once for"
        " each deployment and task",
        "deployment reason",
        "model response_model",
    ),
    "circuit.opened": ("a deployment that fails is given a rest; calls fall back", "deployment", "reason"),
    "circuit.closed": ("a rested deployment is called again", "deployment", "reason"),
    "holds.swept": ("holds of dead processes were settled", "holds attempts cost_nano", "reason"),
    "ledger.reconciled": (
        "the ledger was compared with a vendor's invoice",
        "invoice_hash",
        "invoice_format provider period rows rows_matched rows_resolved rows_corrected raised_nano lowered_nano"
        " cost_nano findings reason",
    ),
    "ledger.exported": (
        "rows of the ledger were exported",
        "rows",
        "days bytes segments period format manifest_hash content_hash",
    ),
    "ledger.dropped": ("a month past its retention was dropped", "period rows", ""),
    "ledger.repaired": ("the rollup of a day was rewritten from its rows", "period", ""),
    "ledger.granted": ("a database role was given the right to read the ledger", "role", ""),
    "review.requested": ("an answer waits for a person", "review", _REVIEW),
    "review.answered": ("a later try answered what waited for a person", "review", _REVIEW),
    "review.decided": ("a person decided on an answer", "review decision", _REVIEW),
    "review.expired": ("nobody decided in time", "review", "request_id route reason"),
    "rows.masked": ("personal data of rows was masked", "rows", f"{_ROWS} profile"),
    "rows.restored": ("masked values were put back", "rows", f"{_ROWS} profile"),
    "rows.encrypted": ("columns were encrypted", "rows", _ROWS),
    "rows.decrypted": ("encrypted columns were read in clear", "rows", _ROWS),
    "keys.generated": ("a key was made", "key_id", "reason"),
    "keys.rotated": ("a key is now the one that is used", "key_id", "reason"),
    "keys.retired": ("a key is kept for reading only", "key_id", "reason"),
    "keys.destroyed": ("a key is gone, and what it encrypted with it", "key_id", "reason"),
    "keys.reencrypted": ("values were encrypted anew under another key", "rows", _ROWS),
    "reuse.purged": (
        "stored answers were removed: how many, and how many were left that cannot be opened",
        "answers",
        "bytes findings subjects",
    ),
    "webhook.delivered": ("a message was sent to a webhook", "webhook", "http_status attempt latency_ms error_type"),
    "login.refused": ("an endpoint turned somebody away", "endpoint", "reason http_status"),
    "trail.sealed": ("the sealer wrote a manifest", "sequence manifest_hash", "segments events"),
    "trail.verified": ("the trail was verified", "events findings", "segments"),
    "audit.exported": ("events were exported", "events format", "content_hash"),
    "segment.recovered": ("a dead process' segment was sealed", "segment", "events torn_bytes damaged"),
}

FIXED: Final[Mapping[str, Mapping[str, Any]]] = {
    "@timestamp": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"},
    "airflow_ai.schema": {"const": VERSION},
    "event.action": {"enum": sorted(ACTIONS)},
    "event.id": {"type": "string", "pattern": "^[0-9a-z]{8,64}-[1-9][0-9]*$"},
    "event.outcome": {"enum": sorted(set(OUTCOMES.values()))},
}
"""What every event has."""


def record_name(name: str) -> str:
    """The name of a field in a record."""
    return ECS.get(name, f"airflow_ai.{name}")


def json_schema() -> dict[str, Any]:
    """The tables as JSON Schema 2020-12, for records without their chain value ``h``."""
    kinds = {name: kind for kind, names in FIELDS.items() for name in names.split()}
    fields = {record_name(name): {"$ref": f"#/$defs/{kind}"} for name, kind in kinds.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Audit event of airflow-ai-provider, version {VERSION}",
        "type": "object",
        "required": sorted(FIXED),
        "properties": {**FIXED, "airflow_ai.reused": {"const": True}, **dict(sorted(fields.items()))},
        "additionalProperties": False,
        "allOf": [_only(action, *fields) for action, (_, *fields) in ACTIONS.items()],
        "$defs": {**KINDS},
    }


def _only(action: str, required: str, optional: str) -> dict[str, Any]:
    allowed = [record_name(name) for name in f"{required} {optional} {WHO}".split()]
    return {
        "if": {"properties": {"event.action": {"const": action}}},
        "then": {
            "required": [record_name(name) for name in required.split()],
            "propertyNames": {"enum": sorted({*FIXED, "airflow_ai.reused", *allowed})},
            "description": ACTIONS[action][0],
        },
    }


if __name__ == "__main__":
    json.dump(json_schema(), sys.stdout, indent=1)
    sys.stdout.write("\n")
