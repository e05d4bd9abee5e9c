"""Invoices of sums against the ledger, by day and model."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from support.reconcile import BOUND, DAY, NOON, Desk, billed, usd

from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.errors import LedgerError

NEXT_DAY = NOON + timedelta(days=1)


@pytest.fixture
def desk(shared_ledger: Ledger) -> Desk:
    """Two days of one vendor's model, one call of another vendor's."""
    desk = Desk.emptied(shared_ledger)
    for at in (NOON, NOON.replace(hour=23, minute=59), NEXT_DAY):
        desk.call("ok", 700, at=at)
    desk.call("error", 0)
    desk.call("ok", 90, model="anthropic/claude-haiku-4-5", deployment="other")
    return desk


def openai(*buckets: list[dict[str, Any]]) -> bytes:
    start = int(DAY.start.timestamp())
    data = [
        {"start_time": start + 86400 * day, "end_time": start + 86400 * (day + 1), "results": results}
        for day, results in enumerate(buckets)
    ]
    return json.dumps({"object": "page", "data": data, "has_more": False}).encode()


def usage(requests: int, model: str | None = "gpt-4o-mini-2024-07-18", **changes: Any) -> dict[str, Any]:
    tokens = {"input_tokens": 10 * requests, "output_tokens": 5 * requests}
    kind = {"object": "organization.usage.completions.result"}
    return {**kind, "num_model_requests": requests, "model": model, **tokens, **changes}


def costs(nano: str, item: str | None) -> dict[str, Any]:
    amount = {"value": f"@{nano}@", "currency": "usd"}
    return {"object": "organization.costs.result", "amount": amount, "line_item": item}


def numbers(page: bytes) -> bytes:
    """Amounts as JSON numbers, to the digit."""
    return page.replace(b'"@', b"").replace(b'@"', b"")


def test_equal_usage_is_no_finding(desk: Desk) -> None:
    report = desk.reconcile(openai([usage(2)], [usage(1)]))
    assert report.equal
    assert [(day.day.day, day.model, day.ledger.requests, day.invoice.requests) for day in report.days] == [
        (4, "gpt-4o-mini", 2, 2),
        (5, "gpt-4o-mini", 1, 1),
    ]
    assert [day.difference_nano for day in report.days] == [None, None]


def test_what_differs_is_named(desk: Desk) -> None:
    report = desk.reconcile(openai([usage(3, input_tokens=20)], [usage(1), usage(1, "o1")]))
    found = {finding.place: finding.detail for finding in report.findings}
    assert found == {
        "2026-03-04 gpt-4o-mini": "requests, output tokens differ",
        "2026-03-05 o1": "requests, input tokens, output tokens differ",
    }


def test_costs_by_line_item_add_up_to_the_models(desk: Desk) -> None:
    items = [
        costs("0.0000009", "gpt-4o-mini-2024-07-18, input"),
        costs("0.0000005", "gpt-4o-mini-2024-07-18, output"),
    ]
    assert desk.reconcile(numbers(openai(items))).equal
    report = desk.reconcile(numbers(openai([*items, costs("0.000001", "gpt-4o-mini-2024-07-18, cached input")])))
    (finding,) = report.findings
    assert (finding.ledger_nano, finding.invoice_nano, finding.detail) == (1400, 2400, "cost differ")


@pytest.mark.parametrize(
    ("amount", "equal"), [("0.00000139800001", True), ("0.000001402", True), ("0.000001403", False)]
)
def test_a_nano_dollar_a_call_is_rounding(desk: Desk, amount: str, equal: bool) -> None:
    assert desk.reconcile(numbers(openai([costs(amount, "gpt-4o-mini, all")]))).equal is equal


def test_without_models_a_day_is_one(desk: Desk) -> None:
    desk.call("ok", 300, model="openai/gpt-4o")
    report = desk.reconcile(numbers(openai([costs("0.0000017", None)], [costs("0.0000007", None)])))
    assert report.equal
    assert [(day.model, day.ledger.cost_nano) for day in report.days] == [("all models", 1700), ("all models", 700)]


def test_unknown_calls_are_said_and_adjustments_counted(desk: Desk) -> None:
    lost, resolved, absent = (desk.call("unknown") for _ in range(3))
    desk.reconcile([billed(resolved, 450)])
    report = desk.reconcile(numbers(openai([costs("0.00000185", "gpt-4o-mini, all")])))
    (finding,) = report.findings
    assert finding.detail == "cost differ; 2 calls are unknown and count with their upper bound"
    assert finding.ledger_nano == 1400 + 450 + 2 * BOUND
    desk.reconcile([billed(resolved, 450), billed(lost, 0)], covers=DAY, deployments=["small"])
    (day,) = desk.reconcile(numbers(openai([costs("0.00000185", "gpt-4o-mini, all")]))).days
    assert (day.ledger.cost_nano, day.unknown, day.differing()) == (1850, 0, [])
    assert desk.costs()[absent] == 0


def test_another_vendors_calls_are_not_compared(desk: Desk) -> None:
    bucket = {
        "starting_at": "2026-03-04T00:00:00Z",
        "ending_at": "2026-03-05T00:00:00Z",
        "results": [{"model": "claude-haiku-4-5-20251001", "uncached_input_tokens": 10, "output_tokens": 5}],
    }
    report = desk.reconcile(json.dumps({"data": [bucket], "has_more": False}).encode())
    assert report.equal
    assert [(day.model, day.ledger.requests, day.invoice.requests) for day in report.days] == [
        ("claude-haiku-4-5", 1, None)
    ]


def test_named_deployments_are_compared_whole(desk: Desk) -> None:
    content = f"model,day,requests,cost_usd\ngpt-4o-mini,2026-03-04,2,{usd(1400)}\n".encode()
    assert desk.reconcile(content).equal
    report = desk.reconcile(content, deployments=["small", "other"])
    assert [finding.place for finding in report.findings] == ["2026-03-04 claude-haiku-4-5"]


def test_sums_change_nothing_and_cover_nothing(desk: Desk) -> None:
    desk.call("unknown")
    desk.reconcile(openai([usage(1)]))
    assert desk.adjustments() == []
    with pytest.raises(LedgerError, match=r"format openai-usage names no requests.*leave --covers out"):
        desk.reconcile(openai([usage(1)]), covers=DAY)


def test_an_empty_invoice_is_equal_to_nothing(desk: Desk) -> None:
    report = desk.reconcile(b"model,day,cost_usd\n")
    assert (report.lines, report.days, report.equal) == (0, [], True)
