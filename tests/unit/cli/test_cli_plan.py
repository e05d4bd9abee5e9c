"""``airflow ai plan`` through Airflow's own parser, over DAGs parsed from a folder: no run, no call, no cent."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from airflow.cli.cli_parser import get_parser

DAGS = """
from airflow.sdk import dag, task
from airflow_ai_provider.operators.llm import LLMMapOperator
from airflow_ai_provider.operators.shards import shards

HOME = "@HOME@"
COMMON = {"key": "id", "team": "t", "route": "r", "sink": "{{ params.home }}/{{ macros.ai.run_folder(run_id) }}"}
PARAMS = {"home": HOME, "file": "rows.csv"}


@task
def prepare():
    return HOME + "/rows.csv"


@dag(schedule=None, params=PARAMS)
def plain():
    LLMMapOperator(task_id="ask", source="{{ params.home }}/{{ params.file }}", prompt="{{ text }}", **COMMON)


@dag(schedule=None, params=PARAMS)
def several():
    LLMMapOperator(task_id="first", source=HOME + "/rows.csv", prompt="{{ text }}", **COMMON) >> LLMMapOperator.partial(
        task_id="second", source=HOME + "/rows.csv", prompt="again {{ text }}", **COMMON
    ).expand(shard=shards(3))


@dag(schedule=None, params=PARAMS)
def sources():
    LLMMapOperator.partial(task_id="ask", prompt="{{ text }}", **COMMON).expand(
        source=[HOME + "/rows.csv", HOME + "/more.csv"]
    )


@dag(schedule=None, params=PARAMS)
def by_element():
    LLMMapOperator.partial(task_id="ask", prompt="{{ text }}", **COMMON).expand_kwargs(
        [{"source": HOME + "/rows.csv", "shard": "0/2"}, {"source": HOME + "/rows.csv", "shard": "1/2"}]
    )


@dag(schedule=None, params=PARAMS)
def upstream():
    made = prepare()
    LLMMapOperator(
        task_id="ask", source=made, prompt="{{ text }}",
        **{**COMMON, "key": "{{ ti.xcom_pull(task_ids='prepare', key='key') }}"},
    )


@dag(schedule=None, params=PARAMS)
def decorated():
    @task.llm_map(**COMMON)
    def ask(row, tone, run_id=None):
        return f"{tone} {row['text']} ({run_id})"

    ask.partial(tone="{{ params.file }}", source=prepare()).expand(shard=shards(2))


@dag(schedule=None, params=PARAMS)
def bound():
    @task.llm_map(**COMMON, source=HOME + "/rows.csv")
    def ask(row, tone):
        return f"{tone} {row['text']}"

    ask(prepare())


@dag(schedule=None)
def nothing():
    prepare()


plain(), several(), sources(), by_element(), upstream(), decorated(), bound(), nothing()
"""
POLICY = """\
version: 1
deployments: {offline: {model: offline/extractive, price: {input_per_mtok: 1, output_per_mtok: 2}}}
routes: {r: {tiers: {simple: [offline]}, masking: "off", max_tokens: 100}}
budgets: [{team: t, period: day, limit_usd: LIMIT}]
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "asking.py").write_text(DAGS.replace("@HOME@", str(tmp_path)))
    (tmp_path / "policy.yaml").write_text(POLICY.replace("LIMIT", "5"))
    (tmp_path / "small.yaml").write_text(POLICY.replace("LIMIT", "0.0008"))
    (tmp_path / "rows.csv").write_text("id,text\n" + "".join(f"r{n},SECRET {n}\n" for n in range(10)))
    (tmp_path / "more.csv").write_text("id,text\nm1,hello\n")
    bundle = {
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": f"{tmp_path}/dags"},
    }
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps([{"name": "here", **bundle}]))
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    monkeypatch.setenv("AIRFLOW__AI__HOME", str(tmp_path / "ai"))
    monkeypatch.setenv("AIRFLOW__AI__POLICY_PATH", str(tmp_path / "policy.yaml"))
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    return tmp_path


