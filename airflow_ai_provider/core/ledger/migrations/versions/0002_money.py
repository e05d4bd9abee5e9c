"""Requests by month, who set a limit and why, thresholds that are told once, stopped deployments, adjustments.

``llm_requests`` is rebuilt: on PostgreSQL it becomes a table partitioned by the month of ``created_at``. What stands
in it is copied, both ways; what 0001 has no column for is lost on the way down.
"""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_CALLER = "team_id dag_id run_id task_id map_index try_number"
_KEPT = (
    f"attempt_id created_at request_id {_CALLER} row_key route tier deployment model provider price_version status"
    " input_tokens output_tokens cached_input_tokens cost_nano saved_nano latency_ms error_type"
).split()

_DAILY_VIEW_0001 = """
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
_DAILY_VIEW = _DAILY_VIEW_0001.replace(
    "SUM(saved_usd) AS saved_usd,", "SUM(saved_usd) AS saved_usd, SUM(baseline_usd) AS baseline_usd,"
)
_COSTS_VIEW = """
CREATE VIEW llm_request_costs AS
SELECT r.attempt_id, r.created_at, r.request_id, r.team_id, r.dag_id, r.run_id, r.task_id, r.row_key, r.route,
       r.deployment, r.model, r.status, r.cost_nano AS billed_nano, COALESCE(a.delta_nano, 0) AS adjusted_nano,
       r.cost_nano + COALESCE(a.delta_nano, 0) AS cost_nano,
       CAST(r.cost_nano + COALESCE(a.delta_nano, 0) AS NUMERIC) / 1000000000.0 AS cost_usd
FROM llm_requests r
LEFT JOIN (
    SELECT attempt_id, SUM(delta_nano) AS delta_nano FROM llm_adjustments GROUP BY attempt_id
) a ON a.attempt_id = r.attempt_id
"""


def _postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _big(name: str, default: str | None = "0", *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, nullable=nullable, server_default=default)


def _usd(name: str, nano: str, *, added: bool = False) -> sa.Column[Any]:
    """A generated column. SQLite can add one to a table only if it is computed when read."""
    computed = sa.Computed(f"CAST({nano} AS NUMERIC) / 1000000000.0", persisted=not added or _postgresql())
    return sa.Column(name, sa.Numeric(20, 10), computed)


def _when(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _text(name: str, size: int, *, nullable: bool = False, default: str | None = None) -> sa.Column[Any]:
    return sa.Column(name, sa.String(size), nullable=nullable, server_default=default)


def _request_columns() -> list[sa.Column[Any]]:
    texts = {"team_id": 200, "dag_id": 250, "run_id": 250, "task_id": 250}
    names = {"route": 200, "tier": 20, "deployment": 200, "model": 200, "provider": 100, "price_version": 100}
    return [
        _text("attempt_id", 32),
        _when("created_at"),
        _text("request_id", 32),
        *(_text(name, size) for name, size in texts.items()),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("map_index", "try_number")),
        sa.Column("row_key", sa.Text, nullable=False),
        *(_text(name, size) for name, size in names.items()),
        _text("status", 10),
        *(_big(name, None, nullable=True) for name in ("input_tokens", "output_tokens", "cached_input_tokens")),
        _big("cost_nano"),
        _big("saved_nano"),
        _usd("cost_usd", "cost_nano"),
        _usd("saved_usd", "saved_nano"),
        sa.Column("latency_ms", sa.Integer),
        _text("error_type", 100, nullable=True),
    ]


def _new_columns() -> list[sa.Column[Any]]:
    return [
        _big("cache_write_tokens", None, nullable=True),
        sa.Column("prompt_bytes", sa.Integer, nullable=False, server_default="0"),
        _big("baseline_nano"),
        _usd("baseline_usd", "baseline_nano"),
        _text("vendor_request_id", 100, nullable=True),
        _text("budget_set", 16, nullable=True),
        _big("cache_write_1h_tokens", None, nullable=True),
    ]


def _rebuild(columns: list[sa.Column[Any]], *, partitioned: bool) -> None:
    """Replace ``llm_requests`` by a table of these columns, with what it holds."""
    key = ("attempt_id", "created_at") if partitioned else ("attempt_id",)
    options: dict[str, Any] = {"postgresql_partition_by": "RANGE (created_at)"} if partitioned else {}
    op.create_table("llm_requests_new", *columns, sa.PrimaryKeyConstraint(*key), **options)
    if partitioned:
        _make_months()
    kept = ", ".join(_KEPT)
    op.execute(f"INSERT INTO llm_requests_new ({kept}) SELECT {kept} FROM llm_requests")  # noqa: S608 - names above
    op.drop_table("llm_requests")
    op.rename_table("llm_requests_new", "llm_requests")
    if _postgresql():
        op.execute("ALTER INDEX llm_requests_new_pkey RENAME TO llm_requests_pkey")


def _make_months() -> None:
    """A partition for each month that has rows, and for this one; later ones are made when the ledger is opened."""
    conn = op.get_bind()
    months = conn.execute(
        sa.text("SELECT DISTINCT to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM') FROM llm_requests")
    )
    for month in {*months.scalars(), f"{datetime.now(UTC):%Y-%m}"}:
        year, number = map(int, month.split("-"))
        after = f"{year + number // 12}-{number % 12 + 1:02d}"
        op.execute(
            f"CREATE TABLE llm_requests_{month.replace('-', '_')} PARTITION OF llm_requests_new "
            f"FOR VALUES FROM ('{month}-01 00:00:00+00') TO ('{after}-01 00:00:00+00')"
        )


def _name_zones() -> None:
    """A budget's name holds its time zone, as its id always did."""
    conn = op.get_bind()
    for budget_id in conn.execute(sa.text("SELECT budget_id FROM llm_budgets WHERE budget_id LIKE '%[%'")).scalars():
        values = {"name": budget_id.partition("@")[0], "id": budget_id}
        conn.execute(sa.text("UPDATE llm_budgets SET name = :name WHERE budget_id = :id"), values)


