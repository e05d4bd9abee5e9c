"""Why a request went where it went, and answers that wait for a person.

The new columns of ``llm_requests`` are null in what stands there, so that neither database rewrites a row; on
PostgreSQL every month gets them with the table. What 0002 has no column for is lost on the way down.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_CALL_TABLES = ("llm_requests", "llm_open_attempts")
_ROUTING = {"routed_by": sa.Text(), "fallback_from": sa.String(200), "fallback_reason": sa.Text()}


def _text(name: str, size: int, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(size), nullable=nullable)


def _when(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    for table in _CALL_TABLES:
        for name, kind in _ROUTING.items():
            op.add_column(table, sa.Column(name, kind, nullable=True))
    op.create_table(
        "review_items",
        _text("item_id", 32),
        _when("created_at"),
        _text("request_id", 32),
        *(_text(name, size) for name, size in (("team_id", 200), ("dag_id", 250), ("run_id", 250), ("task_id", 250))),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("map_index", "try_number")),
        sa.Column("row_key", sa.Text, nullable=False),
        _text("route", 200),
        _text("tier", 20, nullable=True),
        *(_text(name, 200, nullable=True) for name in ("deployment", "model")),
        _text("reason_kind", 100),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("sink", sa.Text, nullable=False),
        _text("status", 10),
        _text("decision", 20, nullable=True),
        _text("decided_by", 200, nullable=True),
        _when("decided_at", nullable=True),
        sa.Column("note", sa.Text, nullable=True),
        _when("updated_at"),
        sa.PrimaryKeyConstraint("item_id"),
    )
    is_open = sa.text("status = 'open'")
    op.create_index(
        "review_items_open",
        "review_items",
        ["request_id"],
        unique=True,
        postgresql_where=is_open,
        sqlite_where=is_open,
    )
    op.create_index("review_items_request", "review_items", ["request_id"])
    op.create_index("review_items_task", "review_items", ["dag_id", "task_id", "run_id", "map_index"])
    op.create_index("review_items_time", "review_items", ["created_at"])


def downgrade() -> None:
    op.drop_table("review_items")
    for table in _CALL_TABLES:
        for name in reversed(_ROUTING):
            op.drop_column(table, name)
