"""What budgets decide along the path: cheaper tiers, limits set in between, thresholds, stopped deployments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support.pipeline import LOG, TEAM, House, deployment, nano, policy

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs.llm_map import run_map
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.attempts.disabled_deployments import stopped_deployments
from airflow_ai_provider.core.ledger.budgets.limits import set_limit
from airflow_ai_provider.core.ledger.budgets.thresholds import Notice
from airflow_ai_provider.core.ledger.call_costs import Rate
from airflow_ai_provider.core.policy import Budget
from airflow_ai_provider.errors import PolicyError
from airflow_ai_provider.testing.vendor import VendorDouble

CHEAP = {"input_per_mtok": 0.15, "output_per_mtok": 0.60}
DEAR = {"input_per_mtok": 1500, "output_per_mtok": 6000}
TIERS = {"simple": ["small"], "complex": ["large"]}


@pytest.fixture
def house(tmp_path: Path, vendor: VendorDouble) -> Iterator[House]:
    made = House(tmp_path, vendor)
    yield made
    assert made.left_over() == (0, 0)


def two_tiers(**changes: Any) -> dict[str, Any]:
    deployments = {"small": deployment(price=CHEAP), "large": deployment(price=DEAR)}
    return policy(deployments=deployments, tiers=TIERS, complexity={"default": "complex"}, limit_usd="0.01", **changes)


def set_by_hand(house: House, budget: Budget) -> None:
    with open_ledger(None, house.settings.home) as ledger, ledger.write() as conn:
        set_limit(conn, budget, clear=False, by="ada", reason="test", now=datetime.now(UTC))


def test_a_row_that_a_dear_tier_has_no_room_for_falls_to_the_cheaper_one(house: House) -> None:
    house.write(two_tiers(over_budget="cheaper"))
    (row,) = house.run(["one"]).rows
    assert (row["status"], row["tier"], row["deployment"]) == ("ok", "simple", "small")


def test_without_being_told_so_it_stops_and_says_how_much_room_it_needed(house: House) -> None:
    house.write(two_tiers())
    outcome = house.run(["one"])
    (row,) = outcome.rows
    assert (row["status"], row["error"]) == ("over_budget", f"over_budget: no room left in budget team={TEAM}/total")
    assert nano(outcome.summary.short_usd) > nano("0.01")
    assert outcome.summary.over_budget_then == "stop"


def test_a_limit_set_by_hand_holds_for_a_run_whose_policy_says_another(house: House) -> None:
    house.write(policy(limit_usd="0"))
    assert house.run(["one"]).column("status") == ["over_budget"]
    set_by_hand(house, Budget(team=TEAM, period="total", limit_usd=Decimal(1)))
    assert house.run(["one"], run_id="run-2").column("status") == ["ok"]
    set_by_hand(house, Budget(route="support", period="day", limit_usd=Decimal(0)))
    outcome = house.run(["two"], run_id="run-3")
    assert outcome.column("error") == ["over_budget: no room left in budget route=support/day"]


def test_a_budget_set_by_hand_is_enough_and_none_at_all_is_refused(house: House) -> None:
    house.write({**policy(), "budgets": []})
    with pytest.raises(PolicyError, match="no budget applies to team 'support'"):
        house.run(["one"])
    set_by_hand(house, Budget(period="month", limit_usd=Decimal(1)))
    assert house.run(["one"]).column("status") == ["ok"]


def test_thresholds_are_told_once_and_a_failing_listener_is_not_the_jobs_failure(house: House) -> None:
    house.write(policy(budgets=[{"team": TEAM, "period": "total", "limit_usd": "0.0001", "thresholds": [1, 2, 100]}]))
    told: list[Notice] = []

    def listen(notice: Notice) -> None:
        told.append(notice)
        raise RuntimeError("the messenger is away")

    job = house.job([f"row {n}" for n in range(12)], batch_rows=3)
    summary = run_map(job, Caller("dag", "run-1", "answer"), house.settings, log=LOG, on_notice=listen)
    assert summary.ok == 12
    assert [notice.percent for notice in told] == [1, 2]
    assert {notice.name for notice in told} == {f"team={TEAM}/total"}


def overcharge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that are not: what a vendor does that counts tokens nobody sent it."""
    monkeypatch.setattr(Rate, "bound", lambda *_, **__: 10)


def test_a_deployment_that_charges_above_its_bound_is_stopped_and_the_next_one_answers(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployments = {"small": deployment(price=CHEAP), "spare": deployment(price=CHEAP, params={"top_p": 0.5})}
    house.write(policy(deployments=deployments, tiers={"simple": ["small", "spare"]}))
    with monkeypatch.context() as patched:
        overcharge(patched)
        assert house.run(["one"]).column("status") == ["ok"], "an answer that is paid for is kept"
    outcome = house.run(["two", "three"], run_id="run-2")
    assert outcome.column("deployment") == ["spare", "spare"]
    with open_ledger(None, house.settings.home) as ledger, ledger.read() as conn:
        (stop,) = stopped_deployments(conn)
    assert (stop["deployment"], stop["over_nano"] > 0) == ("small", True)


def test_where_no_deployment_is_left_rows_say_so_and_give_their_room_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        overcharge(patched)
        house.run(["one"])
    spent = house.spent()
    # Room for one row at a time: a share that is not given back would keep the others waiting.
    house.write(policy(limit_usd=f"{Decimal(spent + 60_000) / 10**9:.9f}"))
    outcome = house.run([f"row {n}" for n in range(5)], run_id="run-2")
    assert Counter(outcome.column("status")) == {"error": 5}
    assert all(error.startswith("deployment_stopped: deployment small is stopped") for error in outcome.column("error"))
