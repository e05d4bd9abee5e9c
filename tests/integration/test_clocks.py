"""Clocks of hosts are off, in both directions: budgets, days and the trail go by the database's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from support.map_jobs import TEAM, Lab, price_of, questions, write_jsonl

from airflow_ai_provider.core.administration.audit import seal_audit, verify_audit
from airflow_ai_provider.core.ledger.schema import llm_budgets, llm_cost_daily
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.testing.behaviour import Latency
from airflow_ai_provider.testing.vendor import VendorProcess

ROWS = 40


@pytest.mark.timeout(150)
@pytest.mark.parametrize("offsets", [(-600, 600), (600, 0), (0, -600), (86_400, -86_400)])
def test_processes_whose_clocks_are_off_share_budgets_and_days(
    tmp_path: Path, paid_vendor: VendorProcess, postgres_url: str, offsets: tuple[int, int]
) -> None:
    """The room is less than what both hold at once: each must see that the other is alive, and wait for it."""
    rows = questions(ROWS)
    cost = sum(price_of(row["text"]) for row in rows)
    limit = f"{Decimal(cost + 300_000).scaleb(-9):f}"
    lab = Lab(tmp_path, paid_vendor, ledger_url=postgres_url, limit_usd=limit, period="day")
    paid_vendor.configure(latency=Latency(0.8, 0.1))
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    began = datetime.now(UTC)
    running = [
        lab.start(
            lab.spec(source, shard=Shard(index, 2), batch_rows=10, caller={"map_index": index}), clock_offset=offset
        )
        for index, offset in enumerate(offsets)
    ]
    summaries = [process.summary() for process in running]
    ended = datetime.now(UTC)
    assert [summary["over_budget"] for summary in summaries] == [0, 0]
    assert sum(summary["ok"] for summary in summaries) == ROWS
    _assert_books(lab, began, ended)
    assert seal_audit(lab.settings).events > ROWS
    assert verify_audit(lab.settings).findings == []
    for process, offset in zip(running, offsets, strict=True):
        said = f"this host's clock is {abs(offset)} s {'ahead of' if offset > 0 else 'behind'} the ledger database's"
        assert process.log_file.read_text().count(said) == bool(offset)


def _assert_books(lab: Lab, began: datetime, ended: datetime) -> None:
    """Every time in the ledger is the database's, which is this machine's."""
    first, last = began - timedelta(seconds=2), ended + timedelta(seconds=2)
    days = {first.date(), last.date()}
    invoice = lab.vendor.invoice()
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(invoice)
        requests = books.requests()
        assert all(first <= row["created_at"] <= last for row in requests)
        opened = [datetime.fromtimestamp(int(row["attempt_id"][:12], 16) / 1000, UTC) for row in requests]
        assert all(first <= moment <= last for moment in opened)
        assert {row["day"] for row in books.rows(llm_cost_daily)} <= days
        periods = {row["period_start"] for row in books.rows(llm_budgets) if row["name"] == f"team={TEAM}/day"}
        assert periods <= {day.isoformat() for day in days}
