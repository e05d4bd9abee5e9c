"""Four processes against one budget: never a nano-dollar above it, nothing of it left lying, nothing paid twice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from sqlalchemy import select
from support.map_jobs import TEAM, Lab, next_try, price_of, questions, write_jsonl

from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.schema import llm_budgets
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.testing.behaviour import Latency
from airflow_ai_provider.testing.vendor import VendorProcess

_BUDGET = f"team={TEAM}/total"


@dataclass
class Sampler:
    """Looks at every budget, again and again, in a thread and over a connection of its own."""

    looks: int = 0
    """At the team's budget, while something was spent or held."""
    busy: int = 0
    """While something was held and something spent."""
    tightest: int | None = None
    """The least room seen, in nano-dollars."""
    violations: list[dict[str, object]] = field(default_factory=list)

    def look(self, row: dict[str, object], exact: bool) -> None:
        limit, spent, held = (int(str(row[name])) for name in ("limit_nano", "spent_nano", "held_nano"))
        if spent + held > limit or spent < 0 or held < 0:
            self.violations.append(row)
        if exact:
            limit_usd, spent_usd, held_usd = (Decimal(str(row[name])) for name in ("limit_usd", "spent", "held"))
            if spent_usd + held_usd > limit_usd or spent_usd * 10**9 != spent or held_usd * 10**9 != held:
                self.violations.append(row)
        if row["name"] == _BUDGET and spent + held:
            self.looks += 1
            self.busy += bool(spent and held)
            room = limit - spent - held
            self.tightest = room if self.tightest is None else min(room, self.tightest)


@contextmanager
def sampling(lab: Lab) -> Iterator[Sampler]:
    sampler, done = Sampler(), threading.Event()

    def work() -> None:
        with open_ledger(lab.ledger_url, lab.home) as ledger:
            while not done.is_set():
                with ledger.read() as conn:
                    for row in conn.execute(select(llm_budgets)).mappings():
                        sampler.look(dict(row), exact=not ledger.sqlite)
                done.wait(0.001)

    thread = threading.Thread(target=work, name="budget-sampler")
    thread.start()
    try:
        yield sampler
    finally:
        done.set()
        thread.join()


@dataclass(frozen=True)
class Race:
    """How many processes share how many rows, and how much of them the budget covers."""

    processes: int = 4
    rows: int = 600
    covered: Fraction = Fraction(1, 2)
    samples: int = 200
    latency_s: float = 0.02


