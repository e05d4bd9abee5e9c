"""Several hosts on one ledger: whose segment is whose, and whether they use the same keys."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("audit_writers", sa.Column("spool", sa.String(32), nullable=True))
    op.add_column("audit_writers", sa.Column("task", sa.Text, nullable=True))
    op.create_table(
        "ai_keys",
        sa.Column("purpose", sa.String(200), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("host", sa.String(300), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("active_since", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("purpose", "key_id"),
    )


def downgrade() -> None:
    op.drop_table("ai_keys")
    op.drop_column("audit_writers", "task")
    op.drop_column("audit_writers", "spool")
