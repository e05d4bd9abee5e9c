"""``approve_over_usd``: when a task asks, what it shows, and what an approval is good for."""

from __future__ import annotations

import csv
import json
import logging
import types
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, TaskAwaitingInput

from airflow_ai_provider.core.policy import load_policy
from airflow_ai_provider.operators import approval
from airflow_ai_provider.operators.approval import APPROVE, REJECT, approval_rule, covers
from airflow_ai_provider.operators.llm import LLMMapOperator
from airflow_ai_provider.operators.shards import shards

POLICY = """\
version: 1
deployments: {offline: {model: offline/extractive, price: {input_per_mtok: 1, output_per_mtok: 2}}}
routes: {r: {tiers: {simple: [offline]}, masking: "off", reuse: {scope: "off"}, max_tokens: MAX}}
budgets: [{team: t, period: day, limit_usd: 5}]
"""
NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)


class Airflow:
    """What Airflow keeps of one task instance over tries and clears: its state, and the first request it showed."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.shown: str | None = None
        self.requests: list[tuple[str, str]] = []

    def put_request(self, context: Any, subject: str, body: str, rule: approval.ApprovalRule) -> str | None:
        self.requests.append((subject, body))
        self.shown = self.shown or body
        return self.shown

    @property
    def context(self) -> Any:
        ti = types.SimpleNamespace(dag_id="d", run_id="run 1", task_id="t", map_index=-1, try_number=1, id="ti")
        store = types.SimpleNamespace(get=self.state.get, set=self.state.__setitem__)
        return {"ti": ti, "run_id": "run 1", "dag_run": None, "task_state_store": store}


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    kept = Airflow()
    monkeypatch.setattr(approval, "_put_request", kept.put_request)
    return kept


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__AI__HOME", str(tmp_path / "ai"))
    monkeypatch.setenv("AIRFLOW__AI__POLICY_PATH", str(tmp_path / "policy.yaml"))
    for option in ("LEDGER_CONN_ID", "CACHE_CONN_ID", "VECTORS_CONN_ID", "KEYRING_CONN_ID", "ARCHIVE_URI"):
        monkeypatch.delenv(f"AIRFLOW__AI__{option}", raising=False)
    write_policy(tmp_path)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *[[f"r{n}", f"question {n}"] for n in range(10)]])
    return tmp_path


def write_policy(home: Path, max_tokens: int = 100) -> None:
    (home / "policy.yaml").write_text(POLICY.replace("MAX", str(max_tokens)))


def task(home: Path, **changes: Any) -> LLMMapOperator:
    arguments: dict[str, Any] = {
        "source": str(home / "rows.csv"),
        "sink": str(home / "answers"),
        "prompt": "{{ text }}",
        "key": "id",
        "team": "t",
        "route": "r",
        "approve_over_usd": 0,
        "batch_rows": 2,
    }
    return LLMMapOperator(task_id="t", **{**arguments, **changes})


def ask(operator: LLMMapOperator, airflow: Airflow) -> dict[str, Any]:
    """Run a task that is to park; returns what it will be resumed with."""
    with pytest.raises(TaskAwaitingInput) as parked:
        operator.run(airflow.context)
    assert parked.value.method_name == "resume_decided"
    assert parked.value.kwargs is not None
    return parked.value.kwargs


def decided(choice: str = APPROVE) -> dict[str, Any]:
    user = {"id": "7", "name": "ada"}
    return {
        "chosen_options": [choice],
        "responded_at": datetime.now(UTC),
        "responded_by_user": user,
        "params_input": {},
    }


def approve(airflow: Airflow, kwargs: dict[str, Any], nano: int) -> None:
    """Keep an approval of what was asked, as an earlier try would have."""
    approved = {"plan": kwargs["asked"]["plan_hash"], "nano": nano, "by": "ada", "at": NOW.isoformat()}
    airflow.state["ai_spend"] = {**airflow.state["ai_spend"], "approved": approved}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"approve_over_usd": "lots"}, "expected an amount in USD"),
        ({"approve_over_usd": -1}, "expected an amount of 0 USD or more"),
        ({"approve_over_usd": float("nan")}, "expected an amount of 0 USD or more"),
        ({"approve_over_usd": 1, "approvers": [""]}, "expected a user's id"),
        ({"approve_over_usd": 1, "approvers": 7}, "approvers: expected ids"),
        ({"approve_over_usd": 1, "approval_timeout": timedelta(0)}, "expected more than nothing"),
        ({"approve_over_usd": None, "approvers": ["ada"]}, "need approve_over_usd"),
        ({"approve_over_usd": None, "approval_timeout": timedelta(1)}, "need approve_over_usd"),
    ],
)
def test_what_is_wrong_in_the_dag_file_is_an_error_there(home: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        task(home, **arguments)


@pytest.mark.parametrize("amount", [Decimal("0.1"), "0.1", 0.1])
def test_an_amount_is_a_decimal_however_it_is_written(amount: Any) -> None:
    rule = approval_rule(amount, "ada")
    assert rule is not None
    assert rule.over_nano == 100_000_000
    assert rule.approvers == [{"id": "ada", "name": "ada"}]
    assert approval_rule(None) is None


def test_a_task_below_the_amount_runs_at_once(home: Path, airflow: Airflow) -> None:
    assert task(home, approve_over_usd=1).run(airflow.context)["ok"] == 10
    assert airflow.requests == []


@pytest.mark.parametrize("decision", ["not needed", "approved before", "decided now"])
def test_a_policy_edited_after_the_plan_does_not_govern_the_run_of_the_plan(
    home: Path, airflow: Airflow, monkeypatch: pytest.MonkeyPatch, decision: str
) -> None:
    """What was planned, and approved, is what is run: one job has one policy."""
    operator = task(home, approve_over_usd=1)
    if decision == "approved before":
        operator = task(home)
        approve(airflow, ask(operator, airflow), nano=1_030_000)
    run = partial(operator.run, airflow.context)
    if decision == "decided now":
        operator = task(home)
        run = partial(operator.resume_decided, airflow.context, event=decided(), **ask(operator, airflow))
    planned = load_policy(home / "policy.yaml").digest
    weigh = approval.whole_nano

    def edit_then_weigh(plan: Any) -> int:
        write_policy(home, max_tokens=100_000)
        return weigh(plan)

    monkeypatch.setattr(approval, "whole_nano", edit_then_weigh)
    assert run()["ok"] == 10
    assert load_policy(home / "policy.yaml").digest != planned
    assert started_under(home) == [planned]


def started_under(home: Path) -> list[str]:
    """Digests of the policies that tasks were started under, by the audit trail."""
    segments = sorted((home / "ai/audit/spool/main").iterdir())
    events = [json.loads(line) for path in segments for line in path.read_text().splitlines()]
    return [event["airflow_ai.policy_hash"] for event in events if event.get("event.action") == "task.started"]


def test_a_dear_task_parks_and_shows_its_plan_without_rows(home: Path, airflow: Airflow) -> None:
    asked = ask(task(home, approval_timeout=timedelta(hours=1)), airflow)["asked"]
    ((subject, body),) = airflow.requests
    assert subject == "t: spend about $0.001030 on 10 calls?"
    assert "| need a call | 10 |" in body
    assert "| budget team=t/day | $4.9990 would be left of $5.0000: fits, even at worst |" in body
    assert "question" not in subject + body
    assert asked["cost_nano"] == 1_030_000
    assert not (home / "answers").exists()


def test_what_all_tries_may_cost_is_shown_as_well(home: Path, airflow: Airflow) -> None:
    ask(task(home, retries=2), airflow)
    ((_, body),) = airflow.requests
    assert " a try, " in body
    assert " in all 3 |" in body


def test_approved_the_task_runs_and_a_retry_does_not_ask_again(home: Path, airflow: Airflow) -> None:
    operator = task(home)
    kwargs = ask(operator, airflow)
    assert operator.resume_decided(airflow.context, event=decided(), **kwargs)["ok"] == 10
    (home / "ai" / "responses.db").unlink()
    assert operator.run(airflow.context)["skipped"] == 10, "finished parts cost nothing, so there is nothing to ask"
    assert len(airflow.requests) == 1


def test_an_approval_is_for_an_amount_and_what_was_spent_counts(
    home: Path, airflow: Airflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    approve(airflow, ask(task(home), airflow), nano=1_030_000)
    monkeypatch.setattr(approval, "_spent_since", lambda settings, caller, since: 103_001)
    ask(task(home), airflow)
    monkeypatch.setattr(approval, "_spent_since", lambda settings, caller, since: 103_000)
    assert task(home).run(airflow.context)["ok"] == 10


def test_a_plan_of_other_work_is_asked_for_anew(home: Path, airflow: Airflow) -> None:
    operator = task(home)
    approve(airflow, ask(operator, airflow), nano=10**9)
    write_policy(home, max_tokens=99)
    ask(operator, airflow)


def test_nobody_approves_what_they_cannot_see(home: Path, airflow: Airflow) -> None:
    operator = task(home)
    ask(operator, airflow)
    write_policy(home, max_tokens=105)
    ask(operator, airflow)  # a little more than what is still shown
    write_policy(home, max_tokens=200)
    with pytest.raises(AirflowFailException, match=r"the plan has grown to \$0.0020.* since this task instance first"):
        operator.run(airflow.context)


def test_a_rejection_fails_for_good(home: Path, airflow: Airflow) -> None:
    operator = task(home)
    kwargs = ask(operator, airflow)
    with pytest.raises(AirflowFailException, match=r"ada rejected the plan at .*: expected \$0.001030, nothing was"):
        operator.resume_decided(airflow.context, event=decided(REJECT), **kwargs)
    ask(operator, airflow)


def test_what_a_task_logs_after_a_decision_is_redacted(
    home: Path, airflow: Airflow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs in a process of its own, which has executed nothing before."""
    operator = task(home)
    kwargs = ask(operator, airflow)
    monkeypatch.setattr(logging.getLogger("airflow_ai_provider"), "handlers", [])
    with pytest.raises(AirflowFailException):
        operator.resume_decided(airflow.context, event=decided(REJECT), **kwargs)
    logging.getLogger("airflow_ai_provider.core.pipeline").warning("sent to %s", "ada.lovelace@example.com")
    assert "sent to [email]" in caplog.text
    assert "lovelace" not in caplog.text


