"""Behind PgBouncer in transaction mode a session is somebody else's a moment later: everything works all the same."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from support.map_jobs import Lab, questions, write_jsonl
from support.postgres import PgBouncer, PostgresServer, pgbouncer

from airflow_ai_provider.core.administration.audit import record, seal_audit, verify_audit
from airflow_ai_provider.core.audit.sealing.seal import SealReport, seal_trail
from airflow_ai_provider.core.audit.sealing.signing import load_or_create_signing_key
from airflow_ai_provider.core.audit.sinks.archive import FolderArchive
from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.maintenance.upkeep import maintain
from airflow_ai_provider.core.ledger.reconcile.invoices import open_invoice
from airflow_ai_provider.core.ledger.reconcile.reconcile import reconcile
from airflow_ai_provider.core.ledger.reports.costs import cost_report
from airflow_ai_provider.core.reporting.export import export_ledger
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.core.rows.sql_source import sql_source
from airflow_ai_provider.core.settings import Settings
from airflow_ai_provider.errors import AuditError, LedgerError, LedgerUnavailable
from airflow_ai_provider.testing.behaviour import Latency
from airflow_ai_provider.testing.vendor import VendorProcess

ROWS = 200


@pytest.fixture
def pooler(postgres: PostgresServer) -> Iterator[PgBouncer]:
    with pgbouncer(postgres, pool_size=3) as server:
        yield server


@pytest.fixture
def pooled_url(pooler: PgBouncer, postgres_url: str) -> str:
    return pooler.url_of(postgres_url.rpartition("/")[2])


@pytest.mark.timeout(120)
def test_jobs_of_two_processes_keep_their_books_behind_a_pooler(
    tmp_path: Path, paid_vendor: VendorProcess, pooled_url: str
) -> None:
    """Also: a sealing, a verification, an invoice, an export and a maintenance, all over the same few sessions."""
    lab = Lab(tmp_path, paid_vendor, ledger_url=pooled_url, deployment={"concurrency": 16})
    paid_vendor.configure(latency=Latency(0.01, 0.005))
    source = write_jsonl(tmp_path / "in.jsonl", questions(ROWS))
    running = [lab.start(lab.spec(source, shard=Shard(index, 2), caller={"map_index": index})) for index in range(2)]
    summaries = [process.summary() for process in running]
    assert sum(summary["ok"] for summary in summaries) == ROWS
    invoice = paid_vendor.invoice()
    assert len(invoice) == ROWS
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(invoice)
        assert sum(row["cost_nano"] for row in books.requests()) == sum(line.cost_nanodollars for line in invoice)
        _reconcile_and_export(books.ledger, paid_vendor, tmp_path)
    assert seal_audit(lab.settings).sequence == 1
    assert verify_audit(lab.settings).findings == []


def _reconcile_and_export(ledger: Ledger, vendor: VendorProcess, folder: Path) -> None:
    lines = ["attempt_id,model,day,cost_usd"]
    lines += [
        f"{line.idempotency_key},double,{datetime.now(UTC):%Y-%m-%d},{Decimal(line.cost_nanodollars).scaleb(-9):f}"
        for line in vendor.invoice()
    ]
    invoice = open_invoice(io.BytesIO("\n".join([*lines, ""]).encode()), "invoice.csv")
    report = reconcile(ledger, invoice, now=ledger.now())
    assert (report.matched, len(report.findings)) == (ROWS, 0)
    assert export_ledger(ledger, str(folder / "export"), now=ledger.now() + timedelta(days=3)).rows >= ROWS
    assert cost_report(ledger, by=["team"])[0]["requests"] == ROWS
    maintain(ledger, now=ledger.now(), keep_months=1)


def test_three_sealers_behind_a_pooler_leave_no_lock_behind(tmp_path: Path, pooled_url: str) -> None:
    """A lock of the session stayed in a pooled one, and every later sealer found another at work for ever."""
    lab = Lab(tmp_path, None, ledger_url=pooled_url)  # type: ignore[arg-type]  # no call is made
    homes = [Lab(tmp_path, None, ledger_url=pooled_url, home_name=name) for name in ("a", "b", "c")]  # type: ignore[arg-type]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(8):
            reports = list(pool.map(lambda home: seal_audit(_one_archive(home, tmp_path)), homes))
            assert any(report.sequence for report in reports)
    numbers = [seal_audit(_one_archive(lab, tmp_path)).sequence for _ in range(6)]
    assert None not in numbers
    assert numbers == sorted(numbers)


def _one_archive(lab: Lab, folder: Path) -> Settings:
    """Sealers of three hosts: one archive, one key, one ledger."""
    return replace(lab.settings, archive_uri=str(folder / "archive"), audit_signing_key=str(folder / "keys"))


def test_a_sealer_that_dies_with_the_lock_keeps_nobody_out(pooler: PgBouncer, pooled_url: str) -> None:
    with Ledger.open(pooled_url) as dying, Ledger.open(pooled_url) as next_one:
        lock = LedgerAuditStore(dying).sealer_lock("main")
        assert lock.__enter__() is not None
        with LedgerAuditStore(next_one).sealer_lock("main") as held:
            assert held is None
        pooler.restart()  # the connection is gone, as that of a killed process
        with LedgerAuditStore(next_one).sealer_lock("main") as held:
            assert held is not None
        with pytest.raises(LedgerUnavailable):
            lock.__exit__(None, None, None)


def test_sealing_that_stopped_is_an_error_and_a_finding(
    tmp_path: Path, pooled_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "airflow_ai_provider.core.administration.audit._TURN_SECONDS", 0
    )  # nobody gives the lock back here
    lab = Lab(tmp_path, None, ledger_url=pooled_url)  # type: ignore[arg-type]
    record(lab.settings, "keys.generated", None, key_id="k1")
    assert seal_audit(lab.settings).sequence == 1
    record(lab.settings, "keys.generated", None, key_id="k2")
    with open_ledger(pooled_url, lab.home) as ledger, LedgerAuditStore(ledger).sealer_lock("main") as held:
        assert held is not None
        assert seal_audit(lab.settings).sequence is None  # no error yet: another may be at work
        assert verify_audit(lab.settings).findings == []
        late = replace(lab.settings, audit_seal_within=timedelta(0))
        with pytest.raises(AuditError, match=r"sealing has stopped: the newest manifest, 1, is of .*pg_locks"):
            seal_audit(late)
        (finding,) = verify_audit(late).findings
        assert (finding.kind, finding.place) == ("sealing_stopped", "manifest 2")
    assert seal_audit(late).sequence == 2
    assert verify_audit(late).findings == []  # nothing waits


def test_rows_are_read_behind_a_pooler_also_over_a_connection_that_commits_each_statement(
    pooler: PgBouncer, pooled_url: str
) -> None:
    """A cursor that is held across commits belongs to a session, of which the pooler gives another."""
    dsn = pooled_url.replace("+psycopg", "")
    others = [psycopg.connect(dsn, autocommit=True, prepare_threshold=None) for _ in range(2)]
    stop = threading.Event()

    def disturb(connection: psycopg.Connection[tuple[object, ...]]) -> None:
        while not stop.is_set():
            connection.execute("SELECT pg_sleep(0.002)")

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(disturb, other) for other in others]
        try:
            for autocommit in (True, False):
                source = sql_source(
                    "sql://db?query=SELECT+n+FROM+generate_series(1,3000)+AS+n+ORDER+BY+n",
                    lambda _conn_id, auto=autocommit: psycopg.connect(dsn, autocommit=auto),
                )
                read = [value for batch in source.batches(250) for value in batch.column("n").to_pylist()]
                assert read == list(range(1, 3001))
        finally:
            stop.set()
    for each in running:
        each.result()
    for other in others:
        other.close()


async def test_many_transactions_at_once_over_few_sessions(pooled_url: str) -> None:
    """Statements that were prepared in one session are not looked for in another."""
    with Ledger.open(pooled_url) as ledger:

        def look(number: int) -> int:
            with ledger.read() as conn:
                return int(conn.execute(text("SELECT CAST(:n AS integer)"), {"n": number}).scalar_one())

        found = await asyncio.gather(*(asyncio.to_thread(look, number) for number in range(400)))
    assert found == list(range(400))


def test_a_pooler_of_statements_is_refused_by_name(postgres: PostgresServer, postgres_url: str) -> None:
    with pgbouncer(postgres, pool_mode="statement") as pooler:
        url = pooler.url_of(postgres_url.rpartition("/")[2])
        with pytest.raises(LedgerError, match="pool_mode = transaction"):
            Ledger.open(url)


def test_a_pooler_without_its_server_is_waited_for(pooler: PgBouncer, pooled_url: str) -> None:
    with Ledger.open(pooled_url) as ledger:
        pooler.stop()
        with pytest.raises(LedgerUnavailable), ledger.read():
            pass
        timer = threading.Timer(1.0, pooler.start)
        timer.start()
        assert ledger.run(lambda conn, _again: conn.execute(text("SELECT 1")).scalar()) == 1
        timer.join()


class _WatchedArchive(FolderArchive):
    """A slow archive that counts the transactions which are open while a segment is uploaded."""

    def __init__(self, folder: Path, dsn: str, on_segment: Callable[[], None] = lambda: None) -> None:
        super().__init__(folder)
        self.dsn, self.open_transactions, self.on_segment = dsn, list[int](), on_segment

    def put(self, name: str, data: bytes) -> bool:
        if not name.startswith("segments/"):
            return super().put(name, data)
        time.sleep(0.3)
        with psycopg.connect(self.dsn) as conn:
            asked = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in tr%'"
            )
            row = conn.execute(asked).fetchone()
            assert row is not None
            self.open_transactions.append(row[0])
        created = super().put(name, data)
        self.on_segment()
        return created


@pytest.mark.parametrize("pooled", [False, True])
def test_no_transaction_is_open_while_segments_are_uploaded(
    tmp_path: Path, postgres_url: str, pooled_url: str, pooled: bool
) -> None:
    lab = Lab(tmp_path, None, ledger_url=pooled_url if pooled else postgres_url)  # type: ignore[arg-type]
    for key in ("k1", "k2", "k3"):
        record(lab.settings, "keys.generated", None, key_id=key)
    direct = postgres_url.replace("+psycopg", "")
    archive, signer = _WatchedArchive(tmp_path / "archive", direct), load_or_create_signing_key(tmp_path / "keys")
    with open_ledger(lab.settings.ledger_url, lab.home) as ledger:
        with psycopg.connect(direct, autocommit=True) as conn:
            name = postgres_url.rpartition("/")[2]
            conn.execute(f'ALTER DATABASE "{name}" SET idle_in_transaction_session_timeout = 100')
        ledger.engine.dispose()  # new sessions have the limit
        report = seal_trail(lab.settings.audit_spool(), archive, LedgerAuditStore(ledger), signer, ledger.now())
    assert (report.sequence, report.segments, report.refused) == (1, 3, ())
    assert archive.open_transactions == [0, 0, 0]


def test_two_sealers_of_one_spool_list_each_segment_once(tmp_path: Path, pooled_url: str, postgres_url: str) -> None:
    """The second seals everything while the first is uploading; the first lists nothing again."""
    lab = Lab(tmp_path, None, ledger_url=pooled_url)  # type: ignore[arg-type]
    for key in ("k1", "k2"):
        record(lab.settings, "keys.generated", None, key_id=key)
    direct, signer = postgres_url.replace("+psycopg", ""), load_or_create_signing_key(tmp_path / "keys")
    with open_ledger(pooled_url, lab.home) as ledger:
        spool, store, reports = lab.settings.audit_spool(), LedgerAuditStore(ledger), list[SealReport]()

        def seal(archive: FolderArchive) -> SealReport:
            return seal_trail(spool, archive, store, signer, ledger.now())

        def race() -> None:
            if not reports:
                reports.append(seal(FolderArchive(tmp_path / "archive")))

        first = seal(_WatchedArchive(tmp_path / "archive", direct, race))
        last = seal(FolderArchive(tmp_path / "archive"))
    assert [(each.sequence, each.segments, each.refused) for each in (*reports, first, last)] == [
        (1, 2, ()),
        (2, 0, ()),
        (3, 0, ()),
    ]


def test_a_sealer_that_dies_while_uploading_loses_and_doubles_nothing(tmp_path: Path, pooled_url: str) -> None:
    lab = Lab(tmp_path, None, ledger_url=pooled_url)  # type: ignore[arg-type]
    for key in ("k1", "k2"):
        record(lab.settings, "keys.generated", None, key_id=key)

    def die() -> None:
        raise KeyboardInterrupt

    direct, signer = pooled_url.replace("+psycopg", ""), load_or_create_signing_key(tmp_path / "keys")
    with open_ledger(pooled_url, lab.home) as ledger:
        spool, store = lab.settings.audit_spool(), LedgerAuditStore(ledger)
        with pytest.raises(KeyboardInterrupt):
            seal_trail(spool, _WatchedArchive(tmp_path / "archive", direct, die), store, signer, ledger.now())
        archive = FolderArchive(tmp_path / "archive")
        reports = [seal_trail(spool, archive, store, signer, ledger.now()) for _ in range(2)]
    assert [(each.sequence, each.segments) for each in reports] == [(1, 2), (2, 0)]
