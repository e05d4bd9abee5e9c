"""What goes wrong in PostgreSQL under the journal spoils nobody's money, and says nothing of anybody's rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import Connection, func, select, text
from support.ledger import TASK, attempt, period, settled

from airflow_ai_provider.core.ledger.attempts.group_commit import Journal
from airflow_ai_provider.core.ledger.budgets.holds import take_hold
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.schema import llm_open_attempts, llm_requests
from airflow_ai_provider.errors import LedgerError, LedgerUnavailable

COPYING = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY%' AND wait_event_type = 'Lock'"


class Slow(Ledger):
    """Loses the connection of a transaction, when it is told to, while the server is still committing it."""

    loses = False
    late: Future[None]
    thread = ThreadPoolExecutor(1)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        if not self.loses:
            with super().write() as conn:
                yield conn
            return
        conn = self.engine.connect()
        transaction = conn.begin()
        yield conn

        def commit() -> None:
            try:
                wait_for_copy(self)
                transaction.commit()
            finally:
                conn.close()

        self.loses, self.late = False, self.thread.submit(commit)
        raise LedgerUnavailable("the connection was lost")


def wait_for_copy(ledger: Ledger) -> int:
    """The server's process whose COPY waits for a lock."""
    while True:
        with ledger.read() as conn:
            if (pid := conn.execute(text(COPYING)).scalar()) is not None:
                return int(pid)
        time.sleep(0.02)


@pytest.fixture
async def books(migrated_postgres_url: str) -> AsyncIterator[tuple[Slow, Journal]]:
    with Slow.open(migrated_postgres_url) as ledger:
        with ledger.write() as conn:
            take_hold(
                conn, hold_id="h", owner="me", task=TASK, periods=[period(1000)], amounts=[100], now=datetime.now(UTC)
            )
        journal = Journal(ledger, "me")
        yield ledger, journal
        await journal.close()


@pytest.mark.parametrize("end", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_a_copy_that_is_broken_off_is_tried_again(books: tuple[Slow, Journal], end: str) -> None:
    ledger, journal = books
    with ledger.engine.connect() as other:
        other.execute(text("LOCK TABLE llm_open_attempts IN ACCESS EXCLUSIVE MODE"))
        asked = asyncio.create_task(journal.open(attempt("h", 10)))
        pid = await asyncio.to_thread(wait_for_copy, ledger)
        other.execute(text(f"SELECT {end}(:pid)"), {"pid": pid})
    await asked
    assert count(ledger, llm_open_attempts) == 1


async def test_a_commit_that_ends_while_it_is_replayed_is_counted_once(books: tuple[Slow, Journal]) -> None:
    ledger, journal = books
    ledger.loses = True
    reused = replace(settled(attempt("none", 0), 0, status="reused"), created_at=datetime.now(UTC))
    await journal.settle([reused])
    ledger.late.result(10)
    assert count(ledger, llm_requests) == 1


async def test_a_row_that_the_ledger_cannot_keep_spoils_no_other_and_is_not_repeated(
    books: tuple[Slow, Journal],
) -> None:
    ledger, journal = books
    good, bad = attempt("h", 10), attempt("h", 10, "the key of ms. doe")
    bad = replace(bad, request=replace(bad.request, tier="x" * 21))
    outcomes = await asyncio.gather(journal.open(good), journal.open(bad), return_exceptions=True)
    assert outcomes[0] is None
    assert isinstance(outcomes[1], LedgerError)
    assert "doe" not in str(outcomes[1])
    assert opened(ledger) == [good.attempt_id]


def opened(ledger: Ledger) -> list[str]:
    with ledger.read() as conn:
        return list(conn.execute(select(llm_open_attempts.c.attempt_id)).scalars())


def count(ledger: Ledger, table: object) -> int:
    with ledger.read() as conn:
        return conn.execute(select(func.count()).select_from(table)).scalar_one()  # type: ignore[arg-type]
