"""``airflow ai …`` through Airflow's own parser: output in every format, exit status 0, 1 and 2."""

from __future__ import annotations

import argparse
import json
import re
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from airflow.cli.cli_parser import get_parser
from sqlalchemy import text
from support.cli import POLICY, airflow, answer, install

from airflow_ai_provider.cli import arguments
from airflow_ai_provider.cli.budgets import period_of
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.reports import costs
from airflow_ai_provider.core.ledger.reports import reprice as repricing
from airflow_ai_provider.hooks.settings import settings_from_airflow
from airflow_ai_provider.operators import cost


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch)


@pytest.fixture
def answered(home: Path) -> Path:
    return answer(home)


def test_command_operator_and_ledger_know_the_same_groupings() -> None:
    assert set(arguments.GROUPINGS) == set(cost.GROUPINGS) == set(costs.GROUPINGS)
    assert set(arguments.REPRICED_BY) == set(repricing.GROUPINGS)


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


def test_a_table_ends_with_the_total_of_all_groups(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert airflow("cost", "--by", "task,run,tier,deployment", "--last", "1d", "--top", "1") == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-1].split("|")[0].strip() == "total of 1"
    assert lines[-1].split("|")[4].strip() == "2"
    assert airflow("cost", "--by", "hour,route,provider", "--last", "2h", "-o", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["route"], row["provider"]) for row in rows} == {("support", "offline")}
    assert sum(int(row["requests"]) for row in rows) == 2, "in one hour, or in two"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--last", "7d", "--since", "2025-01-31"], "--last cannot stand beside --since and --until"),
        (["--last", "7d", "--this", "month"], "--last cannot stand beside --this"),
        (["--since", "2025-02-01", "--until", "2025-01-31"], "--since 2025-02-01 is after --until 2025-01-31"),
    ],
)
def test_periods_that_contradict_each_other_could_not_run(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert airflow("cost", *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "since"),
    [
        ({"last": "1d"}, date(2026, 3, 4)),
        ({"last": "7d"}, date(2026, 2, 26)),
        ({"last": "2w"}, date(2026, 2, 19)),
        ({"last": "36h"}, datetime(2026, 3, 3, 0, 30, tzinfo=UTC)),
        ({"this": "day"}, date(2026, 3, 4)),
        ({"this": "week"}, date(2026, 3, 2)),
        ({"this": "month"}, date(2026, 3, 1)),
        ({"this": "year"}, date(2026, 1, 1)),
    ],
)
def test_a_period_ends_today_and_begins_where_it_says(asked: dict[str, str], since: date) -> None:
    args = argparse.Namespace(**{"last": None, "this": None, "since": None, "until": None, **asked})
    assert period_of(args, datetime(2026, 3, 4, 12, 30, tzinfo=UTC)) == (since, date(2026, 3, 4))


def test_the_ledger_checks_itself_and_is_repaired(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert airflow("ledger", "check") == 0
    assert "7 days checked, 0 figures differ" not in capsys.readouterr().err
    settings = settings_from_airflow()
    with open_ledger(settings.ledger_url, settings.home) as ledger, ledger.write() as conn:
        conn.execute(text("UPDATE llm_cost_daily SET cost_nano = 7"))
    assert airflow("ledger", "check", "-o", "json") == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["team"], found["column"], found["rollup"]) == ("support", "cost_nano", "7")
    assert airflow("ledger", "check", "--all", "--repair") == 0
    assert "rewrote 1 days from their rows" in capsys.readouterr().out
    assert airflow("ledger", "check", "--since", "2025-01-01", "--all") == 2
    assert actions(answered).count("ledger.repaired") == 1


