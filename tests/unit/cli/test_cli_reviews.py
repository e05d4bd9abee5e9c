"""``airflow ai review …`` through Airflow's own parser, and what the trail makes of decisions."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from support.cli import airflow, install

from airflow_ai_provider.cli import arguments
from airflow_ai_provider.core.ledger import open_ledger, reviews
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef
from airflow_ai_provider.hooks.settings import settings_from_airflow

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two answers wait."""
    install(tmp_path, monkeypatch)
    task = TaskRef("support", "customer_support", "run-1", "answer", -1, 1)
    common = ("support", "schema", "total breaks rule 'type'", "/answers", "simple", "small", "openai/gpt-4o-mini")
    items = [reviews.ReviewItem(f"item{n}", f"request{n}", task, f"row-{n}", *common) for n in range(2)]
    with open_ledger(None, tmp_path / "ai") as ledger, ledger.write() as conn:
        reviews.open_reviews(conn, items, datetime.now(UTC))
    return tmp_path


def listed(capsys: Captured, *words: str) -> list[dict[str, Any]]:
    assert airflow("review", "list", *words, "-o", "json") == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def change(statement: str) -> None:
    settings = settings_from_airflow()
    with open_ledger(settings.ledger_url, settings.home) as ledger, ledger.write() as conn:
        conn.execute(text(statement))


def trail_of(home: Path) -> str:
    return "".join(path.read_text() for path in sorted((home / "ai/audit/spool").rglob("*")) if path.is_file())


def test_command_and_ledger_know_the_same_names() -> None:
    assert set(arguments.REVIEW_DECISIONS) == set(reviews.DECISIONS)
    assert set(arguments.REVIEW_STATUSES) == set(reviews.STATUSES)


def test_what_waits_is_listed_as_asked(capsys: Captured) -> None:
    rows = listed(capsys)
    assert [row["item"] for row in rows] == ["item0", "item1"]
    assert [rows[0][name] for name in ("team", "dag", "run", "row_key", "reason_kind", "status", "decision")] == [
        *("support", "customer_support", "run-1", "row-0", "schema", "open", ""),
    ]
    asked = ("--team", "support", "--dag", "customer_support", "--run", "run-1", "--kind", "schema", "--limit", "1")
    assert len(listed(capsys, *asked)) == 1
    assert listed(capsys, "--team", "sales") == []
    assert listed(capsys, "--status", "decided") == []


@pytest.mark.parametrize("output", ["table", "json", "yaml", "plain"])
def test_one_item_is_shown_whole(capsys: Captured, output: str) -> None:
    assert airflow("review", "show", "item1", "-o", output) == 0
    out = capsys.readouterr().out
    assert "total breaks rule" in out
    assert "request1" in out


def test_a_decision_is_in_the_ledger_with_its_note_and_in_the_trail_without(home: Path, capsys: Captured) -> None:
    words = ("--decision", "corrected", "--note", "Ada's IBAN was wrong", "--by", "maria")
    assert airflow("review", "decide", "item0", "item1", "item0", *words) == 0
    assert capsys.readouterr().out.splitlines() == ["item0: corrected by maria", "item1: corrected by maria"]
    assert listed(capsys) == []
    assert {(row["status"], row["decision"]) for row in listed(capsys, "--status", "all")} == {("decided", "corrected")}
    assert airflow("review", "show", "item0", "-o", "json") == 0
    (item,) = json.loads(capsys.readouterr().out)
    assert (item["decided_by"], item["note"]) == ("maria", "Ada's IBAN was wrong")
    said = trail_of(home)
    assert re.findall(r'"airflow_ai.review":"([^"]+)"', said) == ["item0", "item1"]
    assert said.count('"user.name":"maria"') == 2
    assert '"airflow_ai.dag_id":"customer_support"' in said
    for secret in ("IBAN", "row-0", "breaks rule"):
        assert secret not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "item9"), "review item 'item9': there is none"),
        (("decide", "item1", "item9", "--decision", "accepted"), "review item 'item9': there is none"),
        (("decide", "item1", "--decision", "accepted", "--note", "x" * 1001), "at most 1000 characters"),
    ],
)
def test_what_cannot_be_done_decides_nothing(capsys: Captured, words: tuple[str, ...], message: str) -> None:
    assert airflow("review", *words) == 2
    assert message in capsys.readouterr().err
    assert len(listed(capsys)) == 2


def test_nobody_decides_twice(capsys: Captured) -> None:
    assert airflow("review", "decide", "item0", "--decision", "accepted", "--by", "maria") == 0
    assert airflow("review", "decide", "item0", "--decision", "rejected", "--by", "bob") == 2
    assert "review item item0 was decided by maria: accepted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE review_items SET note = 'later'", set()),
        ("UPDATE review_items SET decision = 'rejected' WHERE item_id = 'item0'", {"ledger_differs"}),
        ("UPDATE review_items SET decided_by = 'bob' WHERE item_id = 'item0'", {"ledger_differs"}),
        (
            "UPDATE review_items SET status = 'decided', decision = 'accepted', decided_by = 'bob',"
            " decided_at = updated_at WHERE item_id = 'item1'",
            {"ledger_without_event"},
        ),
    ],
    ids=["untouched", "decision", "person", "invented"],
)
def test_a_decision_that_is_not_what_somebody_decided_is_found(
    capsys: Captured, statement: str, found: set[str]
) -> None:
    assert airflow("review", "decide", "item0", "--decision", "accepted", "--by", "maria") == 0
    assert airflow("audit", "seal", "-o", "json") == 0
    change(statement)
    capsys.readouterr()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    for days in ((), ("--from", today, "--to", today)):
        assert airflow("audit", "verify", *days, "-o", "json") == bool(found)
        assert {row["kind"] for row in json.loads(capsys.readouterr().out)} == found
