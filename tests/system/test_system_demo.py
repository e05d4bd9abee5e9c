"""The demo, as a user runs it: a real Airflow in a fresh home, the whole DAG, the sample and a user's own file."""

from __future__ import annotations

import csv
import json
import os
import re
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SAMPLE = REPOSITORY / "include" / "inquiries.csv"


@dataclass(frozen=True)
class Demo:
    """One run of the demo."""

    home: Path
    status: int
    screen: str
    log: str

    @property
    def answers(self) -> list[dict[str, str]]:
        found = re.search(r"^Answers: (.+)$", self.screen, re.MULTILINE)
        assert found, self.screen
        with Path(found[1]).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


def run_demo(home: Path, source: Path | None = None) -> Demo:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environment |= {"DEMO_HOME": str(home), **({"INPUT": str(source)} if source else {})}
    # A setting of the caller's own Airflow, which the demo must not follow.
    environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = "postgresql://nobody@127.0.0.1:1/none"
    ran = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "demo.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    log = home / "demo.log"
    return Demo(home, ran.returncode, ran.stdout + ran.stderr, log.read_text() if log.exists() else "")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return run_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def sample_rows() -> list[dict[str, str]]:
    with SAMPLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_sample_is_answered_row_for_row(sample: Demo, sample_rows: list[dict[str, str]]) -> None:
    assert sample.status == 0, sample.screen
    assert [row["inquiry_id"] for row in sample.answers] == [row["inquiry_id"] for row in sample_rows]
    assert [row["text"] for row in sample.answers] == [row["text"] for row in sample_rows]
    assert {row["status"] for row in sample.answers} == {"ok"}
    assert all(row["answer"] for row in sample.answers)
    assert {row["tier"] for row in sample.answers} == {"simple", "complex"}


def test_the_screen_shows_cost_audit_and_place(sample: Demo) -> None:
    assert re.search(r"^  support +offline/extractive +150 ", sample.screen, re.MULTILINE)
    assert re.search(r"^Audit trail: verifies, \d+ events .* 0 findings$", sample.screen, re.MULTILINE)
    assert "Rows: 150; answered 150, of them reused 0" in sample.screen
    assert sample.screen.count("  Q: ") == sample.screen.count("  A: ") == 2
    assert "Traceback" not in sample.screen


def test_personal_data_stays_in_the_rows(sample: Demo, sample_rows: list[dict[str, str]]) -> None:
    """Neither the log nor any database holds a customer's name, address, number or question."""
    texts = [row["text"] for row in sample_rows]
    planted = {row["customer_name"] for row in sample_rows}
    planted |= {value for text in texts for value in re.findall(r"[\w.+-]+@[\w.-]+\w|\b\d[\d -]{9,}\d\b", text)}
    planted |= {text[:40] for text in texts}
    assert len(planted) > 300
    databases = [path for folder in ("airflow", "ai") for path in (sample.home / folder).glob("*.db*")]
    stored = b"".join(path.read_bytes() for path in databases)
    stored += b"".join(path.read_bytes() for path in (sample.home / "ai" / "audit").rglob("*") if path.is_file())
    assert [value for value in planted if value in sample.log] == []
    assert [value for value in planted if value.encode() in stored] == []


def test_nothing_but_counts_goes_through_xcom(sample: Demo) -> None:
    with sqlite3.connect(sample.home / "airflow" / "airflow.db") as database:
        found = database.execute("SELECT task_id, key, value FROM xcom").fetchall()
    planned = {key: json.loads(str(value)) for task, key, value in found if task == "read_inquiries"}
    assert planned["return_value"] == ["0/1"]
    assert (planned["key"], planned["rows"]) == ("inquiry_id", 150)
    assert max(len(str(value)) for _, _, value in found) < 1000


def test_a_users_own_file_needs_only_text(sample: Demo, tmp_path: Path) -> None:
    """Parquet, without key, language, difficulty or name; rows are named by number; a repeated question is reused."""
    texts = ["My card was stolen, what do I do?", "How do I open an account?", "My card was stolen, what do I do?"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "own.parquet")
    demo = run_demo(sample.home, tmp_path / "own.parquet")
    assert demo.status == 0, demo.screen
    assert [row["row_number"] for row in demo.answers] == ["0", "1", "2"]
    assert [row["text"] for row in demo.answers] == texts
    assert demo.answers[0]["answer"] == demo.answers[2]["answer"]
    assert "Rows: 3; answered 3, of them reused 1" in demo.screen


def test_a_file_without_text_fails_and_says_so(sample: Demo, tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text("question\nwhy?\n")
    demo = run_demo(sample.home, tmp_path / "odd.csv")
    assert demo.status == 1
    assert re.search(r"The run failed: .*odd\.csv: the prompt names column text, which is missing", demo.screen)
    assert "Traceback" not in demo.screen


def test_a_file_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    demo = run_demo(tmp_path / "home", tmp_path / "nowhere.csv")
    assert demo.status == 1
    assert "nowhere.csv: there is no such file" in demo.screen
    assert not (tmp_path / "home").exists()
