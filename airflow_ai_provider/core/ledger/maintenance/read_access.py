"""Read access for analysts: a role of PostgreSQL that may SELECT the ledger's tables and views, and nothing else.

Partitions are not granted one by one: a query on ``llm_requests`` needs the right on ``llm_requests`` alone, so that
months made later can be read too. Default privileges are not used: they would open whatever else the ledger's owner
makes in the same schema.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from airflow_ai_provider.core.errors import LedgerError
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.schema import metadata

VIEWS = ("team_daily_cost", "llm_request_costs")
_LONGEST_NAME = 63
"""Bytes of a PostgreSQL identifier (NAMEDATALEN - 1)."""
_WRITES = "INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER"


def grant_statements(ledger: Ledger, role: str) -> list[str]:
    """The SQL that makes ``role`` where it is missing and lets it read the ledger.

    Raises ``LedgerError`` on SQLite, and for a name that cannot be a role's.
    """
    _refuse_sqlite(ledger)
    name = _role_name(role)
    with ledger.read() as conn:
        database, schema = conn.execute(text("SELECT current_database(), current_schema()")).one()
        there = _role_exists(conn, role)
    place = _quoted(schema)
    relations = ", ".join(f"{place}.{_quoted(relation)}" for relation in (*sorted(metadata.tables), *VIEWS))
    return [
        *([] if there else [f"CREATE ROLE {name} NOLOGIN"]),
        f"GRANT CONNECT ON DATABASE {_quoted(database)} TO {name}",
        f"GRANT USAGE ON SCHEMA {place} TO {name}",
        f"GRANT SELECT ON {relations} TO {name}",
    ]


def grant(ledger: Ledger, role: str) -> list[str]:
    """Run ``grant_statements`` in one transaction, and return what the role may do beyond reading, in words.

    Raises ``LedgerError`` where this login may not make roles or grant rights.
    """
    statements = grant_statements(ledger, role)
    try:
        with ledger.write() as conn:
            for statement in statements:
                conn.exec_driver_sql(statement.replace("%", "%%"))
            return _excess(conn, role)
    except LedgerError as error:
        raise LedgerError(f"{error}; an administrator can run what --print shows") from None


def _excess(conn: Connection, role: str) -> list[str]:
    """Rights to write that the role has from elsewhere: its own, by membership, or as everybody."""
    if conn.execute(text("SELECT rolsuper FROM pg_roles WHERE rolname = :role"), {"role": role}).scalar():
        return [f"role {role} is a superuser"]
    can = text("SELECT has_table_privilege(:role, CAST(:relation AS text), :rights)")
    found = [
        f"role {role} may write {name}"
        for name in (*sorted(metadata.tables), *VIEWS)
        if conn.execute(can, {"role": role, "relation": name, "rights": _WRITES}).scalar()
    ]
    makes = text("SELECT has_schema_privilege(:role, current_schema(), 'CREATE')")
    if conn.execute(makes, {"role": role}).scalar():
        found.append(f"role {role} may create tables in the ledger's schema")
    return found


def _role_exists(conn: Connection, role: str) -> bool:
    return bool(conn.execute(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}).scalar())


def _role_name(role: str) -> str:
    taken = role.lower() in ("public", "none", "current_user", "session_user", "current_role")
    if not role.strip() or "\0" in role or len(role.encode()) > _LONGEST_NAME or role.startswith("pg_") or taken:
        raise LedgerError(f"role {role!r}: expected a name of 1 to {_LONGEST_NAME} bytes that PostgreSQL does not keep")
    return _quoted(role)


def _quoted(name: str) -> str:
    # SQLAlchemy's own quoting doubles percent signs, which would show in what is printed.
    return '"' + name.replace('"', '""') + '"'


def _refuse_sqlite(ledger: Ledger) -> None:
    if ledger.sqlite:
        raise LedgerError(
            f"ledger {ledger.place}: SQLite has no roles; give analysts a copy, or read rights on the file"
        )