def prove(lab: Lab, race: Race) -> None:
    lab.vendor.configure(latency=Latency(race.latency_s, race.latency_s))
    rows = questions(race.rows)
    whole_cost = sum(price_of(row["text"]) for row in rows)
    limit = int(whole_cost * race.covered)
    lab.limit_usd = f"{Decimal(limit) / 10**9:.9f}"
    source = write_jsonl(lab.folder / "in.jsonl", rows)
    specs = [
        lab.spec(source, caller={"map_index": index}, shard=Shard(index, race.processes))
        for index in range(race.processes)
    ]
    with sampling(lab) as sampler:
        lab.vendor.configure(hold_after=race.rows // 8)
        processes = [lab.start(spec) for spec in specs]
        while sampler.looks < race.samples or sampler.busy <= race.samples // 4:
            assert all(process.running for process in processes)
            time.sleep(0.01)
        lab.vendor.configure(hold_after=None)
        summaries = [process.summary() for process in processes]
    first_invoice = lab.vendor.invoice()

    assert sampler.violations == []
    output = {row["id"]: row for row in lab.output()}
    statuses = Counter(row["status"] for row in output.values())
    assert statuses.keys() == {"ok", "over_budget"}
    assert sum(statuses.values()) == race.rows
    assert all(summary["error"] == 0 for summary in summaries)
    refused = [row for row in output.values() if row["status"] == "over_budget"]
    assert all(row["error"] == f"over_budget: no room left in budget {_BUDGET}" for row in refused)
    assert all(row["answer"] is None for row in refused)
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(first_invoice)
        spent = books.budget()["spent_nano"]
    assert len(first_invoice) == statuses["ok"]
    assert spent == sum(line.cost_nanodollars for line in first_invoice) <= limit
    # Nobody is refused while room for one more could still come free: less than one row's hold is left.
    hold = max(150 * (len(row["text"].encode()) + 200) + 600 * 64 for row in rows)
    assert limit - spent < hold, f"{limit - spent} nano-dollars are left, and a row asks for {hold} at most"

    lab.limit_usd = "1"
    reruns = [
        lab.spec(source, caller={"map_index": index, "try_number": 2}, shard=Shard(index, race.processes))
        for index in range(race.processes)
    ]
    assert [rerun.caller for rerun in reruns] == [next_try(spec).caller for spec in specs]
    with sampling(lab) as sampler:
        processes = [lab.start(spec) for spec in reruns]
        summaries = [process.summary() for process in processes]
    invoice = lab.vendor.invoice()
    assert sampler.violations == []
    assert sum(summary["ok"] for summary in summaries) == race.rows
    assert [row["id"] for row in lab.output()] == [row["id"] for row in rows]
    assert {row["status"] for row in lab.output()} == {"ok"}
    assert len(invoice) == race.rows, "a row was paid twice, or never"
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(invoice)
        assert books.budget()["spent_nano"] == sum(line.cost_nanodollars for line in invoice) == whole_cost
        assert {row["row_key"] for row in books.requests("ok")} == output.keys()


@pytest.mark.timeout(100)
def test_on_sqlite(tmp_path: Path, paid_vendor: VendorProcess) -> None:
    prove(Lab(tmp_path, paid_vendor), Race())


@pytest.mark.timeout(100)
def test_on_postgresql(tmp_path: Path, paid_vendor: VendorProcess, postgres_url: str) -> None:
    prove(Lab(tmp_path, paid_vendor, ledger_url=postgres_url), Race())


@pytest.mark.timeout(280)
def test_eight_processes_with_five_hundred_calls_in_flight_each(
    tmp_path: Path, paid_vendor: VendorProcess, postgres_url: str
) -> None:
    lab = Lab(tmp_path, paid_vendor, ledger_url=postgres_url, deployment={"concurrency": 500})
    prove(lab, Race(processes=8, rows=4000, covered=Fraction(1, 3), samples=2000, latency_s=0.3))


@pytest.mark.timeout(60)
def test_a_budget_that_covers_the_work_refuses_no_row(tmp_path: Path, paid_vendor: VendorProcess) -> None:
    """Holds are many times the cost; rows wait for what calls in flight will release, in two processes at once."""
    lab = Lab(tmp_path, paid_vendor)
    rows = questions(120)
    hold = max(150 * (len(row["text"].encode()) + 200) + 600 * 64 for row in rows)
    lab.limit_usd = f"{Decimal(sum(price_of(row['text']) for row in rows) + hold) / 10**9:.9f}"
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    processes = [
        lab.start(lab.spec(source, caller={"map_index": index}, shard=Shard(index, 2), batch_rows=30))
        for index in range(2)
    ]
    assert [process.summary()["ok"] for process in processes] == [60, 60]
    with lab.books() as books:
        books.assert_settled()


@pytest.mark.timeout(60)
def test_what_a_refused_call_held_serves_the_rows_that_wait(tmp_path: Path, paid_vendor: VendorProcess) -> None:
    """The vendor refuses half of the rows for good: that costs nothing, so the budget is there for the other half."""
    lab = Lab(tmp_path, paid_vendor, deployment={"concurrency": 4})
    rows = questions(40)
    for row in rows[::2]:
        row["text"] += " [[double:422]]"
    hold = max(150 * (len(row["text"].encode()) + 200) + 600 * 64 for row in rows)
    cost = sum(price_of(row["text"]) for row in rows[1::2])
    lab.limit_usd = f"{Decimal(cost + 2 * hold) / 10**9:.9f}"
    process = lab.start(lab.spec(write_jsonl(tmp_path / "in.jsonl", rows), batch_rows=40))
    assert process.summary(40)["errors"] == {"unprocessable": 20}
    assert [row["status"] for row in lab.output()] == ["error", "ok"] * 20
    with lab.books() as books:
        books.assert_settled()
        assert books.budget()["spent_nano"] == cost