def upgrade() -> None:
    op.execute("DROP VIEW team_daily_cost")
    _rebuild([*_request_columns(), *_new_columns()], partitioned=_postgresql())
    op.create_index("llm_requests_team_time", "llm_requests", ["team_id", "created_at"])
    op.create_index("llm_requests_task", "llm_requests", ["dag_id", "task_id", "created_at"])
    op.create_index("llm_requests_model", "llm_requests", ["model", "created_at"])
    unknown = sa.text("status = 'unknown'")  # few rows, asked for by reconciliation and retention
    where: dict[str, Any] = {"postgresql_where": unknown, "sqlite_where": unknown}
    op.create_index("llm_requests_unknown", "llm_requests", ["created_at"], **where)
    if _postgresql():
        op.execute("CREATE INDEX llm_requests_time ON llm_requests USING brin (created_at)")
    else:
        op.create_index("llm_requests_time", "llm_requests", ["created_at"])
    op.add_column("llm_open_attempts", sa.Column("prompt_bytes", sa.Integer, nullable=False, server_default="0"))
    op.add_column("llm_holds", _text("budget_set", 16, default=""))
    op.add_column("llm_budgets", _text("limit_source", 10, default="policy"))
    op.add_column("llm_budgets", _when("starts_at", nullable=True))
    op.add_column("llm_budgets", _when("ends_at", nullable=True))
    op.add_column("llm_budgets", _text("thresholds", 100, default="[]"))
    op.add_column("llm_budgets", sa.Column("noticed_percent", sa.Integer, nullable=False, server_default="0"))
    _name_zones()
    for name in ("cached_input_tokens", "cache_write_tokens", "baseline_nano", "adjusted_nano"):
        op.add_column("llm_cost_daily", _big(name))
    op.add_column("llm_cost_daily", _usd("baseline_usd", "baseline_nano", added=True))
    op.create_table(
        "llm_budget_sets",
        _text("budget_set", 16),
        sa.Column("budget_ids", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("budget_set"),
    )
    op.create_table(
        "llm_budget_limits",
        sa.Column("change_id", sa.Integer, primary_key=True, autoincrement=True),
        _text("name", 460),
        *(_text(name, size, nullable=True) for name, size in (("team_id", 200), ("dag_id", 250), ("route", 200))),
        _text("period", 10),
        _text("timezone", 60),
        _big("limit_nano", None, nullable=True),
        _usd("limit_usd", "limit_nano"),
        _text("source", 10),
        _text("set_by", 200),
        _text("reason", 500),
        _when("set_at"),
    )
    op.create_index("llm_budget_limits_name", "llm_budget_limits", ["name", "change_id"])
    op.create_table(
        "llm_budget_notices",
        _text("budget_id", 520),
        sa.Column("percent", sa.Integer, nullable=False),
        _when("crossed_at"),
        _when("notified_at", nullable=True),
        sa.PrimaryKeyConstraint("budget_id", "percent"),
    )
    op.create_table(
        "llm_stopped_deployments",
        _text("deployment", 200),
        _when("stopped_at"),
        _text("reason", 200),
        _text("attempt_id", 32),
        _big("over_nano"),
        _usd("over_usd", "over_nano"),
        sa.PrimaryKeyConstraint("deployment"),
    )
    op.create_table(
        "llm_adjustments",
        _text("attempt_id", 32),
        _text("invoice", 64),
        _when("created_at"),
        _when("adjusted_at"),
        *(_text(name, size) for name, size in (("team_id", 200), ("dag_id", 250), ("model", 200))),
        _text("status", 10),
        _big("delta_nano"),
        _usd("delta_usd", "delta_nano"),
        *(_big(name) for name in ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens")),
        _text("vendor_request_id", 100, nullable=True),
        sa.PrimaryKeyConstraint("attempt_id", "invoice"),
    )
    for moment in ("created_at", "adjusted_at"):
        op.create_index(f"llm_adjustments_{moment}", "llm_adjustments", [moment])
    op.execute(_DAILY_VIEW)
    op.execute(_COSTS_VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW llm_request_costs")
    op.execute("DROP VIEW team_daily_cost")
    _rebuild(_request_columns(), partitioned=False)
    op.create_index("llm_requests_team_time", "llm_requests", ["team_id", "created_at"])
    op.create_index("llm_requests_task", "llm_requests", ["dag_id", "run_id", "task_id"])
    new_tables = ("adjustments", "stopped_deployments", "budget_notices", "budget_limits", "budget_sets")
    for table in new_tables:
        op.drop_table(f"llm_{table}")
    added = {
        "llm_cost_daily": "baseline_usd cached_input_tokens cache_write_tokens baseline_nano adjusted_nano",
        "llm_budgets": "limit_source starts_at ends_at thresholds noticed_percent",
        "llm_holds": "budget_set",
        "llm_open_attempts": "prompt_bytes",
    }
    for table, names in added.items():
        for name in names.split():
            op.drop_column(table, name)
    op.execute(_DAILY_VIEW_0001)
