"""``airflow ai ledger reconcile`` and its operator over a real ledger: figures, exit status, XCom, audit event."""

from __future__ import annotations

import gzip
import json
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.cli.cli_parser import get_parser
from airflow.sdk.exceptions import AirflowFailException

from airflow_ai_provider.cli import arguments
from airflow_ai_provider.core.administration.audit import record, seal_audit, verify_audit
from airflow_ai_provider.core.administration.ledger import reconcile_invoice
from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, Request, Settled, open_attempts, settle
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef, take_hold
from airflow_ai_provider.core.ledger.budgets.limits import budget_period
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.ledger.reconcile.invoices import FORMATS
from airflow_ai_provider.core.pipeline.audit_log import call_fields
from airflow_ai_provider.core.policy import Budget
from airflow_ai_provider.errors import LedgerError, SourceError
from airflow_ai_provider.hooks.settings import settings_from_airflow
from airflow_ai_provider.operators.ledger import LedgerReconcileOperator

DAY = (datetime.now(UTC) - timedelta(days=3)).replace(hour=12, minute=0, second=0, microsecond=0)
OK, LOST, ABSENT = (f"{int(DAY.timestamp() * 1000):012x}{number:020x}" for number in (1, 2, 3))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__AI__HOME", str(tmp_path / "ai"))
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    for option in ("LEDGER_CONN_ID", "CACHE_CONN_ID", "VECTORS_CONN_ID", "KEYRING_CONN_ID", "ARCHIVE_URI"):
        monkeypatch.delenv(f"AIRFLOW__AI__{option}", raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def calls(home: Path) -> None:
    """One call answered and two of which nothing is known, three days ago; each is in the trail."""
    task = TaskRef("support", "dag", "run", "answer", -1, 1)
    names = ("support", "simple", "small", "openai/gpt-4o-mini", "openai", "test-1")
    requests = {attempt: Request(attempt, task, "row", *names) for attempt in (OK, LOST, ABSENT)}
    period = budget_period(Budget(team="support", period="day", limit_usd="1"), now=DAY, dag_id="dag", run_id="run")
    settled = [
        Settled(OK, DAY, requests[OK], "ok", Usage(10, 5), cost_nano=700),
        *(Settled(attempt, DAY, requests[attempt], "unknown", None, cost_nano=1000) for attempt in (LOST, ABSENT)),
    ]
    for call in settled:
        record(
            settings_from_airflow(),
            "llm.call",
            Caller("dag", "run", "answer"),
            outcome=call.status,
            **call_fields(call),
        )
    with open_ledger(None, home / "ai") as ledger, ledger.write() as conn:
        take_hold(conn, hold_id="h", owner="me", task=task, periods=[period], amounts=[1000] * 3, now=DAY)
        open_attempts(conn, [OpenAttempt(attempt, "h", 1000, DAY, requests[attempt]) for attempt in requests])
        settle(conn, settled, DAY)


def write_invoice(home: Path, *lines: tuple[str, str]) -> str:
    rows = [f"{attempt},gpt-4o-mini,{DAY.date()},10,5,{usd}" for attempt, usd in lines]
    path = home / "invoice.csv"
    path.write_text("\n".join(["attempt_id,model,day,input_tokens,output_tokens,cost_usd", *rows, ""]))
    return str(path)


def spent(home: Path) -> int:
    with open_ledger(None, home / "ai") as ledger, ledger.read() as conn:
        return int(conn.exec_driver_sql("SELECT spent_nano FROM llm_budgets").scalar_one())


def airflow(*words: str) -> int:
    """Run a command as Airflow would; returns its exit status."""
    args = get_parser().parse_args(["ai", "ledger", "reconcile", *words])
    try:
        args.func(args)
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def events(home: Path, action: str = "ledger.reconciled") -> list[dict[str, Any]]:
    seal_audit(settings_from_airflow())
    assert verify_audit(settings_from_airflow()).findings == []
    segments = sorted((home / "ai" / "audit" / "archive" / "segments").rglob("*.jsonl.gz"))
    lines = [json.loads(line) for path in segments for line in gzip.decompress(path.read_bytes()).splitlines()]
    return [line for line in lines if line.get("event.action") == action]


def covers() -> str:
    return f"{DAY.date()}..{DAY.date()}"


def test_command_and_ledger_know_the_same_formats() -> None:
    assert arguments.INVOICE_FORMATS == FORMATS


def test_an_equal_invoice_exits_0_and_says_what_was_resolved(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    invoice = write_invoice(home, (OK, "0.0000007"), (LOST, "0.00000045"))
    assert airflow("--invoice", invoice, "--covers", covers(), "-o", "plain") == 0
    out = capsys.readouterr().out
    assert "2 lines, 2 attempts matched; 2 unknown resolved (1 not charged), 0 corrected" in out
    assert "0.00000155 USD lowered, 0 USD raised; 0 findings" in out
    assert "gpt-4o-mini" in out
    assert spent(home) == 1150
    (event,) = events(home)
    assert event["airflow_ai.rows_resolved"] == 2
    assert event["airflow_ai.lowered_nano"] == 1550
    assert len(event["airflow_ai.invoice_hash"]) == 64
    assert event["user.name"]
    assert "airflow_ai.dag_id" not in event


def test_a_charge_above_its_bound_stops_the_deployment_and_is_recorded(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert airflow("--invoice", write_invoice(home, (LOST, "0.0000011")), "-o", "plain") == 1
    assert "above_bound" in capsys.readouterr().out
    (event,) = events(home, "deployment.stopped")
    assert (event["airflow_ai.deployment"], event["user.name"] != "") == ("small", True)


def test_what_differs_exits_1_and_is_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    invoice = write_invoice(home, (OK, "0.0000008"), ("f" * 32, "0.1"))
    assert airflow("--invoice", invoice, "-o", "json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["totals"]["findings"] == {"differs": 1, "not_in_ledger": 1}
    assert [row["finding"] for row in document["findings"]] == ["differs", "not_in_ledger"]
    assert document["findings"][0]["ledger_usd"] == "0.0000007"
    assert [(row["model"], row["cost_usd"], row["invoice_usd"]) for row in document["days"]] == [
        ("gpt-4o-mini", "0.0000008", "0.1000008")
    ]


@pytest.mark.parametrize("output", ["table", "yaml"])
def test_other_outputs(home: Path, capsys: pytest.CaptureFixture[str], output: str) -> None:
    invoice = write_invoice(home, ("f" * 32, "0.1"))
    assert airflow("--invoice", invoice, "-o", output) == 1
    out = capsys.readouterr().out
    assert "not_in_ledger" in out
    if output == "yaml":
        assert yaml.safe_load(out)["totals"]["lines"] == 1


def test_a_dry_run_changes_and_records_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    invoice = write_invoice(home, (LOST, "0.00000045"))
    assert airflow("--invoice", invoice, "--dry-run", "-o", "table") == 0
    assert "1 unknown would be resolved" in capsys.readouterr().out
    assert spent(home) == 2700
    assert events(home) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--invoice", "nowhere.csv"], "nowhere.csv: does not exist"),
        (["--invoice", "{invoice}", "--covers", "May"], "covers 'May': expected FROM..TO"),
        (["--invoice", "{invoice}", "--covers", "2999-01-01..2999-01-31"], "ends in the future"),
        (["--invoice", "{invoice}", "--format", "openai-costs"], "its columns are not those of format openai-costs"),
    ],
)
def test_what_could_not_run_exits_2(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    invoice = write_invoice(home, (LOST, "0.00000045"))
    assert airflow(*(word.format(invoice=invoice) for word in words)) == 2
    assert message in capsys.readouterr().err
    assert spent(home) == 2700


@pytest.mark.parametrize("words", [[], ["--invoice", "x", "--format", "pdf"], ["--invoice", "x", "--deployments", ","]])
def test_wrong_arguments_exit_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        get_parser().parse_args(["ai", "ledger", "reconcile", *words])
    assert left.value.code == 2


def test_a_format_that_there_is_not_is_refused() -> None:
    with pytest.raises(LedgerError, match=r"format 'pdf': expected one of csv, openai-usage"):
        reconcile_invoice(settings_from_airflow(), "x.csv", wanted="pdf")
    with pytest.raises(SourceError, match="does not exist"):
        reconcile_invoice(settings_from_airflow(), "x.csv", wanted="csv")


# The operator


def context() -> Any:
    ti = types.SimpleNamespace(dag_id="d", run_id="run 1", task_id="t", map_index=None, try_number=1)
    return {"ti": ti, "run_id": ti.run_id, "dag_run": None}


def test_the_operator_returns_totals_and_records_its_task(home: Path) -> None:
    invoice = write_invoice(home, (OK, "0.0000007"), (LOST, "0.00000045"))
    operator = LedgerReconcileOperator(
        task_id="t", invoice=invoice, covers=covers(), deployments="small", invoice_format="csv"
    )
    totals = operator.execute(context())
    assert json.loads(json.dumps(totals)) == totals
    assert (totals["resolved"], totals["ledger_usd"], totals["invoice_usd"]) == (2, "0.00000115", "0.00000115")
    assert spent(home) == 1150
    (event,) = events(home)
    assert (event["airflow_ai.dag_id"], event["airflow_ai.task_id"]) == ("d", "t")


def test_the_operator_fails_on_findings_after_it_settled_what_it_could(home: Path) -> None:
    invoice = write_invoice(home, (LOST, "0.00000045"), ("f" * 32, "0.1"))
    with pytest.raises(AirflowFailException, match=r"invoice\.csv: 1 findings: not_in_ledger line 3"):
        LedgerReconcileOperator(task_id="t", invoice=invoice).execute(context())
    assert spent(home) == 2150
    told = LedgerReconcileOperator(task_id="t", invoice=invoice, fail_on_findings=False).execute(context())
    assert told["findings"] == {"not_in_ledger": 1}


def test_the_operator_may_only_compare(home: Path) -> None:
    invoice = write_invoice(home, (LOST, "0.00000045"))
    assert LedgerReconcileOperator(task_id="t", invoice=invoice, only_compare=True).execute(context())["resolved"] == 1
    assert spent(home) == 2700


def test_the_operator_needs_an_invoice() -> None:
    with pytest.raises(ValueError, match="LedgerReconcileOperator t: invoice is empty"):
        LedgerReconcileOperator(task_id="t", invoice=" ")
