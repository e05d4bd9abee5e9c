"""What the ledger says was billed is what the vendor billed: request by request, token by token."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from support.map_jobs import Lab, questions, write_jsonl

from airflow_ai_provider.testing.behaviour import Faults
from airflow_ai_provider.testing.vendor import VendorProcess

PERMANENT = {"content_policy", "unprocessable", "empty"}
FAULTS = Faults(rate_500=0.05, rate_429=0.02)


def prove(lab: Lab, rows: int) -> None:
    lab.vendor.configure(faults=FAULTS, retry_after=0, seed=11)
    source = write_jsonl(lab.folder / "in.jsonl", questions(rows))
    summary = lab.run(source, batch_rows=250)
    invoice, outcomes = lab.vendor.invoice(), lab.vendor.stats().outcomes
    with lab.books() as books:
        billed, failed = books.requests("ok"), books.requests("error")
        everything = books.requests()
        books.assert_settled()
        books.assert_never_below(invoice)
    assert (summary["rows"], summary["ok"], summary["reused"]) == (rows, rows, 0)
    assert len(billed) == len(invoice) == rows
    assert len(everything) == len(billed) + len(failed)
    assert {row["error_type"] for row in failed} == {"server_error", "rate_limited"}
    assert len(failed) == outcomes["500"] + outcomes["429"] > rows * 0.04
    assert sum(row["input_tokens"] for row in billed) == sum(line.prompt_tokens for line in invoice)
    assert sum(row["output_tokens"] for row in billed) == sum(line.completion_tokens for line in invoice)
    total = sum(line.cost_nanodollars for line in invoice)
    assert sum(row["cost_nano"] for row in everything) == total
    assert summary["cost_usd"] == f"{total / 1e9:.9f}"
    assert (summary["input_tokens"], summary["output_tokens"]) == (
        sum(line.prompt_tokens for line in invoice),
        sum(line.completion_tokens for line in invoice),
    )


@pytest.mark.timeout(100)
def test_on_sqlite(tmp_path: Path, paid_vendor: VendorProcess) -> None:
    prove(Lab(tmp_path, paid_vendor, deployment={"concurrency": 64}), 2000)


@pytest.mark.timeout(100)
def test_on_postgresql(tmp_path: Path, paid_vendor: VendorProcess, postgres_url: str) -> None:
    prove(Lab(tmp_path, paid_vendor, ledger_url=postgres_url), 500)


def most_late(faults: Faults, rows: int) -> float:
    """Rows that end with a time-out, at most.

    A row's second time-out is its last request, and what is asked again in between changes nothing: the share of rows
    with two is (late / (1 - asked again))². Of 400, 7 are expected, and 17 are four standard deviations above.
    """
    late = faults.rate_hang + faults.rate_hang_billed + faults.rate_slow + faults.rate_408 + faults.rate_504
    again = faults.rate_drop_before + faults.rate_drop_after + faults.rate_drop_midway + faults.rate_malformed
    again += faults.rate_409 + faults.rate_500 + faults.rate_502 + faults.rate_503
    expected = rows * (late / (1 - again)) ** 2
    return expected + 4 * math.sqrt(expected)


@pytest.mark.timeout(100)
def test_faults_that_may_have_been_charged(tmp_path: Path, paid_vendor: VendorProcess) -> None:
    """Lost, cut, broken and late answers: the invoice is never above the ledger, which says ``unknown`` for them."""
    billed = {"drop_after", "drop_midway", "hang_billed", "malformed", "no_usage", "slow", "truncated", "empty", "ok"}
    faults = Faults(
        rate_drop_after=0.04,
        rate_drop_midway=0.04,
        rate_hang_billed=0.02,
        rate_malformed=0.04,
        rate_no_usage=0.04,
        rate_slow=0.02,
        rate_truncated=0.02,
        rate_empty=0.02,
        rate_drop_before=0.04,
        rate_hang=0.02,
        rate_408=0.02,
        rate_409=0.02,
        rate_500=0.02,
        rate_502=0.02,
        rate_503=0.02,
        rate_504=0.02,
        rate_422=0.02,
        rate_content_policy=0.02,
    )
    paid_vendor.configure(faults=faults, retry_after=0, slow_seconds=3, seed=5)
    lab = Lab(tmp_path, paid_vendor, deployment={"timeout": 1, "concurrency": 64})
    rows = questions(400)
    summary = lab.run(write_jsonl(tmp_path / "in.jsonl", rows), batch_rows=400)
    invoice, outcomes = paid_vendor.invoice(), paid_vendor.stats().outcomes
    with lab.books() as books:
        books.assert_settled()
        books.assert_never_below(invoice)
        unknown, failed = books.requests("unknown"), books.requests("error")
        everything = books.requests()
    assert outcomes.keys() - {"client_left"} >= {
        name.removeprefix("rate_") for name in faults.__slots__ if getattr(faults, name)
    }
    assert {line.outcome for line in invoice} == billed
    arrived = {request.headers["idempotency-key"] for request in paid_vendor.requests()}
    assert arrived <= {row["attempt_id"] for row in everything}
    charged = {line.idempotency_key: line for line in invoice}
    assert not charged.keys() & {row["attempt_id"] for row in failed}, "what was charged is in the ledger as free"
    lost = [row for row in unknown if row["attempt_id"] in charged]
    assert {charged[row["attempt_id"]].outcome for row in lost} >= {
        "drop_after",
        "drop_midway",
        "malformed",
        "no_usage",
    }
    assert summary["rows"] == 400
    assert summary["ok"] + summary["rejected"] + summary["error"] == 400
    assert summary["ok"] > 300
    assert 1 <= summary["errors"]["truncated"] <= 20  # 2% are cut, and rejected by the first attempt
    counted = {kind: rows for kind, rows in summary["errors"].items() if kind not in (*PERMANENT, "truncated")}
    assert counted.pop("timeout", 0) <= most_late(faults, 400)
    assert sum(counted.values()) <= 10, counted  # five attempts, five faults
