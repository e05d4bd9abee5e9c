"""Limits: the policy's until somebody sets another, by name and for a reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import select
from support.ledger import NOW, TASK, budget

from airflow_ai_provider.core.ledger.budgets.holds import Grant, ensure_budgets, take_hold
from airflow_ai_provider.core.ledger.budgets.limits import (
    LimitChange,
    budget_period,
    budgets_in_force,
    limit_history,
    planned_change,
    set_limit,
)
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.schema import llm_budgets
from airflow_ai_provider.core.policy import Budget
from airflow_ai_provider.core.policy.loading import PolicyFile
from airflow_ai_provider.errors import LedgerError

POLICY = Budget(team="support", period="day", limit_usd=Decimal(100))


def usd(amount: int) -> Budget:
    return POLICY.model_copy(update={"limit_usd": Decimal(amount)})


def hold(
    ledger: Ledger, *of_policy: Budget, hold_id: str = "h1", now: datetime = NOW, read_at: datetime | None = None
) -> Grant:
    with ledger.write() as conn:
        periods = [
            budget_period(budget, now=now, dag_id="dag", run_id="run", source=source)
            for budget, source in budgets_in_force(conn, of_policy, read_at)
        ]
        return take_hold(conn, hold_id=hold_id, owner="me", task=TASK, periods=periods, amounts=[1], now=now)


def set_by_hand(ledger: Ledger, budget: Budget, *, clear: bool = False, by: str = "ada") -> LimitChange:
    with ledger.write() as conn:
        return set_limit(conn, budget, clear=clear, by=by, reason="month end", now=NOW)


def limits(ledger: Ledger) -> dict[str, int]:
    """USD by budget id."""
    with ledger.read() as conn:
        return {r.budget_id: r.limit_nano // 10**9 for r in conn.execute(select(llm_budgets))}


def test_a_limit_set_by_hand_goes_before_the_policy_at_once_and_in_later_periods(ledger: Ledger) -> None:
    hold(ledger, POLICY)
    assert set_by_hand(ledger, usd(7)) == LimitChange("team=support/day", "day", None, 7 * 10**9)
    assert limits(ledger) == {"team=support/day@2026-03-04": 7}
    hold(ledger, POLICY, hold_id="h2")
    hold(ledger, POLICY, hold_id="h3", now=NOW + timedelta(days=1))
    assert limits(ledger) == {"team=support/day@2026-03-04": 7, "team=support/day@2026-03-05": 7}


def test_clearing_gives_the_budget_back_to_the_policy(ledger: Ledger) -> None:
    set_by_hand(ledger, usd(7))
    hold(ledger, POLICY)
    set_by_hand(ledger, POLICY, clear=True)
    hold(ledger, POLICY, hold_id="h2")
    assert limits(ledger) == {"team=support/day@2026-03-04": 100}
    with pytest.raises(LedgerError, match="no limit was set by hand"):
        set_by_hand(ledger, POLICY, clear=True)


def test_a_period_that_is_over_keeps_its_limit(ledger: Ledger) -> None:
    hold(ledger, POLICY, now=NOW - timedelta(days=2))
    hold(ledger, POLICY, hold_id="h2")
    set_by_hand(ledger, usd(7))
    assert limits(ledger) == {"team=support/day@2026-03-02": 100, "team=support/day@2026-03-04": 7}


def test_a_budget_can_be_made_by_hand_alone(ledger: Ledger) -> None:
    monthly = Budget(dag="nightly", period="month", limit_usd=Decimal(3), timezone="Asia/Shanghai")
    set_by_hand(ledger, monthly)
    with ledger.read() as conn:
        (made,) = [pair for pair in budgets_in_force(conn, [POLICY]) if pair[1] == "cli"]
    assert made == (monthly, "cli")


def test_the_history_says_who_and_why_for_both_sources(ledger: Ledger) -> None:
    hold(ledger, POLICY)
    hold(ledger, POLICY, hold_id="h2")
    set_by_hand(ledger, usd(7))
    set_by_hand(ledger, POLICY, clear=True, by="bob")
    assert hold(ledger, usd(200), hold_id="h3").limit_changes == (
        LimitChange("team=support/day", "day", 100 * 10**9, 200 * 10**9),
    )
    with ledger.read() as conn:
        told = [(c["source"], c["set_by"], c["limit_nano"]) for c in limit_history(conn, "team=support/day")]
    assert told == [
        ("policy", "policy", 200 * 10**9),
        ("cli", "bob", None),
        ("cli", "ada", 7 * 10**9),
        ("policy", "policy", 100 * 10**9),
    ]


def test_a_later_limit_holds_for_tasks_of_the_same_file_alone(ledger: Ledger) -> None:
    """A task that was made to read a file elsewhere raises no limit for those that run already."""
    earlier = NOW - timedelta(minutes=1)
    files = {name: PolicyFile(Path(f"/{name}/policy.yaml"), name * 64) for name in "ab"}

    def said(name: str, amount: int) -> None:
        with ledger.write() as conn:
            period = budget_period(usd(amount), now=NOW, dag_id="dag", run_id="run", stated_in=files[name])
            ensure_budgets(conn, [period], NOW)

    def in_force(name: str) -> int:
        with ledger.read() as conn:
            ((found, _),) = budgets_in_force(conn, [POLICY], earlier, lambda _: files[name])
            return int(found.limit_usd)

    said("a", 100)
    said("b", 9000)
    assert (in_force("a"), in_force("b")) == (100, 9000)
    said("a", 50)
    assert (in_force("a"), in_force("b")) == (50, 9000)
    with ledger.read() as conn:
        told = [(row["limit_nano"] // 10**9, row["policy_path"], row["policy_hash"][0]) for row in limit_history(conn)]
    assert told == [(50, "/a/policy.yaml", "a"), (9000, "/b/policy.yaml", "b"), (100, "/a/policy.yaml", "a")]


@pytest.mark.parametrize(("by", "reason"), [("", "why"), ("ada", " ")])
def test_nobody_sets_a_limit_without_a_name_and_a_reason(ledger: Ledger, by: str, reason: str) -> None:
    with pytest.raises(LedgerError, match="--by and --reason must not be empty"), ledger.write() as conn:
        set_limit(conn, usd(7), clear=False, by=by, reason=reason, now=NOW)


def test_a_lower_limit_takes_nothing_back_and_stops_new_holds(ledger: Ledger) -> None:
    hold(ledger, POLICY)
    set_by_hand(ledger, usd(0))
    assert hold(ledger, POLICY, hold_id="h2").granted == 0
    assert budget(ledger) == (0, 0, 1)


def test_without_any_budget_nothing_is_held(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no budget applies"):
        hold(ledger)


def test_the_bounds_of_a_period_follow_its_time_zone() -> None:
    berlin = replace_zone(POLICY, "Europe/Berlin")
    day = budget_period(berlin, now=datetime(2026, 3, 29, 12, tzinfo=UTC), dag_id="d", run_id="r")
    assert (day.starts_at, day.ends_at) == (
        datetime(2026, 3, 28, 23, tzinfo=UTC),
        datetime(2026, 3, 29, 22, tzinfo=UTC),
    ), "23 hours: the clocks go forward"
    assert day.budget_id == "team=support/day[Europe/Berlin]@2026-03-29"
    month = budget_period(
        berlin.model_copy(update={"period": "month"}),
        now=datetime(2026, 12, 31, 23, 30, tzinfo=UTC),
        dag_id="",
        run_id="",
    )
    assert month.period_start == "2027-01-01"
    assert month.ends_at == datetime(2027, 1, 31, 23, tzinfo=UTC)
    week = budget_period(berlin.model_copy(update={"period": "week"}), now=NOW, dag_id="", run_id="")
    assert week.period_start == "2026-03-02"
    run = budget_period(berlin.model_copy(update={"period": "run"}), now=NOW, dag_id="d", run_id="r")
    assert (run.period_start, run.starts_at, run.ends_at) == ("d/r", None, None)


def replace_zone(budget: Budget, zone: str) -> Budget:
    return Budget(**{**budget.model_dump(), "timezone": zone})


@pytest.mark.parametrize(("by", "reason"), [("a" * 201, "short"), ("ada", "r" * 501)])
def test_what_the_history_cannot_keep_is_refused_before_anything_is_said_of_it(
    ledger: Ledger, by: str, reason: str
) -> None:
    with ledger.read() as conn, pytest.raises(LedgerError, match="at most"):
        planned_change(conn, usd(7), clear=False, by=by, reason=reason)


def test_a_run_that_read_an_older_policy_does_not_set_its_limit_back(ledger: Ledger) -> None:
    """Nor does it go on up to the old limit."""
    before, after = NOW - timedelta(hours=1), NOW + timedelta(hours=1)
    hold(ledger, usd(100), hold_id="old", read_at=before)
    for _ in range(3):
        hold(ledger, usd(50), hold_id="new", now=after, read_at=NOW + timedelta(minutes=59))
        hold(ledger, usd(100), hold_id="old", now=after, read_at=before)
        assert limits(ledger) == {"team=support/day@2026-03-04": 50}
    with ledger.read() as conn:
        assert [change["limit_nano"] // 10**9 for change in limit_history(conn)] == [50, 100]
