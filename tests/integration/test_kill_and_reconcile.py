"""Four workers, killed at random moments and tried again, against a vendor that fails and charges all the same.

While they work, the vendor's invoice is never above the ledger. Afterwards its export settles what was unknown: the
ledger is the invoice, request by request and to the nano-dollar.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.map_jobs import Books, Lab, next_try, questions, write_jsonl
from support.map_process import JobProcess, Spec

from airflow_ai_provider.core.ledger.reconcile.invoices import open_invoice
from airflow_ai_provider.core.ledger.reconcile.reconcile import reconcile
from airflow_ai_provider.core.ledger.reconcile.report import ReconcileReport, Span
from airflow_ai_provider.core.ledger.schema import (
    llm_adjustments,
    llm_budgets,
    llm_cost_daily,
    llm_open_attempts,
    llm_requests,
)
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.testing.behaviour import Faults, Latency
from airflow_ai_provider.testing.invoice import write_csv
from airflow_ai_provider.testing.vendor import Vendor, VendorProcess

FAULTS = Faults(
    rate_500=0.04,
    rate_429=0.04,
    rate_408=0.01,
    rate_502=0.01,
    rate_hang=0.01,
    rate_hang_billed=0.01,
    rate_drop_before=0.01,
    rate_drop_after=0.02,
    rate_drop_midway=0.01,
    rate_malformed=0.01,
    rate_no_usage=0.01,
)


@dataclass
class Workers:
    """Tasks of one job, a shard each; every one of them runs until it is done, whoever kills it."""

    lab: Lab
    specs: list[Spec]
    rng: random.Random
    processes: list[JobProcess] = field(default_factory=list)
    kills: int = 0

    def start(self) -> None:
        self.processes = [self.lab.start(spec) for spec in self.specs]

    def kill_one(self) -> None:
        """``kill -9`` of one that works, and its next try."""
        working = [index for index, process in enumerate(self.processes) if process.running]
        assert working, f"all done after {self.kills} kills"
        index = self.rng.choice(working)
        self.processes[index].kill()
        self.kills += 1
        self.specs[index] = next_try(self.specs[index])
        self.processes[index] = self.lab.start(self.specs[index])

    def finish(self) -> None:
        for process in self.processes:
            process.summary()


@dataclass
class Watch:
    """Looks again and again, from a thread, whether the invoice is above the ledger."""

    vendor: Vendor
    books: Books
    samples: int = 0
    above: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _look(self) -> None:
        try:
            while not self._stop.wait(0.2):
                self.sample()
        except Exception as error:
            self.above.append(repr(error))

    def sample(self) -> None:
        """The invoice first: whatever is on it was durable in the ledger before it was sent."""
        invoice = self.vendor.invoice()
        with self.books.ledger.read() as conn:
            bounds = dict(conn.execute(sa.select(llm_open_attempts.c.attempt_id, llm_open_attempts.c.bound_nano)).all())
            costs = dict(conn.execute(sa.select(llm_requests.c.attempt_id, llm_requests.c.cost_nano)).all())
            spent = conn.execute(sa.select(llm_budgets.c.spent_nano)).scalars().all()
        at_most = {**bounds, **costs}
        self.samples += 1
        for line in invoice:
            if line.cost_nanodollars > at_most.get(str(line.idempotency_key), -1):
                self.above.append(f"attempt {line.idempotency_key}: {line.cost_nanodollars}")
        charged = sum(line.cost_nanodollars for line in invoice)
        if charged > sum(at_most.values()):
            self.above.append(f"invoice {charged}, ledger {sum(at_most.values())}")
        if any(charged > amount + sum(bounds.values()) for amount in spent):
            self.above.append(f"invoice {charged}, spent {spent}")


def reconcile_with(lab: Lab, books: Books) -> ReconcileReport:
    """The double's export of a whole day, read on the day after."""
    export = lab.folder / "export.csv"
    write_csv(lab.vendor.invoice(), export)
    now = datetime.now(UTC)
    covers = Span(now - timedelta(days=1), now + timedelta(days=1))
    with export.open("rb") as file:
        return reconcile(books.ledger, open_invoice(file, export.name), now=covers.end, covers=covers)


