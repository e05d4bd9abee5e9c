"""Months of ``llm_requests``: on PostgreSQL each is a partition, made ahead of its first row.

There is no default partition: it would keep a month from being detached while others write. So a partition for the
present month and the next ones is made whenever a ledger is opened, and by maintenance. A row of any other month
makes its own. A partition is made as a table of its own and then attached, which waits for no reader and holds up no
writer; ``CREATE … PARTITION OF`` would wait for every query on the table to end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time

from sqlalchemy import Connection, func, select, text

from airflow_ai_provider.core.ledger.schema import llm_requests

MONTHS_AHEAD = 3
"""Made when a ledger is opened, so that no writer has to."""
_KNOWN = "months"
_MAKING = 0x6169_6D6F_6E74  # any constant shared by all processes; spells "aimont"
_CHILDREN = """
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass('llm_requests')
"""


def month_name(month: datetime) -> str:
    """Name of the partition that holds the month of ``month`` (UTC)."""
    return f"llm_requests_{month.astimezone(UTC):%Y_%m}"


def month_named(name: str) -> datetime:
    """The first moment of the month that a partition's name tells."""
    return datetime.strptime(name, "llm_requests_%Y_%m").replace(tzinfo=UTC)


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


def months_before(now: datetime, count: int) -> datetime:
    """The first moment of the month ``count`` months before that of ``now`` (aware)."""
    first = month_of(now)
    number = first.year * 12 + first.month - 1 - count
    return first.replace(year=number // 12, month=number % 12 + 1)


def midnight(day: date) -> datetime:
    """The first moment (UTC) of a day."""
    return datetime.combine(day, time.min, UTC)


def missing_months(conn: Connection, months: Iterable[datetime]) -> list[datetime]:
    """Those of ``months`` (first moments) that have no partition. None on SQLite."""
    if conn.dialect.name != "postgresql":
        return []
    known: set[str] = conn.info.setdefault(_KNOWN, set())  # of this connection; a partition in use is not dropped
    wanted = {name: month for month in months if (name := month_name(month)) not in known}
    if not wanted:
        return []
    known |= set(conn.execute(text(f"{_CHILDREN} AND c.relname = ANY(:names)"), {"names": list(wanted)}).scalars())
    return [month for name, month in wanted.items() if name not in known]


def make_months(conn: Connection, months: Iterable[datetime]) -> list[datetime]:
    """Make the partitions of these months that are not there; returns those that were made."""
    if not (missing := missing_months(conn, months)):
        return []
    conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MAKING})
    missing = missing_months(conn, missing)
    for month in missing:
        name, after = month_name(month), next_month(month)
        conn.execute(text(f"CREATE TABLE {name} (LIKE llm_requests INCLUDING ALL)"))
        conn.execute(
            text(
                f"ALTER TABLE llm_requests ATTACH PARTITION {name} "
                f"FOR VALUES FROM ('{month.isoformat()}') TO ('{after.isoformat()}')"
            )
        )
    return missing


def forget_months(conn: Connection) -> None:
    """Look again what months there are: the table was rebuilt."""
    conn.info.pop(_KNOWN, None)


def months_there(conn: Connection) -> list[datetime]:
    """Months that have a partition, on SQLite those that have rows; oldest first."""
    if conn.dialect.name == "postgresql":
        return sorted(map(month_named, conn.execute(text(_CHILDREN)).scalars()))
    months = []
    after = datetime.min
    created_at = llm_requests.c.created_at
    while first := conn.execute(select(func.min(created_at)).where(created_at >= after)).scalar():
        months.append(month_of(first.replace(tzinfo=UTC)))
        after = next_month(months[-1])
    return months


def first_kept(conn: Connection) -> datetime | None:
    """The first moment (of a month; on SQLite of a day) from which every row ever written is still there.

    ``None`` for a ledger without rows.
    """
    if conn.dialect.name == "postgresql":
        return next(iter(months_there(conn)), None)
    first = conn.execute(select(func.min(llm_requests.c.created_at))).scalar()
    return midnight(first.date()) if first else None


def leftover_months(conn: Connection) -> list[datetime]:
    """Months on PostgreSQL that were detached and not dropped, because maintenance was interrupted."""
    if conn.dialect.name != "postgresql":
        return []
    detached = conn.execute(
        text(
            "SELECT c.relname FROM pg_class c WHERE NOT c.relispartition AND c.relkind = 'r' "
            "AND c.relname ~ '^llm_requests_[0-9]{4}_[0-9]{2}$' "
            "AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('llm_requests'))"
        )
    )
    return sorted(map(month_named, detached.scalars()))


def detach_pending(conn: Connection, month: datetime) -> bool:
    """Whether a concurrent detach of this month was begun and not ended."""
    pending = text(f"{_CHILDREN} AND i.inhdetachpending AND c.relname = :name")
    return conn.execute(pending, {"name": month_name(month)}).first() is not None
