"""``approve_over_usd`` in real DAG runs: a dear task waits, people answer through Airflow's API, and money follows."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.airflow_home import make_home, run_in

DAG_FILE = """
from datetime import timedelta
from pathlib import Path
from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException
from airflow_ai_provider.operators.llm import LLMMapOperator
from airflow_ai_provider.operators.shards import shards

HOME = Path(__file__).parent.parent
SINK = "{{ params.home }}/answers/{{ dag.dag_id }}/{{ macros.ai.run_folder(run_id) }}"
PARAMS = {"home": str(HOME)}
ASK = {"source": "{{ params.home }}/rows.csv", "key": "id", "team": "t", "route": "r", "sink": SINK, "batch_rows": 2}
PROMPT = "<context>Cards arrive in five days.</context><question>{{ text }}</question>"
RETRY = {"retries": 1, "retry_delay": timedelta(0)}


class FailsOnce(LLMMapOperator):
    def make_job(self, context):
        marker = HOME / "decided"
        if context["task_state_store"].get("ai_spend", {}).get("approved") and not marker.exists():
            marker.touch()
            raise AirflowException("the worker had a bad moment")
        return super().make_job(context)


@dag(schedule=None, params=PARAMS)
def approved():
    LLMMapOperator.partial(task_id="ask", prompt=PROMPT, approve_over_usd="0.000001", **ASK).expand(shard=shards(2))


@dag(schedule=None, params=PARAMS)
def decorated():
    @task.llm_map(approve_over_usd=0, approvers=["boss"], **ASK)
    def ask(row):
        return f"<context>Cards come by post.</context><question>{row['text']}</question>"

    ask()


@dag(schedule=None, params=PARAMS)
def rejected():
    LLMMapOperator(task_id="ask", prompt=PROMPT + " no", approve_over_usd=0, **ASK, **RETRY)


@dag(schedule=None, params=PARAMS)
def too_late():
    wait = timedelta(seconds=1)
    LLMMapOperator(task_id="ask", prompt=PROMPT + " late", approve_over_usd=0, approval_timeout=wait, **ASK, **RETRY)


@dag(schedule=None, params=PARAMS)
def retried():
    FailsOnce(task_id="ask", prompt=PROMPT + " again", approve_over_usd=0, **ASK, **RETRY)


@dag(schedule=None, params=PARAMS)
def cheap():
    LLMMapOperator(task_id="ask", prompt=PROMPT + " cheap", approve_over_usd=5, **ASK)


approved(), decorated(), rejected(), too_late(), retried(), cheap()
"""
POLICY = """\
version: 1
deployments: {offline: {model: offline/extractive, price: {input_per_mtok: 1, output_per_mtok: 2}}}
routes: {r: {tiers: {simple: [offline]}, masking: "off"}}
budgets: [{team: t, period: day, limit_usd: 5}]
"""
RUN = """
import json, os, sys, threading, time, types, logging
from pathlib import Path
from airflow.utils.db import initdb
initdb()
from airflow.dag_processing.dagbag import DagBag
from airflow.api_fastapi.app import create_app, get_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from fastapi.testclient import TestClient

bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
assert not bag.import_errors, bag.import_errors
app = create_app()
users = {name: SimpleAuthManagerUser(username=name, role=role) for name, role in (("boss", "user"), ("eve", "user"))}
tokens = {name: get_auth_manager().generate_jwt(user) for name, user in users.items()}
client = TestClient(app)
seen, refused, done = [], [], threading.Event()

def call(method, path, who="boss", **kwargs):
    return getattr(client, method)(f"/api/v2/dags/{path}", headers={"Authorization": f"Bearer {tokens[who]}"}, **kwargs)

def respond():
    while not done.wait(0.2):
        found = call("get", "~/dagRuns/~/hitlDetails?response_received=false").json()["hitl_details"]
        for detail in found:
            ti = detail["task_instance"]
            if ti["state"] != "awaiting_input":
                continue
            seen.append({"dag": ti["dag_id"], "map_index": ti["map_index"], "subject": detail["subject"],
                         "body": detail["body"], "options": detail["options"], "try": ti["try_number"]})
            place = f"{ti['dag_id']}/dagRuns/{ti['dag_run_id']}/taskInstances/ask/{ti['map_index']}/hitlDetails"
            if ti["dag_id"] == "too_late":
                time.sleep(1.1)
                SchedulerJobRunner.check_awaiting_input_timeouts(types.SimpleNamespace(log=logging.getLogger("sweep")))
                continue
            if ti["dag_id"] == "decorated":
                refused.append(call("patch", place, "eve", json={"chosen_options": ["Approve"]}).status_code)
            choice = "Reject" if ti["dag_id"] == "rejected" else "Approve"
            answer = call("patch", place, json={"chosen_options": [choice], "params_input": {}})
            assert answer.status_code == 200, answer.text

