"""Runs migrations on the connection, and in the transaction, that the caller holds."""

from alembic import context

from airflow_ai_provider.core.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="ai_ledger_version",
    transactional_ddl=False,
)
context.run_migrations()
