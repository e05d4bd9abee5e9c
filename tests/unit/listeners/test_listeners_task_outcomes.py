"""The listener: what became of tasks of interest is in the trail, and no task fails or waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.listeners.listener import get_listener_manager
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException
from airflow.utils.state import TaskInstanceState
from support.cli import install

from airflow_ai_provider.core.audit.verify.segment_reader import check_segment
from airflow_ai_provider.hooks.settings import settings_from_airflow
from airflow_ai_provider.listeners import task_outcomes
from airflow_ai_provider.operators.audit import AuditSealOperator
from airflow_ai_provider.operators.cost import CostReportOperator
from airflow_ai_provider.plugins.plugin import AirflowAIPlugin


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch)


@dataclass
class Instance:
    """What the task runner hands to listeners."""

    task: Any
    state: TaskInstanceState = TaskInstanceState.SUCCESS
    dag_id: str = "d"
    run_id: str = "r"
    map_index: int = 3
    try_number: int = 2

    @property
    def task_id(self) -> str:
        return str(self.task.task_id)

    @property
    def start_date(self) -> datetime:
        return datetime.now(UTC) - timedelta(seconds=2)

    def get_template_context(self) -> dict[str, Any]:
        return {"ti": self}


@pytest.fixture
def dag() -> DAG:
    from airflow.providers.standard.operators.empty import EmptyOperator

    with DAG("d", schedule=None) as made:
        CostReportOperator(task_id="ours")
        AuditSealOperator(task_id="seal")
        EmptyOperator(task_id="other")
    return made


def told() -> list[dict[str, Any]]:
    spool = settings_from_airflow().audit_spool()
    seen: list[dict[str, Any]] = []
    for name in spool.names("sealed"):
        data = spool.path(name, "sealed").read_bytes()
        assert check_segment([data], sealed=True, visit=lambda document, body: seen.append(document)).fault is None
    return seen


def test_an_outcome_of_ours_is_told_with_all_its_names(dag: DAG) -> None:
    task_outcomes.on_task_instance_success(TaskInstanceState.RUNNING, Instance(dag.get_task("ours")))
    (event,) = told()
    assert event["event.action"] == "task.outcome"
    assert (event["airflow_ai.state"], event["event.outcome"]) == ("success", "success")
    assert [event[f"airflow_ai.{name}"] for name in ("dag_id", "run_id", "task_id", "map_index", "try_number")] == [
        *("d", "r", "ours", 3, 2)
    ]
    assert event["airflow_ai.operator"] == "CostReportOperator"
    assert 2000 <= event["airflow_ai.duration_ms"] < 60_000


def test_a_failure_names_the_kind_of_error_and_nothing_of_its_text(dag: DAG) -> None:
    task = dag.get_task("ours")
    error = AirflowFailException("SECRET of a row")
    task_outcomes.on_task_instance_failed(None, Instance(task, TaskInstanceState.FAILED), error)
    task_outcomes.on_task_instance_failed(None, Instance(task, TaskInstanceState.UP_FOR_RETRY), "SECRET of a row")
    task_outcomes.on_task_instance_skipped(None, Instance(task, TaskInstanceState.SKIPPED))
    events = told()
    assert "SECRET" not in str(events)
    assert [(event["airflow_ai.state"], event["event.outcome"], event.get("error.type")) for event in events] == [
        ("failed", "failure", "AirflowFailException"),
        ("up_for_retry", "failure", None),
        ("skipped", "success", None),
    ]


@pytest.mark.parametrize(
    ("mode", "task", "state", "heard"),
    [
        ("", "ours", "success", True),
        ("", "other", "success", False),
        ("dags", "other", "failed", True),
        ("off", "ours", "failed", False),
        ("", "seal", "success", False),
        ("", "seal", "failed", True),
        ("dags", "seal", "success", False),
    ],
)
def test_tasks_of_interest(
    dag: DAG, monkeypatch: pytest.MonkeyPatch, mode: str, task: str, state: str, heard: bool
) -> None:
    monkeypatch.setenv("AIRFLOW__AI__AUDIT_OUTCOMES", mode)
    task_outcomes.on_task_instance_failed(None, Instance(dag.get_task(task), TaskInstanceState(state)), None)
    assert bool(told()) is heard


def test_a_dag_without_us_is_no_business_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.standard.operators.empty import EmptyOperator

    monkeypatch.setenv("AIRFLOW__AI__AUDIT_OUTCOMES", "dags")
    with DAG("plain", schedule=None) as plain:
        EmptyOperator(task_id="other")
    task_outcomes.on_task_instance_success(None, Instance(plain.get_task("other")))
    assert told() == []


def test_servers_that_set_states_are_left_out() -> None:
    """The API server hands over rows of its database: there is no spool, and no task of ours, where it runs."""
    task_outcomes.on_task_instance_success(None, object())
    assert told() == []


def test_whatever_goes_wrong_is_a_warning(
    dag: DAG, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    instance = Instance(dag.get_task("ours"))
    monkeypatch.setenv("AIRFLOW__AI__AUDIT_OUTCOMES", "some")
    task_outcomes.on_task_instance_success(None, instance)
    monkeypatch.setenv("AIRFLOW__AI__AUDIT_OUTCOMES", "ours")
    monkeypatch.setenv("AIRFLOW__AI__LEDGER_CONN_ID", "away")
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", "postgres://me:pa55word@127.0.0.1:1/db")
    task_outcomes.on_task_instance_success(None, instance)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ["audit_outcomes 'some'" in messages[0], "LedgerUnavailable" in messages[-1]] == [True, True]
    assert "pa55word" not in str(messages)


def test_airflow_calls_the_listener_of_the_plugin(dag: DAG) -> None:
    """Through Airflow's own manager, with the names of its own specification."""
    manager = get_listener_manager()
    try:
        for listener in AirflowAIPlugin.listeners:
            manager.add_listener(listener)
        manager.hook.on_task_instance_success(
            previous_state=TaskInstanceState.RUNNING, task_instance=Instance(dag.get_task("ours"))
        )
    finally:
        manager.clear()
    assert len(told()) == 1