def test_maintenance_drops_what_the_policy_no_longer_keeps(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_from_airflow()
    with open_ledger(settings.ledger_url, settings.home) as ledger, ledger.write() as conn:
        conn.execute(text("UPDATE llm_requests SET created_at = '2020-02-03 00:00:00.000000' WHERE row_key = '1'"))
    assert airflow("ledger", "maintain") == 0
    assert capsys.readouterr().out == "nothing to do\n"
    (answered / "policy.yaml").write_text(POLICY + "ledger: {keep_months: 3}\n")
    assert airflow("ledger", "maintain", "--dry-run", "-o", "json") == 0
    assert {row["done"] for row in json.loads(capsys.readouterr().out)} == {"would be dropped"}
    assert airflow("ledger", "maintain", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)[0] == {"month": "2020-02", "done": "dropped", "rows": "0", "because": ""}
    with open_ledger(settings.ledger_url, settings.home) as ledger, ledger.read() as conn:
        assert conn.execute(text("SELECT row_key FROM llm_requests")).scalars().all() == ["2"]
    assert "ledger.dropped" in actions(answered)


def actions(home: Path) -> list[str]:
    """Actions of the events in the spool."""
    lines = [line for path in (home / "ai/audit/spool").rglob("*") if path.is_file() for line in path.open()]
    return re.findall(r'"event\.action":"([^"]+)"', "\n".join(lines))


def test_a_role_that_reads_the_ledger_needs_postgresql(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    assert airflow("ledger", "grant", "analysts") == 2
    assert "SQLite has no roles" in capsys.readouterr().err
    monkeypatch.setenv("AIRFLOW__AI__LEDGER_CONN_ID", "real")
    monkeypatch.setenv("AIRFLOW_CONN_REAL", postgres_url.replace("postgresql+psycopg", "postgres"))
    assert airflow("ledger", "grant", "surface_analysts", "--print") == 0
    assert capsys.readouterr().out.startswith('CREATE ROLE "surface_analysts" NOLOGIN;\nGRANT CONNECT ON DATABASE')
    assert airflow("ledger", "grant", "postgres") == 1
    assert "finding: role postgres is a superuser" in capsys.readouterr().err
    assert "ledger.granted" in actions(home)


def test_cost_counts_only_the_days_asked_for(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert airflow("cost", "--until", "2001-01-01", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == []


PRICES = """\
version: 1
models: {offline/extractive: {input_per_mtok: 2, output_per_mtok: 4}}
"""


def test_reprice_shows_what_other_prices_would_have_cost(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (answered / "new.yaml").write_text(PRICES)
    words = ["ledger", "reprice", "--dry-run", "--prices", str(answered / "new.yaml"), "--by", "team,model"]
    assert airflow(*words, "-o", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["team"], row["model"], row["requests"]) == ("support", "offline/extractive", "2")
    assert Decimal(row["repriced_usd"]) == 2 * Decimal(row["billed_usd"]) > 0
    assert (row["difference_usd"], row["difference_percent"]) == (row["billed_usd"], "100.00")
    assert airflow("ledger", "reprice", "--dry-run", "--prices", "policy", "-o", "json") == 0
    (same,) = json.loads(capsys.readouterr().out)
    assert Decimal(same["difference_usd"]) == 0


def test_reprice_names_what_a_list_has_no_price_for(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert airflow("ledger", "reprice", "--dry-run", "--prices", "litellm") == 1
    shown = capsys.readouterr()
    assert "no price in litellm: deployment 'offline', model 'offline/extractive': 2 requests" in shown.err
    assert "support" in shown.out


@pytest.mark.parametrize("terminal", [True, False])
def test_long_work_shows_a_bar_on_a_terminal_only(
    answered: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert airflow("ledger", "reprice", "--dry-run", "--prices", "policy", "-o", "json") == 0
    shown = capsys.readouterr()
    assert ("2/2" in shown.err) is terminal
    assert len(json.loads(shown.out)) == 1


def test_reprice_of_days_without_rows_says_so(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ledger", "reprice", "--dry-run", "--prices", "policy", "--until", "2001-01-01", "-o", "json"]
    assert airflow(*words) == 0
    shown = capsys.readouterr()
    assert (json.loads(shown.out), "nothing to price" in shown.err) == ([], True)


def test_rows_are_never_repriced_in_earnest(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert airflow("ledger", "reprice", "--prices", "policy") == 2
    assert "old rows keep the price they were billed at" in capsys.readouterr().err


def test_a_price_list_that_is_wrong_could_not_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "new.yaml").write_text(PRICES.replace("models", "model"))
    assert airflow("ledger", "reprice", "--dry-run", "--prices", str(home / "new.yaml")) == 2
    assert f"error: {home / 'new.yaml'}:2: model: unknown key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ledger", "reprice", "--dry-run"], "--prices"),
        (["ledger", "reprice", "--prices", "p", "--by", "week"], "expected some of day,team,dag,task,model"),
        (["cost", "--by", "colour"], "expected some of hour,day,week,month,team,dag,task,run,model"),
        (["cost", "--by", ","], "expected some of"),
        (["cost", "--since", "yesterday"], "expected a day such as 2025-01-31"),
        (["cost", "--last", "7x"], "expected hours, days or weeks such as 24h, 7d or 4w"),
        (["cost", "--top", "0"], "expected a whole number of 1 or more"),
        (["ledger", "grant"], "required"),
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
