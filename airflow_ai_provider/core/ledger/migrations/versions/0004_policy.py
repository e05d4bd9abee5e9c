"""Which policy file set a limit, and which policies the ledger accepts."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_STATED_IN = {"policy_path": 250, "policy_hash": 64}


def upgrade() -> None:
    for name, size in _STATED_IN.items():
        op.add_column("llm_budget_limits", sa.Column(name, sa.String(size), nullable=True))
    op.create_table(
        "llm_policy_pins",
        sa.Column("policy_hash", sa.String(64), nullable=False),
        sa.Column("policy_path", sa.String(250), nullable=False),
        sa.Column("pinned_by", sa.String(200), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("pinned_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("policy_hash"),
    )


def downgrade() -> None:
    op.drop_table("llm_policy_pins")
    for name in reversed(_STATED_IN):
        op.drop_column("llm_budget_limits", name)
