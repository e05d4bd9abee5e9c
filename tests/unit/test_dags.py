"""The example DAGs parse, and are wired so that nothing fails unseen."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG

import airflow_ai_provider

DAGS = Path(airflow_ai_provider.__path__[0]).parent / "dags"


@pytest.fixture(scope="module")
def bag() -> DagBag:
    return DagBag(DAGS)


@pytest.fixture
def support(bag: DagBag) -> DAG:
    return bag.dags["customer_support"]


def test_every_example_parses(bag: DagBag) -> None:
    assert bag.import_errors == {}
    assert bag.dags


def test_every_example_says_what_it_does(bag: DagBag) -> None:
    assert all(dag.doc_md for dag in bag.dags.values())


def test_only_maintenance_runs_by_itself_and_never_catches_up(bag: DagBag) -> None:
    scheduled = {dag.dag_id: dag for dag in bag.dags.values() if dag.schedule is not None}
    assert set(scheduled) == {"ai_audit_seal", "ai_audit_verify", "ai_holds_sweep", "ai_ledger_upkeep"}
    assert not any(dag.catchup for dag in scheduled.values())
    assert {dag.max_active_runs for dag in scheduled.values()} == {1}


def test_its_sample_files_are_there(support: DAG) -> None:
    assert Path(support.params["input"]).is_file()
    assert Path(support.get_task("sync_knowledge").source).is_dir()
    assert Path(support.get_task("answer").partial_kwargs["prompt"].removeprefix("file:")).is_file()


def test_a_failed_answer_fails_the_run(support: DAG) -> None:
    """Leaves decide a run's state: one of them must not run whatever happened before it."""
    leaves = {task.task_id: task.trigger_rule for task in support.leaves}
    assert leaves["gather_answers"] == "all_success"
    assert "gather_answers" in support.get_task("answer").downstream_task_ids


def test_the_trail_is_sealed_whatever_happened(support: DAG) -> None:
    assert support.get_task("seal_audit").trigger_rule == "all_done"
    assert "seal_audit" in support.get_task("answer").downstream_task_ids
