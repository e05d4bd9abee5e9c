"""``@task.llm_map`` in a real DAG run: upstream source, mapped shards, context, and rows that look like templates."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from support.airflow_home import make_home, run_in

DAG_FILE = """
from airflow.sdk import dag, task
from airflow_ai_provider.operators.rows import GatherOperator
from airflow_ai_provider.operators.shards import shards

@dag(schedule=None, params={"home": "", "answers": "answers"})
def mapped():
    @task
    def prepare(params=None):
        return params["home"] + "/rows.csv"

    @task.llm_map(key="id", team="t", route="r", sink="{{ params.home }}/{{ params.answers }}", batch_rows=2)
    def answer(row, tone, run_id=None):
        return f"<context>Reply {tone} to {run_id}: {row['text']}</context><question>reply {tone}</question>"

    answers = answer.partial(tone="kindly", source=prepare()).expand(shard=shards(2))
    answers >> GatherOperator(
        task_id="gather", source="{{ params.home }}/answers", target="{{ params.home }}/answers.csv", key="id"
    )

mapped()
"""
POLICY = """\
version: 1
deployments: {offline: {model: offline/extractive, price: {input_per_mtok: 1, output_per_mtok: 2}}}
routes: {r: {tiers: {simple: [offline]}, masking: "off"}}
budgets: [{team: t, period: day, limit_usd: 5}]
"""
RUN = """
import os, sys
from airflow.utils.db import initdb
initdb()
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
assert not bag.import_errors, bag.import_errors
run = bag.dags["mapped"].test(run_conf={"home": sys.argv[1]})
print("STATE", run.state, run.run_id)

import contextlib, io, json, shutil
from airflow.cli.cli_parser import get_parser

def plan(*words):
    said, error, status = io.StringIO(), io.StringIO(), 0
    args = get_parser().parse_args(["ai", "plan", "mapped", "-o", "json", *words])
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(error):
        try:
            args.func(args)
        except SystemExit as left:
            status = left.code
    return {"status": status, "error": error.getvalue(), "plan": json.loads(said.getvalue() or "null")}

plans = {"run": plan("--run-id", run.run_id), "none": plan("--run-id", "nope"), "new": plan("--conf", sys.argv[2])}
shutil.move(sys.argv[1] + "/answers", sys.argv[1] + "/answers-before")
plans["cleared"] = plan("--run-id", run.run_id)
open(sys.argv[1] + "/plans.json", "w").write(json.dumps(plans))
"""
ATTACK = "{{ 7 * 191 }} {% for x in () %}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("mapped")
    make_home(home, dags=DAG_FILE, policy=POLICY, texts=[f"{ATTACK} number {number}" for number in range(7)])
    run_in(home, RUN, str(home), json.dumps({"home": str(home)}))
    return home


def test_every_row_is_asked_once_with_the_bound_arguments(home: Path) -> None:
    assert "STATE success" in (home / "run.log").read_text()
    manifest = json.loads((home / "answers-before" / "manifest.json").read_text())
    assert manifest["shards"] == 2
    with (home / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(7)]
    for number, row in enumerate(rows):
        assert "Reply kindly to manual__" in row["answer"]
        assert f"number {number}" in row["answer"]


def test_what_stands_in_a_row_is_never_evaluated(home: Path) -> None:
    with (home / "answers.csv").open(newline="") as file:
        assert all(ATTACK in row["answer"] and "1337" not in row["answer"] for row in csv.DictReader(file))


def test_no_row_reaches_the_log_or_airflows_database(home: Path) -> None:
    stored = b"".join(path.read_bytes() for path in (home / "airflow").glob("airflow.db*"))
    assert ATTACK.encode() not in stored
    assert ATTACK not in (home / "run.log").read_text()


def test_a_run_is_planned_with_its_params_and_xcoms(home: Path) -> None:
    plans = json.loads((home / "plans.json").read_text())
    assert plans["run"]["status"] == 0, plans["run"]["error"]
    plan, _ = plans["run"]["plan"]
    assert (plan["source"], plan["rows"]) == (str(home / "rows.csv"), "7")
    assert (plan["finished"], plan["calls"], plan["worst_usd"]) == ("7", "0", "0")
    plan, _ = plans["cleared"]["plan"]
    assert (plan["finished"], plan["stored"], plan["calls"]) == ("0", "7", "0"), "its answers are still stored"


def test_what_is_missing_for_a_plan_names_the_latest_run(home: Path) -> None:
    plans = json.loads((home / "plans.json").read_text())
    assert plans["none"]["status"] == plans["new"]["status"] == 2
    assert "mapped has no run 'nope'; the latest is manual__" in plans["none"]["error"]
    assert "source comes from prepare (return_value), which only a run knows" in plans["new"]["error"]
