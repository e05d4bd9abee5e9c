"""Budgets as Airflow sees them: waiting without a worker, thresholds to notifiers, holds of tasks that are over."""

from __future__ import annotations

import asyncio
import json
import types
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from sqlalchemy import select, update

from airflow_ai_provider.core.administration.budgets import resume_deployment, set_budget, usd
from airflow_ai_provider.core.administration.people import current_person
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, Request, open_attempts
from airflow_ai_provider.core.ledger.attempts.disabled_deployments import stop_deployment, stopped_deployments
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef, take_hold
from airflow_ai_provider.core.ledger.budgets.limits import BudgetPeriod, limit_history
from airflow_ai_provider.core.ledger.schema import llm_budgets, llm_holds, llm_requests
from airflow_ai_provider.core.policy import Budget
from airflow_ai_provider.hooks.settings import settings_from_airflow
from airflow_ai_provider.operators.budgets import SweepHoldsOperator
from airflow_ai_provider.operators.llm import LLMMapOperator
from airflow_ai_provider.sensors.budget import BudgetSensor
from airflow_ai_provider.triggers.budget import BudgetTrigger

POLICY = """\
version: 1
deployments: {offline: {model: offline/extractive, price: {input_per_mtok: 1000, output_per_mtok: 2000}}}
routes:
  support: {tiers: {simple: [offline]}, masking: "off", over_budget: wait, max_tokens: 100}
budgets: [{team: support, period: total, limit_usd: LIMIT, thresholds: [10, 50]}]
"""
ADA = current_person("ada")
SUPPORT = Budget(team="support", period="total", limit_usd=Decimal(100))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__AI__HOME", str(tmp_path / "ai"))
    monkeypatch.setenv("AIRFLOW__AI__POLICY_PATH", str(tmp_path / "policy.yaml"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": n, "text": f"row {n}"}) + "\n" for n in range(4)))
    limit(tmp_path, "100")
    return tmp_path


def limit(home: Path, amount: str) -> None:
    (home / "policy.yaml").write_text(POLICY.replace("LIMIT", amount))


def context(**changes: Any) -> Any:
    ti = types.SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=None, try_number=1, **changes)
    return {"ti": ti, "run_id": "r", "dag_run": None}


def answer(home: Path, **changes: Any) -> LLMMapOperator:
    places = {"source": str(home / "rows.jsonl"), "sink": str(home / "out"), "prompt": "{{ text }}", "key": "id"}
    return LLMMapOperator(task_id="answer", **{**places, "team": "support", "route": "support", **changes})


def raise_limit(amount: int) -> None:
    raised = SUPPORT.model_copy(update={"limit_usd": Decimal(amount)})
    set_budget(settings_from_airflow(), raised, clear=False, caller=ADA, reason="month end")


def trigger_of(deferred: TaskDeferred) -> BudgetTrigger:
    place, arguments = deferred.trigger.serialize()
    assert place == "airflow_ai_provider.triggers.budget.BudgetTrigger"
    return BudgetTrigger(**json.loads(json.dumps(arguments)))


async def first_event(trigger: BudgetTrigger) -> Mapping[str, Any]:
    async for event in trigger.run():
        return event.payload  # type: ignore[no-any-return]
    raise AssertionError("the trigger ended without an event")


def test_a_route_that_waits_leaves_the_worker_and_goes_on_when_there_is_room(home: Path) -> None:
    limit(home, "0.32")  # a row holds about 0.3 USD, and costs a tenth of it
    with pytest.raises(TaskDeferred) as deferred:
        answer(home).execute(context())
    assert (deferred.value.method_name, deferred.value.timeout) == ("resume", timedelta(days=1))
    trigger = trigger_of(deferred.value)
    assert not trigger.has_room()
    spent = Decimal(deferred.value.kwargs["cost_usd"])  # type: ignore[index]
    assert spent > 0, "what fitted was answered first"
    raise_limit(50)
    assert asyncio.run(first_event(trigger)) == {"status": "room"}
    summary = answer(home).resume(context(), {"status": "room"}, **(deferred.value.kwargs or {}))
    assert (summary["ok"], summary["over_budget"]) == (4, 0)
    with open_ledger(None, home / "ai") as ledger, ledger.read() as conn:
        paid = sum(conn.execute(select(llm_requests.c.cost_nano)).scalars())
    assert Decimal(summary["cost_usd"]) == Decimal(paid) / 10**9, "both passes are in the task's own summary"


def test_a_wait_that_ends_otherwise_fails_the_task_with_its_reason(home: Path) -> None:
    with pytest.raises(AirflowFailException, match="no budget applies"):
        answer(home).resume(context(), {"status": "error", "message": "no budget applies"}, cost_usd="0")


def test_thresholds_reach_notifiers_with_the_budget_in_their_context(home: Path) -> None:
    limit(home, "1")
    heard: list[Any] = []
    answer(home, on_budget_threshold=heard.append).execute(context())
    assert [(c["budget"]["name"], c["budget"]["percent"]) for c in heard] == [("team=support/total", 10)]
    assert heard[0]["run_id"] == "r"
    assert Decimal(heard[0]["budget"]["limit_usd"]) == 1


def test_a_sensor_goes_on_at_once_where_there_is_room() -> None:
    BudgetSensor(task_id="s", team="support", route="support", room_usd="99.5").execute(context())


async def test_a_sensor_waits_in_the_triggerer(home: Path) -> None:
    limit(home, "5")
    occupy(home, nano=3 * 10**9)
    sensor = BudgetSensor(task_id="s", team="support", route="support", room_usd=4, poke_interval=0.01)
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(context())
    trigger = trigger_of(deferred.value)
    assert not trigger.has_room()
    raise_limit(8)
    assert await first_event(trigger) == {"status": "room"}
    sensor.resume(context(), {"status": "room"})
    assert BudgetSensor(task_id="p", team="support", route="support", room_usd=4, deferrable=False).poke(context())


def test_a_sum_that_no_limit_has_room_for_fails_at_once() -> None:
    with pytest.raises(AirflowFailException, match=r"limit is \$100; room for \$101 will never be there"):
        BudgetSensor(task_id="s", team="support", route="support", room_usd=101).execute(context())
    with pytest.raises(AirflowFailException, match="room_usd 'much': expected an amount in USD"):
        BudgetSensor(task_id="s", team="support", route="support", room_usd="much").execute(context())


async def test_a_trigger_says_what_will_not_change_by_waiting() -> None:
    trigger = BudgetTrigger(team="other", dag_id="d", run_id="r", route="support", wanted_nano=1)
    event = await first_event(trigger)
    assert event["status"] == "error"
    assert "no budget applies to team 'other'" in event["message"]


@pytest.mark.parametrize("text", ["-1", "1e-10", "nan", "inf", "ten"])
def test_an_amount_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected an amount in USD"):
        usd(text)


def occupy(home: Path, *, nano: int, map_index: int = -1, silent: timedelta = timedelta()) -> None:
    """Hold room as a task's process does, one call of it open, and fall silent."""
    task = TaskRef("support", "d", "r", "answer", map_index, 1)
    period = BudgetPeriod("team=support/total@total", "team=support/total", "total", "total", 5 * 10**9)
    hold_id, then = f"h{map_index}", datetime.now(UTC) - silent
    with open_ledger(None, home / "ai") as ledger, ledger.write() as conn:
        take_hold(conn, hold_id=hold_id, owner=hold_id, task=task, periods=[period], amounts=[nano], now=then)
        names = ("support", "simple", "offline", "offline/extractive", "offline", "policy-1")
        request = Request(f"req{map_index}", task, "row", *names)
        open_attempts(conn, [OpenAttempt(f"att{map_index}", hold_id, nano // 2, then, request)])
        conn.execute(update(llm_holds).where(llm_holds.c.hold_id == hold_id).values(renewed_at=then))


def states(answers: Mapping[str, str | None]) -> Any:
    """Airflow's answer to what became of tasks, by name as its API writes them."""
    return lambda dag_id, task_ids, run_ids, map_index=None: {run_ids[0]: dict(answers)}


def test_a_sweep_settles_what_tasks_that_are_over_left_and_nothing_else(home: Path) -> None:
    long = timedelta(minutes=5)
    occupy(home, nano=100, silent=long)
    occupy(home, nano=200, map_index=0, silent=long)
    occupy(home, nano=400, map_index=1)
    occupy(home, nano=800, map_index=2, silent=long)
    airflow = states({"answer": "failed", "answer_0": "running", "answer_1": "failed"})
    swept = SweepHoldsOperator(task_id="sweep").execute(context(get_task_states=airflow))
    assert swept == {"silent": 3, "over": 1, "holds": 1, "captured": 1, "captured_usd": "0.00000005"}
    with open_ledger(None, home / "ai") as ledger, ledger.read() as conn:
        (budget,) = conn.execute(select(llm_budgets)).mappings()
        held = set(conn.execute(select(llm_holds.c.hold_id)).scalars())
    assert (budget["spent_nano"], budget["held_nano"]) == (50, 1400)
    assert held == {"h0", "h1", "h2"}, "one runs, one was heard of a moment ago, one nobody knows for long enough"
    again = SweepHoldsOperator(task_id="sweep").execute(context(get_task_states=airflow))
    assert (again["over"], again["captured"]) == (0, 0)
    assert "holds.swept" in trail_of(home)
    assert trail_of(home).count('"llm.call"') == 1


def test_a_limit_set_by_hand_is_in_the_trail_and_the_history_with_name_and_reason(home: Path) -> None:
    raise_limit(50)
    with open_ledger(None, home / "ai") as ledger, ledger.read() as conn:
        (change,) = limit_history(conn)
    assert (change["set_by"], change["reason"], change["limit_nano"]) == ("ada", "month end", 50 * 10**9)
    said = trail_of(home)
    assert '"budget.changed"' in said
    assert '"ada"' in said
    assert "month end" in said


def test_resuming_a_stopped_deployment_is_in_the_trail(home: Path) -> None:
    with open_ledger(None, home / "ai") as ledger, ledger.write() as conn:
        stop_deployment(conn, "offline", attempt_id="a", over_nano=1, now=datetime.now(UTC))
    resume_deployment(settings_from_airflow(), "offline", caller=ADA, reason="price corrected")
    with open_ledger(None, home / "ai") as ledger, ledger.read() as conn:
        assert stopped_deployments(conn) == []
    assert '"deployment.resumed"' in trail_of(home)


def trail_of(home: Path) -> str:
    return "".join(path.read_text() for path in sorted((home / "ai" / "audit" / "spool").rglob("*")) if path.is_file())
