"""Thresholds are told once each, over all processes; a deployment that overcharges is stopped for all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from support.ledger import NOW, TASK, attempt, budget, period, settled

from airflow_ai_provider.core.ledger.attempts.attempts import open_attempts, settle
from airflow_ai_provider.core.ledger.attempts.disabled_deployments import resume_deployment, stopped_deployments
from airflow_ai_provider.core.ledger.budgets.holds import take_hold
from airflow_ai_provider.core.ledger.budgets.limits import BudgetPeriod
from airflow_ai_provider.core.ledger.budgets.thresholds import Notice, claim_notices, crossed
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.schema import llm_requests
from airflow_ai_provider.errors import DeploymentStopped, LedgerError

WATCHED = replace(period(100), thresholds=(50, 80, 100))


def spend(ledger: Ledger, cost: int, *, bound: int = 40, watched: BudgetPeriod = WATCHED, **changes: Any) -> None:
    opened = attempt("h1", bound)
    with ledger.write() as conn:
        take_hold(conn, hold_id="h1", owner="me", task=TASK, periods=[watched], amounts=[bound], now=NOW)
        open_attempts(conn, [opened])
        settle(conn, [settled(opened, cost, **changes)], NOW)


def claim(ledger: Ledger) -> list[Notice]:
    with ledger.write() as conn:
        return claim_notices(conn, NOW)


def test_each_threshold_is_told_once_by_whoever_claims_it(ledger: Ledger) -> None:
    spend(ledger, 40)
    assert claim(ledger) == []
    spend(ledger, 40)
    told = claim(ledger)
    assert [(notice.percent, notice.spent_nano, notice.name) for notice in told] == [
        (50, 80, "team=support/day"),
        (80, 80, "team=support/day"),
    ]
    spend(ledger, 20, bound=20)
    assert [notice.percent for notice in claim(ledger)] == [100]
    assert claim(ledger) == []


def test_a_raised_limit_does_not_tell_again(ledger: Ledger) -> None:
    spend(ledger, 40)
    spend(ledger, 20)
    assert [notice.percent for notice in claim(ledger)] == [50]
    raised = replace(WATCHED, limit_nano=1000)
    spend(ledger, 40, watched=raised)
    assert claim(ledger) == []
    spend(ledger, 800, bound=800, watched=raised)
    assert [notice.percent for notice in claim(ledger)] == [80]


@given(
    st.lists(st.integers(1, 100), max_size=5).map(sorted).map(tuple),
    st.lists(st.integers(0, 60), max_size=20),
    st.integers(1, 300),
)
def test_no_threshold_is_missed_or_repeated(thresholds: tuple[int, ...], steps: list[int], limit: int) -> None:
    noticed, spent, told = 0, 0, []
    for step in steps:
        spent += step
        found = crossed(thresholds, noticed=noticed, spent_nano=spent, limit_nano=limit)
        noticed = max([noticed, *found])
        told += found
    assert told == [percent for percent in thresholds if spent * 100 >= percent * limit]


def test_a_deployment_that_charges_above_its_bound_is_recorded_and_stopped(ledger: Ledger) -> None:
    spend(ledger, 55, bound=40)
    with ledger.read() as conn:
        (stop,) = stopped_deployments(conn)
        assert conn.execute(select(llm_requests.c.cost_nano)).scalar_one() == 55
    assert (stop["deployment"], stop["over_nano"]) == ("small", 15)
    assert budget(ledger) == (100, 55, 0)
    with pytest.raises(DeploymentStopped, match="airflow ai deployments resume small"):
        spend(ledger, 1)
    assert budget(ledger) == (100, 55, 0), "the refused attempt's hold went with its transaction"
    with ledger.write() as conn:
        resume_deployment(conn, "small")
    spend(ledger, 1)
    with pytest.raises(LedgerError, match="not stopped; stopped are: none"), ledger.write() as conn:
        resume_deployment(conn, "small")
