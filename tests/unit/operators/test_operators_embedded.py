"""The operators over the real heart on embedded defaults: what each returns, writes and refuses."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from support.task_context import FakeTaskInstance, context

from airflow_ai_provider.hooks.context import caller_from_context, run_folder
from airflow_ai_provider.hooks.settings import settings_from_airflow
from airflow_ai_provider.operators.audit import AuditSealOperator, AuditVerifyOperator
from airflow_ai_provider.operators.cost import CostReportOperator, text_table, totals
from airflow_ai_provider.operators.llm import LLMMapOperator
from airflow_ai_provider.operators.rows import GatherOperator, PlanShardsOperator
from airflow_ai_provider.operators.shards import shards_for
from airflow_ai_provider.operators.vectors import EmbedSyncOperator, RetrieveOperator
from airflow_ai_provider.testing.vendor import VendorDouble

POLICY = """\
version: 1
deployments:
  offline: {model: offline/extractive, price: {input_per_mtok: 1, output_per_mtok: 2}}
  vendor: {model: openai/gpt-4o-mini, connection: vendor, timeout: 60s, price: {input_per_mtok: 1, output_per_mtok: 2}}
routes:
  support: {tiers: {simple: [offline]}, masking: standard, reuse: {scope: team, ttl: 1h}}
  hosted: {tiers: {simple: [vendor]}, masking: standard, reuse: {scope: "off"}}
