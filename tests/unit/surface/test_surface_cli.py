"""``airflow ai …`` through Airflow's own parser: output in every format, exit status 0, 1 and 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from airflow.cli.cli_parser import get_parser
from cli_kit import POLICY, airflow, answer, install

from airflow_ai_provider.cli import definition
from airflow_ai_provider.ledger import reports
from airflow_ai_provider.operators import cost


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch)


@pytest.fixture
def answered(home: Path) -> Path:
    return answer(home)


def test_command_operator_and_ledger_know_the_same_groupings() -> None:
    assert set(definition.GROUPINGS) == set(cost.GROUPINGS) == set(reports.GROUPINGS)


def test_cost_groups_as_asked(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert airflow("cost", "--by", "team,model", "--output", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row)[:3] == ["team", "model", "requests"]
    assert (row["team"], row["requests"]) == ("support", "2")
    assert "E" not in row["cost_usd"]


@pytest.mark.parametrize("output", ["table", "plain", "yaml"])
def test_cost_speaks_every_format(answered: Path, capsys: pytest.CaptureFixture[str], output: str) -> None:
    assert airflow("cost", "-o", output) == 0
    out = capsys.readouterr().out
    assert "support" in out
    if output == "yaml":
        assert yaml.safe_load(out)[0]["team"] == "support"


def test_cost_counts_only_the_days_asked_for(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert airflow("cost", "--until", "2001-01-01", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cost", "--by", "week"], "expected some of day,team,dag,model"),
        (["cost", "--by", ","], "expected some of"),
        (["cost", "--since", "yesterday"], "expected a day such as 2025-01-31"),
        (["policy"], "required"),
    ],
)
def test_wrong_arguments_are_named_and_exit_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        get_parser().parse_args(["ai", *words])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_a_good_policy_is_said_to_be_good(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert airflow("policy", "check") == 0
    assert capsys.readouterr().out == f"{home / 'policy.yaml'}: good\n"


def test_a_wrong_policy_names_file_and_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "bad.yaml").write_text(POLICY.replace("deployments:", "deploments:"))
    assert airflow("policy", "check", "--policy", str(home / "bad.yaml"), "-o", "json") == 1
    findings = [row["finding"] for row in json.loads(capsys.readouterr().out)]
    assert any(finding.startswith(f"{home / 'bad.yaml'}:2: ") for finding in findings)


def test_a_policy_whose_connection_is_missing_is_a_finding(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = POLICY.replace("offline/extractive", "openai/gpt-4o-mini, connection: nowhere")
    (home / "policy.yaml").write_text(text)
    assert airflow("policy", "check", "-o", "plain") == 1
    out = capsys.readouterr().out
    assert "deployments.offline" in out
    assert "'nowhere'" in out


def test_brackets_of_a_finding_are_shown_in_tables(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "policy.yaml").write_text(POLICY + "'[ai]': 1\n")
    assert airflow("policy", "check") == 1
    assert "[ai]: unknown key" in capsys.readouterr().out


def test_no_policy_at_all_could_not_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert airflow("policy", "check", "--policy", str(home / "none.yaml")) == 2
    assert "none.yaml: no policy file there" in capsys.readouterr().err


def test_a_ledger_out_of_reach_could_not_run(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__AI__LEDGER_CONN_ID", "away")
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", "postgres://me:pa55word@127.0.0.1:1/db")
    assert airflow("cost") == 2
    shown = capsys.readouterr()
    assert "error: ledger postgresql+psycopg://me:***@127.0.0.1:1/db" in shown.err
    assert "pa55word" not in shown.out + shown.err
    assert "Traceback" not in shown.out + shown.err