def assert_equal(lab: Lab, books: Books) -> None:
    """Every attempt costs what its line says, and nothing without one; rollup and budgets add up to the invoice."""
    lines = {line.idempotency_key: line for line in lab.vendor.invoice()}
    with books.ledger.read() as conn:
        costs = dict(conn.execute(sa.text("SELECT attempt_id, cost_nano FROM llm_request_costs")).all())
    charged = {str(key): line.cost_nanodollars for key, line in lines.items()}
    assert {attempt: int(cost) for attempt, cost in costs.items()} == {
        attempt: charged.get(attempt, 0) for attempt in costs
    }
    assert charged.keys() <= costs.keys()
    total = sum(charged.values())
    daily, adjusted = books.rows(llm_cost_daily), books.rows(llm_adjustments)
    assert sum(row["cost_nano"] for row in daily) == total
    assert [row["spent_nano"] for row in books.rows(llm_budgets)] == [total, total]
    assert [row["held_nano"] for row in books.rows(llm_budgets)] == [0, 0]
    assert sum(row["unknown"] for row in daily) == 0
    assert sum(row["adjusted_nano"] for row in daily) == sum(row["delta_nano"] for row in adjusted) < 0
    assert sum(row["input_tokens"] for row in daily) == sum(line.prompt_tokens for line in lines.values())
    assert sum(row["output_tokens"] for row in daily) == sum(line.completion_tokens for line in lines.values())


def prove(lab: Lab, *, rows: int, workers: int, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    lab.vendor.configure(faults=FAULTS, latency=Latency(0.1, 0.08), retry_after=0, seed=seed)
    source = write_jsonl(lab.folder / "in.jsonl", questions(rows))
    specs = [
        lab.spec(source, caller={"map_index": index}, shard=Shard(index, workers), batch_rows=25)
        for index in range(workers)
    ]
    crew = Workers(lab, specs, rng)
    moments = sorted(rng.sample(range(workers, int(rows * 0.8)), kills))
    with lab.books() as books:
        watch = Watch(lab.vendor, books)
        with watch.watching():
            crew.start()
            for moment in moments:
                # However late the kill comes on a busy machine, the job is not through by then.
                lab.vendor.configure(hold_after=moment + rows // 10)
                wait_for_requests(lab.vendor, moment)
                time.sleep(rng.uniform(0, 0.1))
                crew.kill_one()
            lab.vendor.configure(hold_after=None)
            crew.finish()
        wait_until_idle(lab.vendor)
        watch.sample()
        assert watch.above == []
        assert watch.samples > 20
        assert crew.kills == kills

        books.assert_settled()
        books.assert_never_below(lab.vendor.invoice())
        statuses = Counter((row["status"], row["error_type"]) for row in books.requests())
        assert statuses["unknown", "task_died"] > 0, "no kill met a call in flight"
        assert statuses["unknown", "timeout"] > 0
        assert sum(row["cost_nano"] for row in books.requests()) > sum(
            line.cost_nanodollars for line in lab.vendor.invoice()
        )

        report = reconcile_with(lab, books)
        assert report.equal, [finding.row() for finding in report.findings]
        assert report.resolved == len(books.requests("unknown")) > report.not_billed > 0
        assert report.matched == len(lab.vendor.invoice())
        assert_equal(lab, books)
        adjusted = books.rows(llm_adjustments)
        again = reconcile_with(lab, books)
        assert (again.equal, again.resolved, again.corrected) == (True, 0, 0)
        assert books.rows(llm_adjustments) == adjusted
    assert Counter(row["status"] for row in lab.output())["ok"] > rows * 0.95


def wait_for_requests(vendor: Vendor, number: int) -> None:
    while vendor.stats().requests < number:
        time.sleep(0.005)


def wait_until_idle(vendor: Vendor) -> None:
    while vendor.stats().in_flight:
        time.sleep(0.02)


@pytest.mark.timeout(200)
def test_twenty_kills_of_four_workers_on_postgresql(
    tmp_path: Path, paid_vendor: VendorProcess, postgres_url: str
) -> None:
    lab = Lab(tmp_path, paid_vendor, ledger_url=postgres_url, deployment={"concurrency": 8, "timeout": 2})
    prove(lab, rows=480, workers=4, kills=20, seed=3)


@pytest.mark.timeout(100)
def test_some_kills_of_two_workers_on_sqlite(tmp_path: Path, paid_vendor: VendorProcess) -> None:
    lab = Lab(tmp_path, paid_vendor, deployment={"concurrency": 8, "timeout": 2})
    prove(lab, rows=240, workers=2, kills=5, seed=4)
