"""The first tables: requests, open attempts, budgets, holds, the daily rollup, and the audit trail's pins.

Written out in full, not taken from the schema module, so that this revision stays what it was.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_VIEW = """
CREATE VIEW team_daily_cost AS
SELECT team_id, day,
       SUM(cost_usd) AS cost_usd, SUM(saved_usd) AS saved_usd,
       SUM(requests) AS requests, SUM(reused) AS reused, SUM(errors) AS errors, SUM(unknown) AS unknown,
       SUM(input_tokens) AS input_tokens, SUM(output_tokens) AS output_tokens,
       CASE WHEN SUM(requests - errors) > 0
            THEN CAST(SUM(reused) AS NUMERIC) * 1.0 / SUM(requests - errors) ELSE 0 END AS reuse_rate
FROM llm_cost_daily
GROUP BY team_id, day
"""


def _big(name: str, default: str | None = "0") -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default=default)


def _usd(name: str, nano: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Numeric(20, 10), sa.Computed(f"CAST({nano} AS NUMERIC) / 1000000000.0", persisted=True))


def _when(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False)


def _text(name: str, size: int) -> sa.Column[Any]:
    return sa.Column(name, sa.String(size), nullable=False)


def _caller() -> list[sa.Column[Any]]:
    names = [_text("team_id", 200), _text("dag_id", 250), _text("run_id", 250), _text("task_id", 250)]
    return [*names, *(sa.Column(name, sa.Integer, nullable=False) for name in ("map_index", "try_number"))]


def _request() -> list[sa.Column[Any]]:
    return [
        _text("request_id", 32),
        *_caller(),
        sa.Column("row_key", sa.Text, nullable=False),
        _text("route", 200),
        _text("tier", 20),
        _text("deployment", 200),
        _text("model", 200),
        _text("provider", 100),
        _text("price_version", 100),
    ]


def upgrade() -> None:
    op.create_table(
        "llm_requests",
        sa.Column("attempt_id", sa.String(32), primary_key=True),
        _when("created_at"),
        *_request(),
        _text("status", 10),
        *(sa.Column(name, sa.BigInteger) for name in ("input_tokens", "output_tokens", "cached_input_tokens")),
        _big("cost_nano"),
        _big("saved_nano"),
        _usd("cost_usd", "cost_nano"),
        _usd("saved_usd", "saved_nano"),
        sa.Column("latency_ms", sa.Integer),
        sa.Column("error_type", sa.String(100)),
    )
    op.create_index("llm_requests_team_time", "llm_requests", ["team_id", "created_at"])
    op.create_index("llm_requests_task", "llm_requests", ["dag_id", "run_id", "task_id"])
    op.create_table(
        "llm_open_attempts",
        sa.Column("attempt_id", sa.String(32), primary_key=True),
        _text("hold_id", 32),
        _big("bound_nano", None),
        _when("opened_at"),
        *_request(),
    )
    op.create_index("llm_open_attempts_hold", "llm_open_attempts", ["hold_id"])
    op.create_table(
        "llm_budgets",
        sa.Column("budget_id", sa.String(500), primary_key=True),
        _text("name", 400),
        _text("period", 10),
        _text("period_start", 510),
        _big("limit_nano", None),
        _big("spent_nano"),
        _big("held_nano"),
        _usd("limit_usd", "limit_nano"),
        _usd("spent", "spent_nano"),
        _usd("held", "held_nano"),
        _when("updated_at"),
    )
    op.create_table(
        "llm_holds",
        sa.Column("hold_id", sa.String(32), primary_key=True),
        _text("owner", 32),
        *_caller(),
        sa.Column("budget_ids", sa.Text, nullable=False),
        _big("amount_nano", None),
        _usd("amount_usd", "amount_nano"),
        _when("created_at"),
        _when("renewed_at"),
    )
    op.create_index("llm_holds_task", "llm_holds", ["dag_id", "run_id", "task_id", "map_index"])
    op.create_table(
        "llm_cost_daily",
        sa.Column("day", sa.Date, primary_key=True),
        *(sa.Column(n, sa.String(s), primary_key=True) for n, s in (("team_id", 200), ("dag_id", 250), ("model", 200))),
        *(_big(name) for name in ("requests", "reused", "errors", "unknown", "input_tokens", "output_tokens")),
        _big("cost_nano"),
        _big("saved_nano"),
        _usd("cost_usd", "cost_nano"),
        _usd("saved_usd", "saved_nano"),
    )
    op.create_table(
        "audit_pins",
        sa.Column("trail", sa.String(200), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        _text("manifest_hash", 64),
        _when("pinned_at"),
    )
    op.create_table(
        "audit_writers",
        sa.Column("segment", sa.String(300), primary_key=True),
        _text("trail", 200),
        _text("writer", 200),
        _when("opened_at"),
    )
    op.execute(_VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW team_daily_cost")
    tables = ("audit_writers", "audit_pins", "llm_cost_daily", "llm_holds")
    for table in (*tables, "llm_budgets", "llm_open_attempts", "llm_requests"):
        op.drop_table(table)
