"""The maintenance DAG, as Airflow runs it: it seals, it verifies, and it fails when somebody touched the trail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
POLICY = """\
version: 1
deployments: {offline: {model: offline/extractive, price: {input_per_mtok: 1, output_per_mtok: 2}}}
routes: {support: {tiers: {simple: [offline]}, masking: "off"}}
budgets: [{team: support, period: day, limit_usd: 5}]
"""
RUN = """
import json, logging, os, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from sqlalchemy import func, select
home = Path(sys.argv[1])
from airflow.utils.db import initdb
initdb()
from airflow.dag_processing.dagbag import DagBag
from airflow_ai_provider.core.audit.verify.segment_reader import check_segment
from airflow_ai_provider.core.job import Caller, MapJob
from airflow_ai_provider.core.jobs.llm_map import run_map
from airflow_ai_provider.hooks.settings import settings_from_airflow
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, Request, open_attempts
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef, take_hold
from airflow_ai_provider.core.ledger.budgets.limits import BudgetPeriod
from airflow_ai_provider.core.ledger.schema import llm_holds, llm_open_attempts, llm_requests

job = MapJob(str(home / "rows.csv"), str(home / "out"), "{{ text }}", "id", "support", "support")
run_map(job, Caller("d", "r", "t"), settings_from_airflow(), log=logging.getLogger("job"))
# A process that died two hours ago with a call open, of a task that Airflow does not know.
then = datetime.now(UTC) - timedelta(hours=2)
dead = TaskRef("support", "gone", "r", "t", -1, 1)
budget = BudgetPeriod("team=support/day@then", "team=support/day", "day", "then", 10**9)
request = Request("req", dead, "row", "support", "simple", "offline", "offline/extractive", "offline", "policy-1")
with open_ledger(None, settings_from_airflow().home) as ledger, ledger.write() as conn:
    take_hold(conn, hold_id="h", owner="dead", task=dead, periods=[budget], amounts=[500], now=then)
    open_attempts(conn, [OpenAttempt("att", "h", 300, then, request)])
bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
assert not bag.import_errors, bag.import_errors
states = {}

def run(name, dag):
    states[name] = str(bag.dags[dag].test().state)

run("sweep", "ai_holds_sweep")
run("upkeep", "ai_ledger_upkeep")
with open_ledger(None, settings_from_airflow().home) as ledger, ledger.read() as conn:
    counts = [select(func.count()).select_from(table) for table in (llm_holds, llm_open_attempts)]
    left = [conn.execute(count).scalar_one() for count in counts]
    captured = conn.execute(select(llm_requests.c.cost_nano).where(llm_requests.c.status == "unknown")).scalars().all()
run("seal", "ai_audit_seal")
run("verify", "ai_audit_verify")
run("seal again", "ai_audit_seal")
(victim, *_) = sorted((home / "ai/audit/archive/segments").rglob("*.gz"), key=lambda path: -path.stat().st_size)
kept = victim.read_bytes()
victim.chmod(0o600)
victim.write_bytes(kept[:-30])
run("verify what was touched", "ai_audit_verify")
victim.write_bytes(kept)
run("verify what was put back", "ai_audit_verify")
events = []
for path in (home / "ai/audit/spool").rglob("*.sealed"):
    check_segment([path.read_bytes()], sealed=True, visit=lambda document, body: events.append(document))
(home / "seen.json").write_text(json.dumps({"states": states, "events": events, "left": left, "captured": captured}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("maintenance")
    (home / "policy.yaml").write_text(POLICY)
    (home / "rows.csv").write_text("id,text\n1,one\n2,two\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags" / "ai_maintenance.py"),
        "AIRFLOW__AI__HOME": str(home / "ai"),
        "AIRFLOW__AI__POLICY_PATH": str(home / "policy.yaml"),
    }
    command = [sys.executable, "-c", RUN, str(home)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    found: dict[str, Any] = json.loads((home / "seen.json").read_text())
    return {**found, "log": ran.stdout + ran.stderr}


def test_it_seals_and_verifies_and_fails_on_what_was_touched(seen: dict[str, Any]) -> None:
    states = {name: state.rpartition(".")[2].lower() for name, state in seen["states"].items()}
    assert states == {
        "sweep": "success",
        "upkeep": "success",
        "seal": "success",
        "verify": "success",
        "seal again": "success",
        "verify what was touched": "failed",
        "verify what was put back": "success",
    }


def test_what_a_dead_task_held_is_captured_and_released(seen: dict[str, Any]) -> None:
    assert (seen["left"], seen["captured"]) == ([0, 0], [300])


def test_the_log_says_what_was_found_and_what_was_probably_done(seen: dict[str, Any]) -> None:
    assert "segment_altered at segments/" in seen["log"]
    assert "probably: truncated" in seen["log"]


def test_the_failure_is_an_outcome_in_the_trail(seen: dict[str, Any]) -> None:
    """Told by the listener, through the plugin that Airflow found by itself."""
    told = [event for event in seen["events"] if event["event.action"] == "task.outcome"]
    assert [(event["airflow_ai.dag_id"], event["airflow_ai.state"], event["error.type"]) for event in told] == [
        ("ai_audit_verify", "failed", "AirflowFailException")
    ]
