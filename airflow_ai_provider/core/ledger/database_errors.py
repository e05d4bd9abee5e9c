"""The ledger's clock, and what its database's errors mean.

The ledger's time: one clock for every process, whatever the clocks of their hosts say.

Leases, periods of budgets and days of the ledger are compared between processes. So all of them take the time of the
database, read now and then and carried on by this host's monotonic clock. On SQLite, which lives on one host, it is
the host's.

What a database error means for the ledger: wait and try again, or stop. Pure; the one place that decides it.

By SQLSTATE (PostgreSQL manual, appendix A) and SQLite's result codes. PgBouncer reports its own errors as ``08P01``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

log = logging.getLogger(__name__)

SKEW_SECONDS = 5.0
"""Difference between a host's clock and the database's from which on the log says so."""


def _host_now() -> datetime:
    return datetime.now(UTC)


class LedgerClock:
    """Tells the database's time without asking it each time. ``read`` it first, and again every few seconds."""

    def __init__(self, host: Callable[[], datetime] = _host_now, steady: Callable[[], float] = time.monotonic) -> None:
        """``host`` is the host's time (aware), ``steady`` seconds that no setting of a clock moves."""
        self._host = host
        self._steady = steady
        self._read: tuple[datetime, float] | None = None
        self._warned = False

    def read(self, conn: Connection) -> None:
        """Take the time from the database. Nothing happens on SQLite."""
        if conn.dialect.name != "postgresql":
            return
        before = self._steady()
        moment: datetime = conn.execute(text("SELECT clock_timestamp()")).scalar_one()
        self._read = (moment.astimezone(UTC), (before + self._steady()) / 2)
        self._tell_skew()

    def now(self) -> datetime:
        """The time (UTC), within the time that ``read`` took."""
        if self._read is None:
            return self._host()
        moment, at = self._read
        return moment + timedelta(seconds=self._steady() - at)

    def of_host(self, moment: datetime) -> datetime:
        """The time (UTC) when this host's clock showed ``moment``."""
        return moment + (self.now() - self._host())

    def _tell_skew(self) -> None:
        skew = (self._host() - self.now()).total_seconds()
        if abs(skew) > SKEW_SECONDS and not self._warned:
            self._warned = True
            log.warning(
                "this host's clock is %.0f s %s the ledger database's: budgets, holds and the audit trail go by the "
                "database's; check time synchronisation (NTP), on which TLS and the stores' signatures depend",
                abs(skew),
                "ahead of" if skew > 0 else "behind",
            )


_CHECK_SERVER = "Check that the database runs and that [ai] ledger_conn_id is right"
_CHECK_PRIMARY = "Check that [ai] ledger_conn_id leads to the primary"
_CHECK_LIMITS = "Check the time limits (statement_timeout, lock_timeout and the like) of the ledger's role"
_CHECK_ROOM = "Give the server more connections, memory or disk, or put a pooler in front of it"
_CHECK_SCHEMA = "Check the rights of its role, and that its tables are those of this version"
_CHECK_FILE = "Check the disk and the rights of the file and its folder"

_SQLITE_WAITS = frozenset({5, 6, 7, 8, 9, 10, 13, 14, 15})
"""BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR, FULL, CANTOPEN, PROTOCOL."""
_SQLITE_DAMAGED = frozenset({11, 26})
"""CORRUPT, NOTADB."""
_SQLITE_ERROR = 1
"""Of the statement and the schema, never of a row; so is PostgreSQL's class 42."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What came of a statement."""

    waits: bool
    """The database may take the same again in a moment."""
    drops: bool
    """Connections opened before are of no use: their server is gone, or no longer the primary."""
    reason: str
    """What the driver says, without rows or statements."""
    advice: str = ""


_WAITING: tuple[tuple[str, bool, str], ...] = (
    ("25006", True, _CHECK_PRIMARY),  # read-only transaction: a standby, or a primary that was demoted
    ("25P0", True, _CHECK_LIMITS),  # idle in transaction, or transaction, for too long; the server closes
    ("57014", False, _CHECK_LIMITS),  # statement_timeout, or cancelled by an administrator
    ("55P03", False, _CHECK_LIMITS),  # lock_timeout
    ("57P", True, _CHECK_SERVER),  # shutdown, crash, starting up, database dropped, idle session
    ("40", False, _CHECK_SERVER),  # serialization failure, deadlock, completion unknown
    ("53", False, _CHECK_ROOM),  # too many connections, out of memory, disk full
    ("58", True, _CHECK_SERVER),  # I/O error of the server
    ("08", True, _CHECK_SERVER),  # the connection, and everything PgBouncer says of itself
)
"""SQLSTATE or its beginning, the more specific first; whether connections are dropped; what to check."""


def failure_of(error: DBAPIError) -> Failure:
    """What ``error`` means: by SQLSTATE, by SQLite's result code, or else by the driver's kind of error."""
    state, code = getattr(error.orig, "sqlstate", None), getattr(error.orig, "sqlite_errorcode", None)
    if state:
        return _of_postgres(state, error)
    if code is not None:
        return _of_sqlite(code & 0xFF, error)
    lost = error.connection_invalidated or isinstance(error, (OperationalError, InterfaceError))
    return Failure(lost, lost, first_line(error), _CHECK_SERVER) if lost else _refused(error)


def first_line(error: DBAPIError) -> str:
    """The driver's own first line: server and cause. Later lines may quote a row."""
    lines = str(error.orig).strip().splitlines() if error.orig else []
    return lines[0] if lines else error.__class__.__name__


def _of_postgres(state: str, error: DBAPIError) -> Failure:
    reason = first_line(error)
    if "statement pooling" in reason:
        return Failure(
            False, True, reason, "The ledger needs transactions: set pool_mode = transaction (or session) in PgBouncer"
        )
    for beginning, drops, advice in _WAITING:
        if state.startswith(beginning):
            return Failure(True, drops, f"{reason} (SQLSTATE {state})", advice)
    if state.startswith("42"):
        return Failure(False, False, f"{reason} (SQLSTATE {state})", _CHECK_SCHEMA)
    return _refused(error)


def _of_sqlite(code: int, error: DBAPIError) -> Failure:
    if code in _SQLITE_WAITS:
        return Failure(True, False, first_line(error), _CHECK_FILE)
    if code in _SQLITE_DAMAGED:
        return Failure(False, True, first_line(error), "Restore the file from a backup")
    if code == _SQLITE_ERROR:
        return Failure(False, False, first_line(error), _CHECK_SCHEMA)
    return _refused(error)


def _refused(error: DBAPIError) -> Failure:
    """By the name of the error alone: what the driver says beyond it may hold the row."""
    kind = type(error.orig).__name__ if error.orig else type(error).__name__
    return Failure(False, False, f"it refuses a row ({kind}); nothing of it was written")
