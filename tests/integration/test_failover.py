"""The ledger's server is demoted, turns read-only or cuts statements short: calls wait, and the books are right."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from support.map_jobs import Lab, questions, write_jsonl
from support.map_process import JobProcess
from support.postgres import PostgresServer, pgbouncer, postgres_server, standby

from airflow_ai_provider.core.administration.audit import seal_audit, verify_audit
from airflow_ai_provider.testing.behaviour import Latency
from airflow_ai_provider.testing.vendor import Vendor, VendorProcess

ROWS = 200
CONCURRENCY = 8


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server of this test's own: others must not lose theirs."""
    with postgres_server() as server:
        yield server


@pytest.mark.timeout(150)
def test_a_promoted_standby_goes_on_where_the_primary_was_demoted(
    tmp_path: Path, paid_vendor: VendorProcess, own_postgres: PostgresServer
) -> None:
    own_postgres.create_database("ledger")
    with standby(own_postgres) as follower, pgbouncer(own_postgres) as pooler:
        lab = Lab(tmp_path, paid_vendor, ledger_url=pooler.url_of("ledger"), deployment={"concurrency": CONCURRENCY})
        process = _half_way(lab)
        _set(own_postgres, "default_transaction_read_only", "on")
        _until(follower.caught_up)
        assert _no_call_leaves(paid_vendor)
        follower.promote()
        pooler.lead_to(follower)
        own_postgres.crash()
        _assert_whole(lab, process.summary())


@pytest.mark.timeout(150)
@pytest.mark.parametrize("end_sessions", [False, True])
def test_a_read_only_stretch_is_waited_out(
    tmp_path: Path, paid_vendor: VendorProcess, own_postgres: PostgresServer, end_sessions: bool
) -> None:
    """Without a word to the sessions, or with them ended by an administrator."""
    lab = Lab(
        tmp_path,
        paid_vendor,
        ledger_url=own_postgres.create_database("ledger"),
        deployment={"concurrency": CONCURRENCY},
    )
    process = _half_way(lab)
    _set(own_postgres, "default_transaction_read_only", "on")
    if end_sessions:
        own_postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'ledger'")
    assert _no_call_leaves(paid_vendor)
    assert process.running
    _set(own_postgres, "default_transaction_read_only", "off")
    _assert_whole(lab, process.summary())


@pytest.mark.timeout(150)
def test_statements_cut_after_100_ms(tmp_path: Path, paid_vendor: VendorProcess, own_postgres: PostgresServer) -> None:
    """While somebody locks the budgets for longer than that, again and again."""
    url = own_postgres.create_database("ledger")
    limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    lab = Lab(tmp_path, paid_vendor, ledger_url=url, deployment={"concurrency": CONCURRENCY})
    process = _half_way(lab)
    for name in limits:
        _set(own_postgres, name, "100ms")
    paid_vendor.configure(hold_after=None)
    for _ in range(4):
        with psycopg.connect(url.replace("+psycopg", "")) as locking:
            for name in limits:
                locking.execute(f"SET LOCAL {name} = 0".encode())
            locking.execute("SELECT * FROM llm_budgets FOR UPDATE")
            time.sleep(0.4)  # longer than any of the limits
            locking.rollback()
        time.sleep(0.1)
    summary = process.summary()
    for name in limits:
        _set(own_postgres, name, "0")  # whoever reads the books afterwards may take its time
    _assert_whole(lab, summary)


def test_a_job_that_begins_in_a_read_only_stretch_waits_for_its_end(
    tmp_path: Path, paid_vendor: VendorProcess, own_postgres: PostgresServer
) -> None:
    lab = Lab(tmp_path, paid_vendor, ledger_url=own_postgres.create_database("ledger"))
    with lab.books():
        pass  # its tables are there
    _set(own_postgres, "default_transaction_read_only", "on")
    process = lab.start(lab.spec(write_jsonl(tmp_path / "in.jsonl", questions(ROWS))))
    timer = threading.Timer(4.0, _set, [own_postgres, "default_transaction_read_only", "off"])
    timer.start()
    _assert_whole(lab, process.summary())
    timer.join()


def _half_way(lab: Lab) -> JobProcess:
    """A job of which a quarter has been asked, and whose vendor answers no more until it is released."""
    lab.vendor.configure(latency=Latency(0.05, 0.02), hold_after=ROWS // 4)
    process = lab.start(lab.spec(write_jsonl(lab.folder / "in.jsonl", questions(ROWS))))
    _until(lambda: lab.vendor.stats().requests >= ROWS // 4)
    return process


def _no_call_leaves(vendor: Vendor) -> bool:
    """Whether no more calls leave than can have been opened before, once those in flight are answered."""
    before = vendor.stats().requests
    vendor.configure(hold_after=None)
    time.sleep(1.5)  # in which a hundred calls could be made
    return vendor.stats().requests - before <= CONCURRENCY


def _assert_whole(lab: Lab, summary: dict[str, object]) -> None:
    """Every row answered and paid once; ledger equal to the invoice; the trail verifies."""
    assert (summary["rows"], summary["ok"]) == (ROWS, ROWS)
    invoice = lab.vendor.invoice()
    assert len(invoice) == ROWS
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(invoice)
        assert sum(row["cost_nano"] for row in books.requests()) == sum(line.cost_nanodollars for line in invoice)
    assert seal_audit(lab.settings).sequence == 1
    assert verify_audit(lab.settings).findings == []


def _set(server: PostgresServer, name: str, value: str) -> None:
    """For every session, from its next transaction on; this one, too, may be in a database that takes no writes."""
    server.query(f"ALTER SYSTEM SET {name} = '{value}'")
    server.query("SELECT pg_reload_conf()")


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)
