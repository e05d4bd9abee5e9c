"""The ledger's time: one clock for every process, whatever the clocks of their hosts say.

Leases, periods of budgets and days of the ledger are compared between processes. So all of them take the time of the
database, read now and then and carried on by this host's monotonic clock. On SQLite, which lives on one host, it is
the host's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, text

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
