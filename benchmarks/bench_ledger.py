"""What the ledger costs on PostgreSQL: CPU per call, rows per second, and how long a call waits for its commit.

Prints three tables. CPU is this process' own. The peers are what a hand-rolled script does, on the same server in the
same run: one INSERT a row, each with its own commit, and psycopg's ``executemany``.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.postgres import postgres_server

from airflow_ai_provider.core.identity import attempt_id
from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, Request, Settled, open_attempts, settle
from airflow_ai_provider.core.ledger.attempts.group_commit import Journal
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef, close_holds, take_hold
from airflow_ai_provider.core.ledger.budgets.limits import BudgetPeriod
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.ledger.database import Ledger

_ROWS = 100_000
_BATCH = 256
_BATCHES = 60
_GROUP = 2_000
_TASK = TaskRef("support", "bench", "run-1", "answer", -1, 1)
_PERIODS = [
    BudgetPeriod(f"{name}@total", name, "total", "total", 10**18) for name in ("team=support/total", "org/total")
]


def main() -> None:
    with postgres_server() as server, Ledger.open(server.create_database("bench")) as ledger:
        _calls(ledger)
        _bulk(ledger)
        asyncio.run(_waits(ledger))


def _calls(ledger: Ledger) -> None:
    """Hold, open, settle and close, a batch at a time."""
    spent = dict.fromkeys(("hold", "open", "settle", "close"), 0.0)
    for number in range(_BATCHES + 5):
        if number == 5:  # the first ones compile statements and open connections
            spent = dict.fromkeys(spent, 0.0)
        hold_id = uuid.uuid4().hex
        attempts = [_attempt(hold_id, row) for row in range(_BATCH)]
        settled = [_settled(attempt) for attempt in attempts]
        now = datetime.now(UTC)
        amounts = [1000] * _BATCH
        with _cpu(spent, "hold"), ledger.write() as conn:
            take_hold(conn, hold_id=hold_id, owner="me", task=_TASK, periods=_PERIODS, amounts=amounts, now=now)
        with _cpu(spent, "open"), ledger.write() as conn:
            open_attempts(conn, attempts)
        with _cpu(spent, "settle"), ledger.write() as conn:
            settle(conn, settled, now)
        with _cpu(spent, "close"), ledger.write() as conn:
            close_holds(conn, [hold_id], now)
    calls = _BATCH * _BATCHES
    print(f"{f'per call, {_BATCH} a batch':<40}{'CPU ms':>10}")
    for name, seconds in spent.items():
        print(f"{name:<40}{1000 * seconds / calls:>10.4f}")
    print(f"{'open, settle and rollup':<40}{1000 * (spent['open'] + spent['settle']) / calls:>10.4f}")


def _bulk(ledger: Ledger) -> None:
    rows = [_settled(_attempt("none", number), status="reused") for number in range(_ROWS)]

    def write(replay: bool) -> Callable[[], None]:
        def work() -> None:
            for start in range(0, len(rows), _GROUP):
                with ledger.write() as conn:
                    settle(conn, rows[start : start + _GROUP], datetime.now(UTC), replay=replay)

        return work

    rates = {
        "settled rows, first time": _rate(write(False)),
        "the same again, a replay": _rate(write(True)),
        "psycopg executemany, 2,000 a commit": _rate(lambda: _executemany(ledger)),
        "one INSERT and commit a row": _rate(lambda: _singly(ledger), rows=2_000),
    }
    print(f"\n{f'{_ROWS:,} rows':<40}{'rows/s':>10}")
    for name, rate in rates.items():
        print(f"{name:<40}{rate:>10,.0f}")


async def _waits(ledger: Ledger) -> None:
    """How long calls wait for their attempt to be durable at 1,000 calls a second, beside a commit of one row alone."""
    with ledger.write() as conn:
        amounts = [1000] * 100_000
        now = datetime.now(UTC)
        take_hold(conn, hold_id="waits", owner="me", task=_TASK, periods=_PERIODS, amounts=amounts, now=now)
    alone = sorted(_timed(lambda: _one_row(ledger)) for _ in range(300))
    journal, pauses = Journal(ledger, "me"), random.Random(7)
    waits: list[float] = []

    async def call(number: int) -> None:
        for _ in range(20):
            await asyncio.sleep(pauses.uniform(0.1, 0.3))  # as long as a vendor takes
            attempt = _attempt("waits", number)
            started = time.perf_counter()
            await journal.open(attempt)
            waits.append(time.perf_counter() - started)
            await journal.settle([_settled(attempt)])

    await asyncio.gather(*map(call, range(200)))
    await journal.close()
    print(f"\n{'wait for a commit, ms':<40}{'p50':>10}{'p99':>10}")
    for name, times in (("group commit, 1,000 calls a second", sorted(waits)), ("a commit of one row alone", alone)):
        print(f"{name:<40}{1000 * statistics.median(times):>10.2f}{1000 * times[int(len(times) * 0.99)]:>10.2f}")


def _attempt(hold_id: str, row: int) -> OpenAttempt:
    names = ("support", "simple", "small", "openai/gpt-4o-mini", "openai", "litellm-1")
    request = Request(uuid.uuid4().hex, _TASK, f"row-{row}", *names, prompt_bytes=900)
    return OpenAttempt(attempt_id(datetime.now(UTC)), hold_id, 1000, datetime.now(UTC), request)


def _settled(attempt: OpenAttempt, status: str = "ok") -> Settled:
    usage = Usage(200, 40) if status == "ok" else Usage(0, 0)
    cost = 500 if status == "ok" else 0
    moment = datetime.now(UTC)
    return Settled(attempt.attempt_id, moment, attempt.request, status, usage, cost_nano=cost, latency_ms=300)  # type: ignore[arg-type]


def _executemany(ledger: Ledger) -> None:
    _peer_table(ledger)
    values = [(uuid.uuid4().hex, "support", "bench", "answer", f"row-{n}", 200, 40, 500) for n in range(_ROWS)]
    with ledger.engine.connect() as conn:
        cursor = conn.connection.cursor()
        for start in range(0, _ROWS, _GROUP):
            cursor.executemany("INSERT INTO peer VALUES (%s,%s,%s,%s,%s,%s,%s,%s)", values[start : start + _GROUP])
            conn.connection.commit()


def _singly(ledger: Ledger) -> None:
    _peer_table(ledger)
    with ledger.engine.connect() as conn:
        cursor = conn.connection.cursor()
        for number in range(2_000):
            row = (uuid.uuid4().hex, "support", "bench", "answer", f"row-{number}", 200, 40, 500)
            cursor.execute("INSERT INTO peer VALUES (%s,%s,%s,%s,%s,%s,%s,%s)", row)
            conn.connection.commit()


def _one_row(ledger: Ledger) -> None:
    with ledger.write() as conn:
        conn.exec_driver_sql("INSERT INTO peer VALUES (%s,'','','','',0,0,0)", (uuid.uuid4().hex,))


def _peer_table(ledger: Ledger) -> None:
    with ledger.write() as conn:
        conn.exec_driver_sql("DROP TABLE IF EXISTS peer")
        conn.exec_driver_sql(
            "CREATE TABLE peer (id text PRIMARY KEY, team text, dag text, task text, key text, i bigint, o bigint,"
            " cost bigint)"
        )


def _rate(work: Callable[[], None], rows: int = _ROWS) -> float:
    return rows / _timed(work)


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class _cpu:
    """Adds the CPU seconds of a block to a sum."""

    def __init__(self, spent: dict[str, float], name: str) -> None:
        self._spent, self._name = spent, name

    def __enter__(self) -> None:
        self._started = time.process_time()

    def __exit__(self, *_: object) -> None:
        self._spent[self._name] += time.process_time() - self._started


if __name__ == "__main__":
    main()
