"""Months of ``llm_requests``: on PostgreSQL each is a partition, made ahead of its first row.

There is no default partition: it would keep a month from being detached while others write. So a partition for the
present month and the next ones is made whenever a ledger is opened, and by maintenance. A row of any other month
makes its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from sqlalchemy import Connection, text

MONTHS_AHEAD = 3
"""Made when a ledger is opened, so that no writer has to."""


def month_name(month: datetime) -> str:
    """Name of the partition that holds the month of ``month`` (UTC)."""
    return f"llm_requests_{month.astimezone(UTC):%Y_%m}"


def month_of(moment: datetime) -> datetime:
    """The first moment (UTC) of the month that ``moment`` (aware) is in."""
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def months_from(now: datetime, count: int) -> Iterator[datetime]:
    """The first moments of ``count`` months (UTC), that of ``now`` (aware) first."""
    first = month_of(now)
    for _ in range(count):
        yield first
        first = next_month(first)


def next_month(first: datetime) -> datetime:
    """The first moment of the month after the one that begins at ``first``."""
    return first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)


def missing_months(conn: Connection, months: Iterable[datetime]) -> list[datetime]:
    """Those of ``months`` (first moments) that have no partition. None on SQLite."""
    if conn.dialect.name != "postgresql":
        return []
    known: set[str] = conn.info.setdefault("months", set())  # of this connection; a partition in use is not dropped
    wanted = {name: month for month in months if (name := month_name(month)) not in known}
    if not wanted:
        return []
    there = conn.execute(
        text("SELECT relname FROM pg_class WHERE relname = ANY(:names) AND relispartition"), {"names": list(wanted)}
    )
    known |= set(there.scalars())
    return [month for name, month in wanted.items() if name not in known]


def make_months(conn: Connection, months: Iterable[datetime]) -> None:
    """Make the partitions of these months that are not there."""
    for month in missing_months(conn, months):
        conn.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {month_name(month)} PARTITION OF llm_requests "
                f"FOR VALUES FROM ('{month.isoformat()}') TO ('{next_month(month).isoformat()}')"
            )
        )
