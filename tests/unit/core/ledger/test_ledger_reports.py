"""Costs by any grouping: the rollup and the requests give the same figures, on both databases."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import update
from support.ledger import NOW, adjust, item, request, written

from airflow_ai_provider.core.ledger.attempts.attempts import Request
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.maintenance.upkeep import maintain
from airflow_ai_provider.core.ledger.reports.costs import (
    GROUPINGS,
    budget_report,
    cost_report,
    forecast,
    most_expensive,
    rows_since,
    total,
)
from airflow_ai_provider.core.ledger.schema import llm_budgets

SUNDAY = datetime(2026, 3, 1, 23, 59, 59, 999_000, tzinfo=UTC)


def asked(team: str, model: str = "openai/gpt-4o-mini", task: str = "answer", tier: str = "simple") -> Request:
    ref = TaskRef(team, f"{team}_dag", "run 1", task, -1, 1)
    return Request("r", ref, "k", f"{team}_route", tier, "small", model, model.partition("/")[0], "p")


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    sales = asked("sales", "azure/gpt-4o/eu", task="write", tier="complex")
    ok, lost, *_ = written(
        ledger,
        item(NOW, 700, usage=Usage(100, 20), baseline_nano=9000),
        item(NOW, 1000, status="unknown", usage=None),
        item(NOW, 500, status="unknown", usage=None),
        item(NOW, 0, status="error", usage=Usage(0, 0)),
        item(NOW, 0, status="reused", usage=Usage(0, 0), saved_nano=700),
    )
    written(ledger, item(SUNDAY, 10, request=sales), item(SUNDAY + timedelta(seconds=1), 20, request=sales))
    adjust(ledger, lost, -990, input_tokens=40)
    adjust(ledger, ok, 5)
    return ledger


@pytest.mark.parametrize("by", [name for name, grouping in GROUPINGS.items() if grouping.daily])
def test_the_rollup_and_the_requests_agree(filled: Ledger, by: str) -> None:
    """A period that begins at a moment is read from the requests."""
    from_rollup = cost_report(filled, by=[by], since=date(2026, 2, 1), until=NOW.date())
    from_requests = cost_report(filled, by=[by], since=datetime(2026, 2, 1, tzinfo=UTC), until=NOW.date())
    assert from_rollup == from_requests
    assert total(from_rollup)["cost_usd"] == Decimal("0.000001245")
    assert total(from_rollup)["unknown"] == 1


GROUPS = [
    ("hour", ["2026-03-01 23:00", "2026-03-02 00:00", "2026-03-04 12:00"]),
    ("day", [date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 4)]),
    ("week", [date(2026, 2, 23), date(2026, 3, 2)]),
    ("month", ["2026-03"]),
    ("team", ["sales", "support"]),
    ("dag", ["dag", "sales_dag"]),
    ("task", ["answer", "write"]),
    ("run", ["run", "run 1"]),
    ("model", ["azure/gpt-4o/eu", "openai/gpt-4o-mini"]),
    ("provider", ["azure", "openai"]),
    ("route", ["sales_route", "support"]),
    ("tier", ["complex", "simple"]),
    ("deployment", ["small"]),
]


@pytest.mark.parametrize(("by", "groups"), GROUPS)
def test_every_grouping_names_its_groups(filled: Ledger, by: str, groups: list[object]) -> None:
    rows = cost_report(filled, by=[by])
    assert [row[by] for row in rows] == groups
    assert total(rows)["requests"] == 7
    assert {name for name, _ in GROUPS} == set(GROUPINGS)


def test_savings_by_routing_are_the_baseline_less_the_cost(filled: Ledger) -> None:
    (row,) = cost_report(filled, by=["team"], since=date(2026, 3, 4))
    assert row["baseline_usd"] == Decimal("0.000009")
    assert row["routing_saved_usd"] == row["baseline_usd"] - row["cost_usd"] == Decimal("0.000007785")
    assert cost_report(filled, by=["team"], until=date(2026, 3, 2))[0]["routing_saved_usd"] == 0


def test_a_period_begins_and_ends_with_its_days(filled: Ledger) -> None:
    for by in (["team"], ["team", "task"]):
        rows = cost_report(filled, by=by, since=date(2026, 3, 1), until=date(2026, 3, 1))
        assert [row["cost_usd"] for row in rows] == [Decimal("0.00000001")]
    assert cost_report(filled, by=["task"], since=NOW + timedelta(seconds=1)) == []


def test_the_dearest_come_first(filled: Ledger) -> None:
    rows = cost_report(filled, by=["team", "day"])
    assert [row["team"] for row in most_expensive(rows, 2)] == ["support", "sales"]
    assert most_expensive(rows, 2)[1]["day"] == date(2026, 3, 2)


def test_a_report_says_from_when_on_rows_are_kept(filled: Ledger) -> None:
    assert rows_since(filled, ["task"]) is None
    written(filled, item(datetime(2025, 11, 30, tzinfo=UTC), request=request()))
    maintain(filled, now=NOW, keep_months=1)
    kept = rows_since(filled, ["task"])
    assert kept
    assert date(2026, 2, 1) <= kept <= date(2026, 3, 1)
    assert rows_since(filled, ["team", "week"]) is None


def test_open_budgets_come_with_what_they_will_have_spent(filled: Ledger) -> None:
    start = datetime(2026, 3, 4, tzinfo=UTC)
    with filled.write() as conn:
        conn.execute(update(llm_budgets).values(starts_at=start, ends_at=start + timedelta(days=1)))
    (row,) = budget_report(filled, now=NOW)
    assert row["forecast_usd"] == 2 * row["spent"]
    assert budget_report(filled, now=NOW + timedelta(days=1)) == []
    assert "forecast_usd" not in budget_report(filled)[0]


@pytest.mark.parametrize(
    ("starts", "ends", "expected"),
    [(-10, 90, 1000), (-1, 0, None), (1, 2, None), (-1, 10_000, None), (None, 1, None), (-1, None, None)],
)
def test_a_forecast_goes_on_as_before_and_keeps_silent_where_it_cannot_know(
    starts: int | None, ends: int | None, expected: int | None
) -> None:
    moments = [None if hours is None else NOW + timedelta(hours=hours) for hours in (starts, ends)]
    assert forecast(100, moments[0], moments[1], NOW) == expected