def airflow(*words: str) -> int:
    """Run a command as Airflow would; returns its exit status."""
    args: argparse.Namespace = get_parser().parse_args(["ai", "plan", *words])
    try:
        args.func(args)
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """The documents of a plan that fits."""
    status = airflow(*words, "-o", "json")
    shown = capsys.readouterr()
    assert status == 0, shown.err
    documents: list[dict[str, Any]] = json.loads(shown.out)
    return documents


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The error of a plan that could not be made."""
    assert airflow(*words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_a_task_is_planned_for_people(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert airflow("plain") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"plain.ask: {home}/rows.csv\n")
    assert "| 10" in shown
    assert "no history: 4 bytes a token" in shown
    assert "fits, even at worst" in shown
    assert "SECRET" not in shown


def test_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    plan, total = planned(capsys, "plain")
    assert (plan["task"], plan["rows"], plan["calls"], plan["output_tokens"]) == ("plain.ask", "10", "10", "500")
    assert plan["expected_usd"] == "0.00102"
    assert plan["deployments"][0]["deployment"] == "offline"
    assert total["budgets"] == plan["budgets"]
    assert plan["budgets"][0]["after_expected_usd"] == "4.99898"


def test_what_does_not_fit_is_exit_status_1(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert airflow("plain", "--policy", str(home / "small.yaml")) == 1
    assert "does not fit: about 4 rows would be over_budget" in capsys.readouterr().out


def test_tasks_that_fit_alone_may_not_fit_together(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "tight.yaml").write_text(POLICY.replace("LIMIT", "0.0015"))
    assert airflow("several", "--task", "first", "--policy", str(home / "tight.yaml")) == 0
    assert airflow("several", "--policy", str(home / "tight.yaml")) == 1
    assert "all 2 tasks together" in capsys.readouterr().out


def test_a_mapped_shard_is_planned_whole(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, _ = planned(capsys, "several")
    assert (first["task"], second["task"]) == ("several.first", "several.second")
    assert first["rows"] == second["rows"] == "10"
    assert second["notes"] == ["mapped over shards: planned as one"]


def test_other_things_are_planned_one_by_one(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    one, two, _ = planned(capsys, "sources")
    assert (one["source"], one["rows"], two["source"], two["rows"]) == (
        f"{home}/rows.csv",
        "10",
        f"{home}/more.csv",
        "1",
    )
    (only, _) = planned(capsys, "by_element")
    assert only["rows"] == "10"


def test_params_are_the_dags_or_given(capsys: pytest.CaptureFixture[str]) -> None:
    plan, _ = planned(capsys, "plain", "--conf", '{"file": "more.csv"}')
    assert plan["rows"] == "1"


def test_what_only_a_run_knows_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "upstream")
    assert (
        "ask: source comes from prepare (return_value), which only a run knows; pass --input URI, or --run-id" in error
    )
    assert "decorated" not in error


def test_an_input_stands_for_what_an_upstream_task_makes(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    plan, _ = planned(capsys, "upstream", "--input", str(home / "rows.csv"))
    assert plan["rows"] == "10"
    assert plan["notes"] == [
        "key comes from prepare (key), which only a run knows: rows are named by their number (or pass --key)"
    ]
    plan, _ = planned(capsys, "upstream", "--input", str(home / "rows.csv"), "--key", "id")
    assert plan["notes"] == []


def test_a_decorated_task_is_planned_with_its_bound_arguments(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert "source comes from prepare" in refused(capsys, "decorated")
    plan, _ = planned(capsys, "decorated", "--input", str(home / "rows.csv"))
    prompts = [f"rows.csv SECRET {n} (plan)" for n in range(10)]
    assert int(plan["input_tokens"]) == sum(-(-len(prompt) // 4) for prompt in prompts)


def test_a_missing_column_is_named_and_may_have_a_default(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "bare.csv").write_text("id\n1\n")
    error = refused(capsys, "plain", "--input", str(home / "bare.csv"))
    assert "plain.ask: prompt: no column text in the rows; they have: id; say what stands there: --default" in error
    plan, _ = planned(capsys, "plain", "--input", str(home / "bare.csv"), "--default", "text=a=b")
    assert plan["calls"] == "1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no DAG 'nowhere' in"),
        (["bound"], "ask: op_args comes from prepare (return_value), which only a run knows"),
        (["plain", "--run-id", "some"], "run 'some': Airflow's database cannot be read"),
        (["nothing"], "nothing has no LLM task to plan"),
        (["plain", "--task", "other"], "plain has no LLM task 'other'; its LLM tasks: ask"),
        (["plain", "--input", "nowhere.csv"], "nowhere.csv: does not exist"),
        (["plain", "--conf", "[]"], "--conf: expected a JSON object"),
        (["plain", "--conf", "{"], "--conf: expected a JSON object"),
        (["plain", "--key", "other"], "the key names column other"),
        (["plain", "--policy", "nowhere.yaml"], "no policy file there"),
    ],
)
def test_what_cannot_be_planned_is_exit_status_2(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in refused(capsys, *words)


def test_a_file_that_does_not_import_is_named(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "dags" / "broken.py").write_text("import airflow  # dag\nraise RuntimeError('oh no')\n")
    assert "RuntimeError: oh no" in refused(capsys, "nowhere")


@pytest.mark.parametrize("text", ["context", "=text", " =x"])
def test_a_default_names_its_column(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        get_parser().parse_args(["ai", "plan", "plain", "--default", text])
    assert "expected COLUMN=TEXT" in capsys.readouterr().err
