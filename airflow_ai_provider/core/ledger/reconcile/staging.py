"""An invoice beside the ledger, in temporary tables: the database does the matching, and memory does not grow.

``reconcile_lines`` holds the invoice's lines, ``reconcile_bills`` one row per attempt with the sum of its lines.
A line belongs to the attempt whose id it has, else to the one whose vendor's id it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, time, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Date,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    distinct,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    union,
    update,
)

from airflow_ai_provider.core.ledger.database import Scratch
from airflow_ai_provider.core.ledger.reconcile.invoices import InvoiceLine
from airflow_ai_provider.core.ledger.schema import llm_adjustments, llm_open_attempts, llm_requests

TOKENS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens")
_CHUNK = 5000
_DAY = timedelta(days=1)
_metadata = MetaData()


def _tokens() -> list[Column[int]]:
    return [Column(name, BigInteger) for name in TOKENS]


lines = Table(
    "reconcile_lines",
    _metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("attempt_id", String(100)),
    Column("vendor_request_id", String(100)),
    Column("day", Date, nullable=False),
    Column("model", Text, nullable=False),
    *_tokens(),
    Column("cost_nano", BigInteger, nullable=False),
    prefixes=["TEMPORARY"],
)
bills = Table(
    "reconcile_bills",
    _metadata,
    Column("attempt_id", String(100), primary_key=True),
    Column("lines", Integer, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("vendor_request_id", String(100)),
    Column("day", Date, nullable=False),
    Column("model", Text, nullable=False),
    *_tokens(),
    Column("cost_nano", BigInteger, nullable=False),
    prefixes=["TEMPORARY"],
)
_found = Table(
    "reconcile_found",
    _metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("attempt_id", String(100), nullable=False),
    Column("attempts", Integer, nullable=False),
    prefixes=["TEMPORARY"],
)


@contextmanager
def staged(scratch: Scratch, invoice: Iterable[InvoiceLine], progress: Callable[[str, int], None]) -> Iterator[int]:
    """Read the whole invoice into the temporary tables, which are gone when the block ends. Gives its lines' number.

    Raises what reading the invoice raises; the ledger was not touched then.
    """
    scratch.clear(_metadata)  # of a run that could not clean up
    with scratch.read() as conn:
        _metadata.create_all(conn)
    try:
        number = 0
        rows = ({"seq": seq, **_row(line)} for seq, line in enumerate(invoice))
        while chunk := list(islice(rows, _CHUNK)):
            with scratch.read() as conn:
                conn.execute(insert(lines), chunk)
            number += len(chunk)
            progress("read", number)
        with scratch.read() as conn:
            _name_attempts(conn)
            _sum_up(conn)
        yield number
    finally:
        scratch.clear(_metadata)


def _row(line: InvoiceLine) -> dict[str, Any]:
    return {
        "number": line.number,
        "attempt_id": line.attempt_id,
        "vendor_request_id": line.vendor_request_id,
        "day": line.day,
        "model": line.model,
        **{name: getattr(line, name) for name in TOKENS},
        "cost_nano": line.cost_nano,
    }


def _name_attempts(conn: Connection) -> None:
    """Give lines the attempt of their vendor's id, where it names one and they name none that the ledger has."""
    known = exists().where(llm_requests.c.attempt_id == lines.c.attempt_id)
    open_now = exists().where(llm_open_attempts.c.attempt_id == lines.c.attempt_id)
    nameless = [
        lines.c.vendor_request_id.is_not(None),
        or_(lines.c.attempt_id.is_(None), ~(known | open_now)),
    ]
    first, last = conn.execute(select(func.min(lines.c.day), func.max(lines.c.day)).where(*nameless)).one()
    if first is None:
        return
    midnight = datetime.combine(first, time(0), UTC)
    names = union(
        select(llm_requests.c.attempt_id, llm_requests.c.vendor_request_id).where(
            llm_requests.c.created_at >= midnight - _DAY,
            llm_requests.c.created_at < midnight + (last - first) + 2 * _DAY,
            llm_requests.c.vendor_request_id.is_not(None),
        ),
        select(llm_adjustments.c.attempt_id, llm_adjustments.c.vendor_request_id).where(
            llm_adjustments.c.vendor_request_id.is_not(None)
        ),
    ).subquery("names")
    attempts = func.count(distinct(names.c.attempt_id))
    matches = (
        select(lines.c.seq, func.min(names.c.attempt_id), attempts)
        .join(names, names.c.vendor_request_id == lines.c.vendor_request_id)
        .where(*nameless)
        .group_by(lines.c.seq)
    )
    conn.execute(insert(_found).from_select(["seq", "attempt_id", "attempts"], matches))
    one = select(_found.c.attempt_id).where(_found.c.seq == lines.c.seq, _found.c.attempts == 1)
    conn.execute(update(lines).where(exists(one)).values(attempt_id=one.scalar_subquery()))
    conn.execute(update(lines).where(lines.c.seq.in_(_ambiguous_seqs())).values(attempt_id=None))


def _ambiguous_seqs() -> Any:
    return select(_found.c.seq).where(_found.c.attempts > 1)


def ambiguous(conn: Connection) -> list[Any]:
    """Lines whose vendor's id names several attempts of the ledger: they count for none."""
    return list(conn.execute(select(lines).where(lines.c.seq.in_(_ambiguous_seqs())).order_by(lines.c.seq)))


def nameless(conn: Connection) -> Iterator[Any]:
    """Lines that no attempt id came with and whose vendor's id the ledger does not know."""
    rows = select(lines).where(lines.c.attempt_id.is_(None), lines.c.seq.not_in(_ambiguous_seqs()))
    yield from conn.execute(rows.order_by(lines.c.seq)).yield_per(_CHUNK)


def _sum_up(conn: Connection) -> None:
    columns = ["attempt_id", "lines", "number", "vendor_request_id", "day", "model", *TOKENS, "cost_nano"]
    by_attempt = (
        select(
            lines.c.attempt_id,
            func.count(),
            func.min(lines.c.number),
            func.min(lines.c.vendor_request_id),
            func.min(lines.c.day),
            func.min(lines.c.model),
            *(func.sum(lines.c[name]) for name in (*TOKENS, "cost_nano")),
        )
        .where(lines.c.attempt_id.is_not(None))
        .group_by(lines.c.attempt_id)
    )
    conn.execute(insert(bills).from_select(columns, by_attempt))
    if conn.dialect.name == "postgresql":  # nothing else tells its planner how large they are
        conn.execute(text("ANALYZE reconcile_bills"))