budgets: [{team: support, period: day, limit_usd: 5}]
masking: {standard: {detect: [email]}}
"""
QUESTIONS = ["My card was stolen, what now?", "How do I open an account?", "write to ada@example.com about my card", ""]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__AI__HOME", str(tmp_path / "ai"))
    monkeypatch.setenv("AIRFLOW__AI__POLICY_PATH", str(tmp_path / "policy.yaml"))
    for option in ("LEDGER_CONN_ID", "CACHE_CONN_ID", "VECTORS_CONN_ID", "KEYRING_CONN_ID", "ARCHIVE_URI"):
        monkeypatch.delenv(f"AIRFLOW__AI__{option}", raising=False)
    (tmp_path / "policy.yaml").write_text(POLICY)
    with (tmp_path / "questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *[[f"q{i}", text] for i, text in enumerate(QUESTIONS)]])
    return tmp_path


@pytest.fixture
def vendor_connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[VendorDouble]:
    with VendorDouble() as vendor:
        fields = {"conn_type": "llm", "host": vendor.base_url, "password": "sk-vendor"}
        monkeypatch.setenv("AIRFLOW_CONN_VENDOR", json.dumps(fields))
        yield vendor


def answer(home: Path, **changes: Any) -> LLMMapOperator:
    arguments = {
        "source": str(home / "questions.csv"),
        "sink": str(home / "answers"),
        "prompt": "<context>A stolen card is blocked at once.</context><question>{{ text }}</question>",
        "key": "id",
        "team": "support",
        "route": "support",
    }
    return LLMMapOperator(task_id="answer", **{**arguments, **changes})


def sync_knowledge(home: Path) -> EmbedSyncOperator:
    """Three documents, of which one cannot be read, and the operator that syncs them."""
    docs = home / "docs"
    docs.mkdir()
    (docs / "cards.md").write_text("# Stolen cards\n\nA stolen card is blocked in the app at once.\n")
    (docs / "accounts.md").write_text("# Opening an account\n\nOpen an account with your passport.\n")
    (docs / "broken.md").write_bytes(b"\xff\xfe\x00")
    return EmbedSyncOperator(task_id="s", source=str(docs), collection="kb", team="support")


def test_documents_become_passages_of_rows(home: Path) -> None:
    sync = sync_knowledge(home)
    first, second = sync.execute(context()), sync.execute(context())
    assert (first["documents"], first["added"], second["unchanged"], second["written"]) == (2, 2, 2, 0)
    assert first["failed"][0]["doc_id"] == "broken.md"
    retrieve = RetrieveOperator(
        task_id="r",
        source=str(home / "questions.csv"),
        sink=str(home / "with_context"),
        collection="kb",
        query="{{ text }}",
        top_k=1,
        defaults={"language": "en", "text": "unused"},
    )
    result = retrieve.execute(context())
    assert (result["rows"], result["with_context"], result["unusable"]) == (4, 3, 0)
    assert retrieve.execute(context())["rows"] == 4, "a retry counts the parts that are there"
    GatherOperator(task_id="g", source=str(home / "with_context"), target=str(home / "out.csv"), key="id").execute(
        context()
    )
    rows = list(csv.DictReader((home / "out.csv").open()))
    assert [row["id"] for row in rows] == ["q0", "q1", "q2", "q3"]
    assert "blocked in the app" in rows[0]["context"]
    assert "passport" in rows[1]["context"]
    assert rows[3]["context"] == ""
    assert {row["language"] for row in rows} == {"en"}
    assert rows[0]["text"] == QUESTIONS[0]
    with pytest.raises(ValueError, match="formulas 'drop': expected neutralise or keep"):
        GatherOperator(task_id="g2", source="in", target="out.csv", formulas="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query": "{{ missing }}"}, "query: no column missing in the rows; they have: id, text"),
        ({"query": "{{ text"}, "query:1: "),
        ({"collection": "nowhere"}, "no collection nowhere"),
        ({"source": "nowhere.csv"}, "does not exist"),
    ],
)
def test_a_lookup_that_cannot_be_made_says_why(home: Path, changes: dict[str, str], words: str) -> None:
    arguments = {
        "source": str(home / "questions.csv"),
        "sink": str(home / "c"),
        "collection": "kb",
        "query": "{{ id }}",
    }
    with pytest.raises(AirflowFailException, match=words):
        RetrieveOperator(task_id="r", **{**arguments, **changes}).execute(context())


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE questions SET text = 'How do I open an account?' WHERE id = 'q0'",
        "DELETE FROM questions WHERE id = 'q0'",
    ],
)
def test_retrieval_retried_over_sql_looks_changed_rows_up_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, postgres_url: str, change: str
) -> None:
    """A database does not tell that its rows changed: a finished part counts only for the very rows it was made of."""
    address = postgres_url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(address) as database:
        database.execute("CREATE TABLE questions (id TEXT, text TEXT)")
        for row in [("q0", QUESTIONS[0]), ("q1", QUESTIONS[2])]:
            database.execute("INSERT INTO questions VALUES (%s, %s)", row)
    monkeypatch.setenv("AIRFLOW_CONN_ROWS", address)
    sync_knowledge(home).execute(context())
    retrieve = RetrieveOperator(
        task_id="r",
        source="sql://rows/questions?key=id",
        sink=str(home / "with_context"),
        collection="kb",
        query="{{ text }}",
        top_k=1,
    )
    retrieve.execute(context())
    with psycopg.connect(address) as database:
        database.execute(change)
        expected = database.execute("SELECT id, text FROM questions ORDER BY id").fetchall()
    retrieve.execute(context())
    gather = GatherOperator(task_id="g", source=str(home / "with_context"), target=str(home / "out.csv"), key="id")
    gather.execute(context())
    rows = list(csv.DictReader((home / "out.csv").open()))
    assert [(row["id"], row["text"]) for row in rows] == expected
    assert ("passport" in rows[0]["context"]) == ("open an account" in rows[0]["text"])


def test_a_source_with_a_context_already_is_refused(home: Path) -> None:
    (home / "has.csv").write_text("id,context\n1,x\n")
    retrieve = RetrieveOperator(
        task_id="r", source=str(home / "has.csv"), sink=str(home / "c"), collection="kb", query="{{ id }}"
    )
    with pytest.raises(AirflowFailException, match="has a column 'context' already"):
        retrieve.execute(context())


def test_a_plan_names_the_key_and_shares_the_rows(home: Path) -> None:
    ti = FakeTaskInstance()
    plan = PlanShardsOperator(
        task_id="p", source=str(home / "questions.csv"), key=["nope", "id", "#row"], rows_per_shard=2
    )
    assert plan.execute(context(ti)) == ["0/2", "1/2"]
    assert ti.pushed == {"key": "id", "rows": 4}


def test_a_plan_refuses_what_would_fail_later(home: Path) -> None:
    (home / "twice.csv").write_text("id,text\n1,a\n1,b\n")
    plan = PlanShardsOperator(task_id="p", source=str(home / "twice.csv"), key="id")
    with pytest.raises(AirflowFailException, match="not unique: '1' in rows 1, 2"):
        plan.execute(context())
    with pytest.raises(AirflowFailException, match="names column question"):
        PlanShardsOperator(task_id="q", source=str(home / "twice.csv"), key="#row", columns=["question"]).execute(
            context()
        )


@pytest.mark.parametrize(("rows", "expected"), [(0, 1), (1, 1), (10, 1), (11, 2), (95, 8)])
def test_shards_grow_with_rows_up_to_a_limit(rows: int, expected: int) -> None:
    assert len(shards_for(rows, rows_per_shard=10, max_shards=8)) == expected


def test_a_map_answers_reuses_reports_and_leaves_a_trail_that_verifies(home: Path) -> None:
    first = answer(home).execute(context())
    again = answer(home, sink=str(home / "again")).execute(context())
    assert (first["rows"], first["ok"], first["error"]) == (4, 4, 0)
    assert (again["ok"], again["reused"], Decimal(again["cost_usd"])) == (4, 4, 0)
    assert json.loads(json.dumps(first)) == first, "a summary is plain JSON, as XCom wants it"
    report = CostReportOperator(task_id="c", by="team").execute(context())
    assert (report["requests"], report["reused"]) == (8, 4)
    assert Decimal(report["cost_usd"]) == Decimal(first["cost_usd"]) > 0
    sealed = AuditSealOperator(task_id="seal").execute(context())
    assert (sealed["sequence"], sealed["refused"]) == (1, 0)
    verified = AuditVerifyOperator(task_id="verify").execute(context())
    assert verified["events"] == sealed["events"] > 8


def test_pins_are_written_down_elsewhere_and_verified_against(home: Path) -> None:
    answer(home).execute(context())
    pins = home / "elsewhere.txt"
    seal = AuditSealOperator(task_id="seal", pin_file=str(pins))
    hashes = [seal.execute(context())["manifest_hash"] for _ in range(2)]
    assert pins.read_text() == f"1 {hashes[0]}\n2 {hashes[1]}\n"
    verify = AuditVerifyOperator(task_id="verify", pin_file=str(pins), days=1)
    assert verify.execute(context())["manifests"] == 2
    pins.write_text(f"1 {hashes[1]}\n")
    with pytest.raises(AirflowFailException, match="pin_mismatch at manifest 1"):
        verify.execute(context())
    pins.unlink()
    pins.mkdir()
    with pytest.raises(AirflowFailException, match=r"pin file .* cannot be written: .*manifest 3 has hash"):
        seal.execute(context())
    with pytest.raises(ValueError, match="days 0: expected 1 or more"):
        AuditVerifyOperator(task_id="v", days=0)


def test_a_spool_that_fills_up_is_an_alarm_before_calls_stop(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(home).execute(context())
    (broken,) = (home / "ai/audit/spool/main").glob("*.sealed")
    broken.write_bytes(broken.read_bytes() + b"x" * 900_000)  # the sealer refuses it, so it stays
    monkeypatch.setenv("AIRFLOW__AI__AUDIT_SPOOL_LIMIT_MB", "1")
    sealed = AuditSealOperator(task_id="seal").execute(context())
    assert (sealed["refused"], sealed["spool_bytes"] > 900_000) == (1, True)
    (alarm,) = (line for line in capsys.readouterr().out.splitlines() if "AUDIT SPOOL 8" in line)
    assert "error" in alarm


def test_a_trail_that_was_touched_fails_the_task(home: Path) -> None:
    answer(home).execute(context())
    AuditSealOperator(task_id="seal").execute(context())
    (manifest,) = (home / "ai" / "audit" / "archive" / "manifests").iterdir()
    manifest.unlink()
    with pytest.raises(AirflowFailException, match="does not verify"):
        AuditVerifyOperator(task_id="verify").execute(context())


def test_a_trail_that_was_never_sealed_cannot_be_verified() -> None:
    with pytest.raises(AirflowException, match="could not be verified to its end"):
        AuditVerifyOperator(task_id="verify").execute(context())


def test_an_archive_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AI__ARCHIVE_URI", "ftp://archive/x")
    with pytest.raises(AirflowFailException, match="ftp://archive/x"):
        AuditSealOperator(task_id="seal").execute(context())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"route": "nope"}, "route 'nope' is not in the policy; it has: hosted, support"),
        ({"team": "nobody"}, "no budget applies to team 'nobody'"),
        ({"prompt": "{{ missing }}"}, "no column missing in the rows"),
        ({"prompt": "file:/nowhere.j2"}, "/nowhere.j2: no such prompt file"),
        ({"policy": "/nowhere.yaml"}, "policy='/nowhere.yaml': a task may not bring its own policy file"),
        ({"route": "hosted"}, "'vendor', named by a deployment of the policy, does not exist"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_paid(home: Path, changes: dict[str, str], words: str) -> None:
    with pytest.raises(AirflowFailException, match=words):
        answer(home, **changes).execute(context())
    assert CostReportOperator(task_id="c").execute(context())["requests"] == 0


def test_a_connection_brings_address_and_key_to_the_vendor(home: Path, vendor_connection: VendorDouble) -> None:
    result = answer(home, route="hosted").execute(context())
    assert (result["ok"], result["error"]) == (4, 0)
    assert vendor_connection.stats().requests == 4
    assert vendor_connection.find("ada@example.com") == []


def test_a_vendor_that_refuses_every_row_fails_the_task(home: Path, vendor_connection: VendorDouble) -> None:
    vendor_connection.configure(faults={"rate_422": 1.0})
    with pytest.raises(AirflowFailException, match="4 of 4 rows ended with an error"):
        answer(home, route="hosted").execute(context())


def test_a_kill_stops_calls_that_hang_and_loses_no_money(home: Path, vendor_connection: VendorDouble) -> None:
    """SIGTERM while calls are in flight ends the task at once; its retry finds what it left open in the ledger."""
    vendor_connection.configure(faults={"rate_hang_billed": 1.0})
    operator = answer(home, route="hosted")
    before = signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())
    asked = threading.Event()

    def kill_when_asked() -> None:
        while not asked.wait(0.05):
            if vendor_connection.stats().requests == 4:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    killer = threading.Thread(target=kill_when_asked, daemon=True)
    killer.start()
    try:
        with pytest.raises(SystemExit):
            operator.execute(context())
    finally:
        asked.set()
        killer.join()
        signal.signal(signal.SIGTERM, before)
    vendor_connection.configure(faults={})
    retried = answer(home, route="hosted").execute(context())
    assert retried["ok"] == 4
    report = CostReportOperator(task_id="c").execute(context())
    invoiced = sum(line.cost_nanodollars for line in vendor_connection.invoice())
    assert report["unknown"] == 4
    assert Decimal(report["cost_usd"]) * 10**9 >= invoiced > 0


def test_cost_tables_are_aligned_and_totals_exact() -> None:
    row = {
        "team": "support",
        "requests": 12,
        "reused": 3,
        "errors": 0,
        "unknown": 0,
        "input_tokens": 5,
        "output_tokens": 6,
        "cost_usd": Decimal("0.1"),
        "saved_usd": Decimal("0.2"),
    }
    lines = text_table([row, {**row, "team": "x", "requests": 1234}]).splitlines()
    assert lines[0].split() == list(row)
    assert lines[3].startswith("x            1234 ")
    assert len({line.index("r") + len("requests") for line in lines[:1]} | {lines[2].index("12") + 2}) == 1
    assert totals([row, row])["cost_usd"] == "0.2"
    assert text_table([]) == "nothing yet"


@pytest.mark.parametrize("by", [[], ["colour"], ["team", "team"]])
def test_a_grouping_that_there_is_not_is_an_error_in_the_dag_file(by: list[str]) -> None:
    with pytest.raises(ValueError, match="expected some of hour, day, week, month, team, dag, task"):
        CostReportOperator(task_id="c", by=by)


def test_a_day_that_is_none_is_named() -> None:
    with pytest.raises(AirflowFailException, match="'yesterday': expected a day such as"):
        CostReportOperator(task_id="c", since="yesterday").execute(context())


def test_the_caller_is_the_task_instance() -> None:
    caller = caller_from_context(context())
    assert (caller.dag_id, caller.run_id, caller.map_index, caller.try_number, caller.user) == ("d", "run 1", -1, 1, "")


def test_settings_name_the_policy_of_the_section(home: Path) -> None:
    assert settings_from_airflow().policy_path == home / "policy.yaml"


@pytest.mark.parametrize("run_id", ["manual__2025-01-01T00:00:00+00:00", "../../etc", "…/\x00", "a" * 500, "", "."])
def test_a_run_folder_is_one_plain_name(run_id: str) -> None:
    name = run_folder(run_id)
    assert Path(name).name == name
    assert name.isascii()
    assert not name.startswith(".")
    assert len(name) <= 100


def test_run_ids_that_look_alike_get_different_folders() -> None:
    assert len({run_folder(run_id) for run_id in ("a:b", "a+b", "a-b", "a/b")}) == 4
