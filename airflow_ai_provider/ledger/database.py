"""The ledger database: connections, transactions, and its schema's version.

SQLite runs in WAL with ``synchronous=FULL``: a commit survives the loss of power, as it does on PostgreSQL. Writing
transactions begin ``IMMEDIATE``, so that a check and the write after it are one step in every process.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.pool import QueuePool

from airflow_ai_provider.errors import LedgerError, LedgerUnavailable
from airflow_ai_provider.ledger.partitions import MONTHS_AHEAD, forget_months, make_months, missing_months, months_from

HEAD = "0005"
"""The migration this code is written for."""
_BUSY_SECONDS = 30
_READ = "ledger_read"
_MIGRATION_LOCK = 0x6169_6C65_6467  # any constant shared by all processes; spells "ailedg"


class Ledger:
    """A ledger database that is reachable and of the right schema."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect and bring the schema up to date.

        Raises ``LedgerUnavailable`` where the database cannot be reached, ``LedgerError`` where its schema is newer.
        """
        ledger = cls(_engine(url))
        try:
            ledger._ensure_schema()
        except BaseException:
            ledger.close()
            raise
        return ledger

    @property
    def sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @property
    def place(self) -> str:
        """Where the ledger is, without its password."""
        return self.engine.url.render_as_string(hide_password=True)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that is durable when the block ends."""
        with self._reaching(), self.engine.begin() as conn:
            yield conn

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that only reads: on SQLite it waits for no writer."""
        with (
            self._reaching(),
            self.engine.connect().execution_options(**{_READ: True}) as conn,
            conn.begin(),
        ):
            yield conn

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One connection for several transactions: temporary tables last from one to the next."""
        with self._reaching(), self.engine.connect() as conn:
            yield Session(conn)

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """As ``read``, and every statement sees the ledger as the first one did."""
        with self.read() as conn:
            if not self.sqlite:
                conn.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
            yield conn

    @contextmanager
    def statements(self) -> Iterator[Connection]:
        """Each statement is a transaction of its own, for what PostgreSQL refuses to do inside one."""
        with self._reaching(), self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            yield conn

    def close(self) -> None:
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Say plainly that the database is out of reach; statements and parameters stay out of the message."""
        try:
            yield
        except (OperationalError, InterfaceError) as error:
            raise LedgerUnavailable(
                f"ledger {self.place}: {_reason(error)}; no call is made without it. "
                "Check that the database runs and that [ai] ledger_conn_id is right"
            ) from None
        except (IntegrityError, DataError) as error:
            kind = type(error.orig).__name__  # what the driver says beyond it holds the row
            raise LedgerError(f"ledger {self.place}: it refuses a row ({kind}); nothing of it was written") from None
        except DBAPIError as error:
            if error.connection_invalidated:
                raise LedgerUnavailable(f"ledger {self.place}: the connection was lost") from None
            raise

    def _ensure_schema(self) -> None:
        months = list(months_from(datetime.now(UTC), MONTHS_AHEAD + 1))
        with self.read() as conn:
            if _read_version(conn) == HEAD and not missing_months(conn, months):
                return
        with self._migration_lock() as conn:
            found = _read_version(conn)
            if found is not None and found > HEAD:
                raise LedgerError(f"ledger {self.place}: its schema {found} is newer than this code ({HEAD}); upgrade")
            if found != HEAD:
                migrate(conn, "head")
            make_months(conn, months)

    @contextmanager
    def _migration_lock(self) -> Iterator[Connection]:
        """One process migrates; the others wait for it."""
        with self.write() as conn:
            if not self.sqlite:
                conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            yield conn


class Session:
    """Transactions of one connection, one after the other."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def write(self) -> AbstractContextManager[Connection]:
        """One transaction that is durable when the block ends."""
        return self._begin(read=False)

    def read(self) -> AbstractContextManager[Connection]:
        """One transaction that writes to nothing but temporary tables: on SQLite it waits for no writer."""
        return self._begin(read=True)

    @contextmanager
    def _begin(self, *, read: bool) -> Iterator[Connection]:
        with self._conn.execution_options(**{_READ: read}).begin():
            yield self._conn


def migrate(conn: Connection, target: str) -> None:
    """Move the schema to revision ``target`` (``head``, ``base`` or a number) inside the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = conn
    if target == "base" or (target != "head" and target < (_read_version(conn) or "")):
        command.downgrade(config, target)
    else:
        command.upgrade(config, target)
    forget_months(conn)


def _read_version(conn: Connection) -> str | None:
    if not conn.dialect.has_table(conn, "ai_ledger_version"):
        return None
    return conn.execute(text("SELECT version_num FROM ai_ledger_version")).scalar()


def _reason(error: DBAPIError) -> str:
    """The driver's own first line: server and cause, never data."""
    lines = str(error.orig).strip().splitlines() if error.orig else []
    return lines[0] if lines else error.__class__.__name__


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(url, parsed.database)
    if parsed.get_backend_name() == "postgresql":
        return create_engine(
            url,
            pool_size=4,
            max_overflow=4,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={"connect_timeout": 10},
        )
    raise LedgerError(f"ledger: {parsed.get_backend_name()} is not supported; expected PostgreSQL or SQLite")


def _sqlite_engine(url: str, database: str | None) -> Engine:
    if not database or database == ":memory:":
        raise LedgerError("ledger: an in-memory database would lose money; expected a file")
    folder = Path(database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(database, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise LedgerUnavailable(f"ledger {database}: {error.strerror}; [ai] home must be a writable folder") from None
    engine = create_engine(
        url,
        poolclass=QueuePool,
        hide_parameters=True,
        connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        connection.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _begin(conn: Connection) -> None:
        conn.exec_driver_sql("BEGIN" if conn.get_execution_options().get(_READ) else "BEGIN IMMEDIATE")

    return engine


def insert_ignore(conn: Connection, table: Table) -> Any:
    """``INSERT … ON CONFLICT DO NOTHING`` in the connection's dialect."""
    return _ignoring(conn.dialect.name, table)


def upsert_adding(conn: Connection, table: Table, columns: Sequence[str]) -> Any:
    """An insert that adds ``columns`` to the row that is already there."""
    return _adding(conn.dialect.name, table, tuple(columns))


# Made once for each table: to build such a statement takes longer than to run it.


@lru_cache(maxsize=32)
def _ignoring(dialect: str, table: Table) -> Any:
    return _dialect_insert(dialect)(table).on_conflict_do_nothing()


@lru_cache(maxsize=32)
def _adding(dialect: str, table: Table, columns: tuple[str, ...]) -> Any:
    statement = _dialect_insert(dialect)(table)
    keys = [column.name for column in table.primary_key]
    added = {name: table.c[name] + statement.excluded[name] for name in columns}
    return statement.on_conflict_do_update(index_elements=keys, set_=added)


def _dialect_insert(dialect: str) -> Any:
    if dialect == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        return sqlite_insert
    from sqlalchemy.dialects.postgresql import insert as postgresql_insert

    return postgresql_insert
