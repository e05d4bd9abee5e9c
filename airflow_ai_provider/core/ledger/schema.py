"""The ledger's tables, as SQLAlchemy Core sees them. Migrations create them; this is their present shape.

Money is stored as integer nano-dollars (``*_nano``), exact on every database. What analysts read stands beside it as
a generated column in USD: ``NUMERIC(20,10)`` on PostgreSQL, a number for display on SQLite.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Computed,
    Date,
    DateTime,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
)

metadata = MetaData()


def _nano(name: str, *, default: bool = True) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0" if default else None)


def usd_of(name: str, nano: str) -> Column[Any]:
    """A generated column: ``nano`` in USD."""
    return Column(name, Numeric(20, 10), Computed(f"CAST({nano} AS NUMERIC) / 1000000000.0", persisted=True))


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


def _when(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False)


def _caller() -> list[Column[object]]:
    return [
        Column("team_id", String(200), nullable=False),
        Column("dag_id", String(250), nullable=False),
        Column("run_id", String(250), nullable=False),
        Column("task_id", String(250), nullable=False),
        Column("map_index", Integer, nullable=False),
        Column("try_number", Integer, nullable=False),
    ]


def _request() -> list[Column[object]]:
    return [
        Column("request_id", String(32), nullable=False),
        *_caller(),
        Column("row_key", Text, nullable=False),
        Column("route", String(200), nullable=False),
        Column("tier", String(20), nullable=False),
        Column("deployment", String(200), nullable=False),
        Column("model", String(200), nullable=False),
        Column("provider", String(100), nullable=False),
        Column("price_version", String(100), nullable=False),
    ]


def _routing() -> list[Column[object]]:
    return [
        Column("routed_by", Text),
        Column("fallback_from", String(200)),
        Column("fallback_reason", Text),
    ]


llm_requests = Table(
    "llm_requests",
    metadata,
    Column("attempt_id", String(32), primary_key=True),
    Column("created_at", DateTime(timezone=True), nullable=False),  # part of the key where partitioned by it
    *_request(),
    Column("status", String(10), nullable=False),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("cached_input_tokens", BigInteger),
    _nano("cost_nano"),
    _nano("saved_nano"),
    usd_of("cost_usd", "cost_nano"),
    usd_of("saved_usd", "saved_nano"),
    Column("latency_ms", Integer),
    Column("error_type", String(100)),
    Column("cache_write_tokens", BigInteger),
    Column("prompt_bytes", Integer, nullable=False, server_default="0"),
    _nano("baseline_nano"),
    usd_of("baseline_usd", "baseline_nano"),
    Column("vendor_request_id", String(100)),
    Column("budget_set", String(16)),
    Column("cache_write_1h_tokens", BigInteger),
    *_routing(),
)

llm_open_attempts = Table(
    "llm_open_attempts",
    metadata,
    Column("attempt_id", String(32), primary_key=True),
    Column("hold_id", String(32), nullable=False),
    _nano("bound_nano", default=False),
    _when("opened_at"),
    *_request(),
    Column("prompt_bytes", Integer, nullable=False, server_default="0"),
    *_routing(),
)

llm_budgets = Table(
    "llm_budgets",
    metadata,
    Column("budget_id", String(500), primary_key=True),
    Column("name", String(400), nullable=False),
    Column("period", String(10), nullable=False),
    Column("period_start", String(510), nullable=False),
    _nano("limit_nano", default=False),
    _nano("spent_nano"),
    _nano("held_nano"),
    usd_of("limit_usd", "limit_nano"),
    usd_of("spent", "spent_nano"),
    usd_of("held", "held_nano"),
    _when("updated_at"),
    Column("limit_source", String(10), nullable=False, server_default="policy"),
    Column("starts_at", DateTime(timezone=True)),
    Column("ends_at", DateTime(timezone=True)),
    Column("thresholds", String(100), nullable=False, server_default="[]"),
    Column("noticed_percent", Integer, nullable=False, server_default="0"),
)

llm_budget_limits = Table(
    "llm_budget_limits",
    metadata,
    Column("change_id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(460), nullable=False),
    Column("team_id", String(200)),
    Column("dag_id", String(250)),
    Column("route", String(200)),
    Column("period", String(10), nullable=False),
    Column("timezone", String(60), nullable=False),
    Column("limit_nano", BigInteger),
    usd_of("limit_usd", "limit_nano"),
    Column("source", String(10), nullable=False),
    Column("set_by", String(200), nullable=False),
    Column("reason", String(500), nullable=False),
    _when("set_at"),
    Column("policy_path", String(250)),
    Column("policy_hash", String(64)),
)

llm_policy_pins = Table(
    "llm_policy_pins",
    metadata,
    Column("policy_hash", String(64), primary_key=True),
    Column("policy_path", String(250), nullable=False),
    Column("pinned_by", String(200), nullable=False),
    Column("reason", String(500), nullable=False),
    _when("pinned_at"),
)

llm_budget_notices = Table(
    "llm_budget_notices",
    metadata,
    Column("budget_id", String(520), primary_key=True),
    Column("percent", Integer, primary_key=True),
    _when("crossed_at"),
    Column("notified_at", DateTime(timezone=True)),
)

llm_budget_sets = Table(
    "llm_budget_sets",
    metadata,
    Column("budget_set", String(16), primary_key=True),
    Column("budget_ids", Text, nullable=False),
)

llm_holds = Table(
    "llm_holds",
    metadata,
    Column("hold_id", String(32), primary_key=True),
    Column("owner", String(32), nullable=False),
    *_caller(),
    Column("budget_ids", Text, nullable=False),
    _nano("amount_nano", default=False),
    usd_of("amount_usd", "amount_nano"),
    _when("created_at"),
    _when("renewed_at"),
    Column("budget_set", String(16), nullable=False, server_default=""),
)

llm_stopped_deployments = Table(
    "llm_stopped_deployments",
    metadata,
    Column("deployment", String(200), primary_key=True),
    _when("stopped_at"),
    Column("reason", String(200), nullable=False),
    Column("attempt_id", String(32), nullable=False),
    _nano("over_nano"),
    usd_of("over_usd", "over_nano"),
)

llm_cost_daily = Table(
    "llm_cost_daily",
    metadata,
    Column("day", Date, primary_key=True),
    Column("team_id", String(200), primary_key=True),
    Column("dag_id", String(250), primary_key=True),
    Column("model", String(200), primary_key=True),
    _count("requests"),
    _count("reused"),
    _count("errors"),
    _count("unknown"),
    _count("input_tokens"),
    _count("output_tokens"),
    _nano("cost_nano"),
    _nano("saved_nano"),
    usd_of("cost_usd", "cost_nano"),
    usd_of("saved_usd", "saved_nano"),
    _count("cached_input_tokens"),
    _count("cache_write_tokens"),
    _nano("baseline_nano"),
    _nano("adjusted_nano"),
    usd_of("baseline_usd", "baseline_nano"),
)

llm_adjustments = Table(
    "llm_adjustments",
    metadata,
    Column("attempt_id", String(32), primary_key=True),
    Column("invoice", String(64), primary_key=True),
    _when("created_at"),
    _when("adjusted_at"),
    Column("team_id", String(200), nullable=False),
    Column("dag_id", String(250), nullable=False),
    Column("model", String(200), nullable=False),
    Column("status", String(10), nullable=False),
    _nano("delta_nano"),
    usd_of("delta_usd", "delta_nano"),
    _count("input_tokens"),
    _count("output_tokens"),
    _count("cached_input_tokens"),
    _count("cache_write_tokens"),
    Column("vendor_request_id", String(100)),
)

review_items = Table(
    "review_items",
    metadata,
    Column("item_id", String(32), primary_key=True),
    _when("created_at"),
    Column("request_id", String(32), nullable=False),  # at most one open item has it: a partial unique index
    *_caller(),
    Column("row_key", Text, nullable=False),
    Column("route", String(200), nullable=False),
    Column("tier", String(20)),
    Column("deployment", String(200)),
    Column("model", String(200)),
    Column("reason_kind", String(100), nullable=False),
    Column("reason", Text, nullable=False),
    Column("sink", Text, nullable=False),
    Column("status", String(10), nullable=False),
    Column("decision", String(20)),
    Column("decided_by", String(200)),
    Column("decided_at", DateTime(timezone=True)),
    Column("note", Text),
    _when("updated_at"),
)

ai_keys = Table(
    "ai_keys",
    metadata,
    Column("purpose", String(200), primary_key=True),
    Column("key_id", String(64), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("host", String(300), nullable=False),
    _when("registered_at"),
    Column("active_since", DateTime(timezone=True)),
)

audit_pins = Table(
    "audit_pins",
    metadata,
    Column("trail", String(200), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("manifest_hash", String(64), nullable=False),
    _when("pinned_at"),
)

audit_writers = Table(
    "audit_writers",
    metadata,
    Column("segment", String(300), primary_key=True),
    Column("trail", String(200), nullable=False),
    Column("writer", String(200), nullable=False),
    _when("opened_at"),
    Column("spool", String(32)),
    Column("task", Text),
)