def test_no_decision_in_time_fails_for_good(home: Path, airflow: Airflow) -> None:
    operator = task(home)
    kwargs = ask(operator, airflow)
    event = {"error": "The Human-in-the-loop response timeout has passed", "error_type": "timeout"}
    with pytest.raises(AirflowFailException, match="nobody decided in time"):
        operator.resume_decided(airflow.context, event=event, **kwargs)


def test_more_shards_do_not_get_below_the_amount(home: Path, airflow: Airflow) -> None:
    """The whole source costs 0.00103 USD; each of five shards a fifth of it."""
    for shard in ("0/1", "3/5"):
        ask(task(home, shard=shard, approve_over_usd="0.00102"), airflow)
        airflow.shown = None
    assert task(home, shard="3/5", approve_over_usd="0.00104").run(airflow.context)["rows"] == 2


def test_mapped_tasks_keep_the_rule() -> None:
    with DAG(dag_id="d", schedule=None):
        arguments: dict[str, Any] = dict.fromkeys(("source", "sink", "prompt", "key", "team", "route"), "x")
        mapped = LLMMapOperator.partial(task_id="t", approve_over_usd=3, **arguments).expand(shard=shards(2))
    assert mapped.unmap({"shard": "1/2"}).approval == approval_rule(3)


@pytest.mark.parametrize(("wanted", "enough"), [(100, True), (110, True), (111, False)])
def test_estimates_may_move_a_little(wanted: int, enough: bool) -> None:
    assert covers(100, wanted) is enough
