"""The ledger database: connections, transactions, and its schema's version.

SQLite runs in WAL with ``synchronous=FULL``: a commit survives the loss of power, as it does on PostgreSQL. Writing
transactions begin ``IMMEDIATE``, so that a check and the write after it are one step in every process.

On PostgreSQL nothing outlives its transaction in the session (no prepared statements, no session's locks or settings):
behind a pooler the next transaction may run in another session.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import URL, Connection, Engine, ExceptionContext, MetaData, Table, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from airflow_ai_provider.core.errors import LedgerError, LedgerUnavailable
from airflow_ai_provider.core.ledger.database_errors import LedgerClock, failure_of
from airflow_ai_provider.core.ledger.maintenance.partitions import (
    MONTHS_AHEAD,
    forget_months,
    make_months,
    missing_months,
    months_from,
)
from airflow_ai_provider.core.sqlite import BUSY_SECONDS, use_write_ahead_log

HEAD = "0005"
"""The migration this code is written for."""
_READ = "ledger_read"
_MIGRATION_LOCK = 0x6169_6C65_6467  # any constant shared by all processes; spells "ailedg"
PATIENCE_SECONDS = 120.0
"""How long a write waits for a database that went away; a failover of a managed server takes one to two minutes."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
"""libpq: a server that vanished without a word is noticed within a minute. Milliseconds in the last, else seconds."""

T = TypeVar("T")


class Ledger:
    """A ledger database that is reachable and of the right schema."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._clock = LedgerClock()

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

    def now(self) -> datetime:
        """The ledger's time (UTC): the database's on PostgreSQL, the host's on SQLite."""
        return self._clock.now()

    def of_host(self, moment: datetime) -> datetime:
        """The ledger's time when this host's clock showed ``moment``."""
        return self._clock.of_host(moment)

    def read_clock(self, conn: Connection) -> None:
        """Set ``now`` by the database's clock. Call it every few seconds while the ledger is open."""
        self._clock.read(conn)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that is durable when the block ends."""
        with self._connection() as conn, conn.begin():
            yield conn

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that only reads: on SQLite it waits for no writer."""
        with self._connection(**{_READ: True}) as conn, conn.begin():
            yield conn

    def run(
        self,
        work: Callable[[Connection, bool], T],
        *,
        read: bool = False,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> T:
        """One transaction of ``work``, tried again while the database is away and ``patience_seconds`` last.

        ``work`` gets the connection, and whether an earlier try may have been committed without a reply. Raises
        ``LedgerUnavailable`` in the end, and at once whatever else ``work`` raises.
        """
        deadline = time.monotonic() + patience_seconds
        pause, again = _FIRST_PAUSE, False
        while True:
            try:
                with self.read() if read else self.write() as conn:
                    return work(conn, again)
            except LedgerUnavailable:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause, again = min(pause * 2, _LONGEST_PAUSE), True

    @contextmanager
    def scratch(self) -> Iterator[Scratch]:
        """One connection for temporary tables, which last until the block ends.

        On PostgreSQL that is one transaction, since behind a pooler the next may run in another session, without them.
        It is rolled back in the end, and takes no snapshot: each of its statements sees what was committed before.
        """
        with self._connection() as conn:
            if self.sqlite:
                yield Scratch(self, conn)
                return
            with conn.begin() as transaction:
                conn.execute(text("SET TRANSACTION ISOLATION LEVEL READ COMMITTED"))
                conn.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                yield Scratch(self, conn)
                transaction.rollback()

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
        with self._connection(isolation_level="AUTOCOMMIT") as conn:
            yield conn

    def close(self) -> None:
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _connection(self, **options: Any) -> Iterator[Connection]:
        """A connection of the pool. The database's errors leave as the ledger's, without statement or row.

        Not chained: the driver's text may quote a row (its DETAIL and CONTEXT do).
        """
        try:
            with self.engine.connect().execution_options(**options) as conn:
                try:
                    yield conn
                except DBAPIError as error:
                    if failure_of(error).drops:
                        conn.invalidate()  # of a COPY, the engine does not see the error
                    raise
        except DBAPIError as error:
            raise self._translated(error) from None
        except PoolTimeout:
            raise LedgerUnavailable(
                f"ledger {self.place}: every connection of this process has been in use for too long; no call is made "
                "without it"
            ) from None

    def _translated(self, error: DBAPIError) -> LedgerUnavailable | LedgerError:
        failure = failure_of(error)
        advice = f". {failure.advice}" if failure.advice else ""
        if failure.waits:
            return LedgerUnavailable(f"ledger {self.place}: {failure.reason}; no call is made without it{advice}")
        return LedgerError(f"ledger {self.place}: {failure.reason}{advice}")

    def _ensure_schema(self) -> None:
        with self.read() as conn:
            self.read_clock(conn)
            months = list(months_from(self.now(), MONTHS_AHEAD + 1))
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
                for limit in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
                    conn.execute(text(f"SET LOCAL {limit} = 0"))  # a migration takes as long as it takes
                conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            yield conn


class Scratch:
    """Temporary tables, and transactions on the ledger beside them."""

    def __init__(self, ledger: Ledger, tables: Connection) -> None:
        self._ledger = ledger
        self.tables = tables
        """The connection that sees the temporary tables."""

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction on the ledger that is durable when the block ends."""
        if self._ledger.sqlite:
            with self._begin(read=False):
                yield self.tables
        else:
            with self._ledger.write() as conn:
                yield conn

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that writes to nothing but temporary tables: on SQLite it waits for no writer."""
        if self._ledger.sqlite:
            with self._begin(read=True):
                yield self.tables
        else:
            yield self.tables

    def clear(self, tables: MetaData) -> None:
        """Drop temporary tables. PostgreSQL's go with their transaction."""
        if self._ledger.sqlite:
            with self._begin(read=True):
                tables.drop_all(self.tables)

    @contextmanager
    def _begin(self, *, read: bool) -> Iterator[None]:
        with self.tables.execution_options(**{_READ: read}).begin():
            yield


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


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(url, parsed.database)
    if parsed.get_backend_name() == "postgresql":
        engine = create_engine(
            url,
            pool_size=4,
            max_overflow=4,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args=_connect_args(parsed),
        )
        event.listen(engine, "handle_error", _drop_what_is_of_no_use)
        return engine
    raise LedgerError(f"ledger: {parsed.get_backend_name()} is not supported; expected PostgreSQL or SQLite")


def _drop_what_is_of_no_use(context: ExceptionContext) -> None:
    """Let the engine replace this connection and those opened before, which lead to the same server."""
    error = context.sqlalchemy_exception
    if isinstance(error, DBAPIError) and failure_of(error).drops:
        context.is_disconnect = True


def _connect_args(url: URL) -> dict[str, Any]:
    """What psycopg gets beyond the URL, whose own parameters go before."""
    usual: dict[str, Any] = {"connect_timeout": 10, **_KEEPALIVE}
    own = {name: value for name, value in usual.items() if name not in url.query}
    return {**own, "prepare_threshold": None}  # a prepared statement belongs to a session, which a pooler changes


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
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
        use_write_ahead_log(connection)
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