threading.Thread(target=respond, daemon=True).start()
states = {}
for name in ("approved", "decorated", "rejected", "too_late", "retried", "cheap"):
    run = bag.dags[name].test()
    with create_session() as session:
        tis = session.query(TaskInstance).filter_by(dag_id=name).all()
        states[name] = {"run": str(run.state), "tries": [ti.try_number for ti in tis]}
done.set()
Path(sys.argv[1]).write_text(json.dumps({"seen": seen, "states": states, "refused": refused}))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("approval")
    texts = [f"secret-{number}: when does my card come?" for number in range(6)]
    make_home(home, dags=DAG_FILE, policy=POLICY, texts=texts)
    run_in(home, RUN, str(home / "found.json"))
    return home


@pytest.fixture(scope="module")
def found(home: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((home / "found.json").read_text())
    return result


def test_a_dear_task_asks_once_for_each_shard_and_runs_when_approved(home: Path, found: dict[str, Any]) -> None:
    asked = [one for one in found["seen"] if one["dag"] == "approved"]
    assert sorted(one["map_index"] for one in asked) == [0, 1]
    assert {tuple(one["options"]) for one in asked} == {("Approve", "Reject")}
    assert "shard 0/2, which is 4 of its rows" in asked[0]["body"] + asked[1]["body"]
    assert "| expected cost | $0.00" in asked[0]["body"]
    assert found["states"]["approved"] == {"run": "success", "tries": [1, 1]}
    assert answered(home, "approved") == 6


def test_decorated_tasks_ask_and_only_approvers_may_answer(home: Path, found: dict[str, Any]) -> None:
    assert found["refused"] == [403]
    assert found["states"]["decorated"]["run"] == "success"
    assert answered(home, "decorated") == 6


@pytest.mark.parametrize(
    ("dag", "words"), [("rejected", "boss rejected the plan at"), ("too_late", "nobody decided in time")]
)
def test_a_task_nobody_approves_fails_for_good_and_has_spent_nothing(
    home: Path, found: dict[str, Any], dag: str, words: str
) -> None:
    assert found["states"][dag] == {"run": "failed", "tries": [1]}, "not retried, though it has a retry left"
    assert words in (home / "run.log").read_text()
    assert answered(home, dag) == 0


def test_a_retry_after_approval_does_not_ask_again(home: Path, found: dict[str, Any]) -> None:
    assert found["states"]["retried"] == {"run": "success", "tries": [2]}
    assert [one["try"] for one in found["seen"] if one["dag"] == "retried"] == [1]
    assert answered(home, "retried") == 6


def test_a_cheap_task_does_not_ask(home: Path, found: dict[str, Any]) -> None:
    assert [one for one in found["seen"] if one["dag"] == "cheap"] == []
    assert answered(home, "cheap") == 6


def test_who_decided_and_when_is_in_the_trail(home: Path) -> None:
    events = [json.loads(line) for path in home.glob("ai/audit/spool/main/*") for line in read_lines(path)]
    plans = [event for event in events if event.get("event.action", "").startswith("plan.")]
    names = ("airflow_ai.dag_id", "event.action", "airflow_ai.decided_by", "event.reason")
    decided = {tuple(map(event.get, names)) for event in plans if event["event.action"] != "plan.made"}
    assert decided == {
        ("approved", "plan.approved", "boss", None),
        ("decorated", "plan.approved", "boss", None),
        ("rejected", "plan.rejected", "boss", "rejected"),
        ("too_late", "plan.rejected", None, "timeout"),
        ("retried", "plan.approved", "boss", None),
    }
    made = {event["airflow_ai.plan_hash"] for event in plans if event["event.action"] == "plan.made"}
    assert {event["airflow_ai.plan_hash"] for event in plans} == made
    assert all(event["airflow_ai.cost_nano"] > 0 for event in plans)


def test_no_row_is_shown_to_whoever_decides(home: Path, found: dict[str, Any]) -> None:
    assert "secret-" not in json.dumps(found["seen"])
    assert "secret-" not in (home / "run.log").read_text()


def answered(home: Path, dag: str) -> int:
    """Calls of a DAG in the ledger."""
    with closing(sqlite3.connect(home / "ai" / "ledger.db")) as db:
        return int(db.execute("SELECT COUNT(*) FROM llm_requests WHERE dag_id = ?", (dag,)).fetchone()[0])


def read_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith("{")]
