"""One clock for every process: the database's, carried on by a clock that nobody sets."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.database_errors import LedgerClock


@dataclass
class Host:
    """A host whose wall clock is off and whose monotonic clock starts anywhere."""

    off: timedelta
    steady: float = 1000.0

    def now(self) -> datetime:
        return datetime.now(UTC) + self.off

    def monotonic(self) -> float:
        return self.steady


@pytest.mark.parametrize("off", [timedelta(minutes=-10), timedelta(0), timedelta(minutes=10), timedelta(days=400)])
def test_the_time_is_the_databases_whatever_the_hosts_clock_says(
    migrated_postgres_url: str, off: timedelta, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(off)
    clock = LedgerClock(host.now, host.monotonic)
    with Ledger.open(migrated_postgres_url) as ledger, caplog.at_level(logging.WARNING, "airflow_ai_provider"):
        caplog.clear()
        for _ in range(2):
            with ledger.read() as conn:
                clock.read(conn)
        read = clock.now()
        with ledger.read() as conn:
            assert abs((clock.now() - ledger.now()).total_seconds()) < 5
    host.steady += 3600
    assert clock.now() - read == timedelta(hours=1), "carried on by the monotonic clock"
    host.off += timedelta(hours=5)
    assert clock.now() - read == timedelta(hours=1), "setting the host's clock moves nothing"
    assert clock.of_host(host.now()) - clock.now() < timedelta(seconds=1)
    assert len(caplog.records) == (1 if off else 0), "told once"


def test_sqlite_goes_by_its_host(ledger_url: str) -> None:
    host = Host(timedelta(minutes=10))
    clock = LedgerClock(host.now, host.monotonic)
    with Ledger.open(ledger_url) as ledger:
        with ledger.read() as conn:
            clock.read(conn)
        ahead = clock.now() - datetime.now(UTC) > timedelta(minutes=9)
        assert ahead == ledger.sqlite
