"""The questions of include/sql read the months and days they ask for, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.maintenance.partitions import make_months, months_from

QUERIES = sorted((Path(__file__).resolve().parents[4] / "include" / "sql").glob("*.sql"))
BOUND = re.compile(r"created_at >= '[^']+'")
BOUNDED = [path for path in QUERIES if BOUND.search(path.read_text()) and ".sqlite." not in path.name]
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
_ROWS = """
INSERT INTO llm_requests (attempt_id, created_at, request_id, team_id, dag_id, run_id, task_id, map_index, try_number,
    row_key, route, tier, deployment, model, provider, price_version, status, cost_nano, baseline_nano, latency_ms,
    error_type)
SELECT 'a' || n, CAST(:first AS timestamptz) + n * interval '260 seconds', 'r' || n, 'team_' || n % 50,
    'dag_' || n % 50, 'run', 'task', -1, 1, 'k', 'route', 'simple', 'd' || n % 3, 'm/' || n % 50, 'm', 'p',
    CASE WHEN n % 500 = 0 THEN 'unknown' ELSE 'ok' END, 5, 9, n % 999, CASE WHEN n % 500 = 0 THEN 'timeout' END
FROM generate_series(0, 29999) AS n
"""


@pytest.fixture(scope="module")
def filled(postgres: Any) -> Iterator[Ledger]:
    """30,000 requests of January to March."""
    with Ledger.open(postgres.create_database("questions")) as ledger:
        with ledger.write() as conn:
            make_months(conn, months_from(FIRST, 4))
            conn.execute(text(_ROWS), {"first": FIRST})
        with ledger.statements() as conn:
            conn.execute(text("ANALYZE llm_requests"))
        yield ledger
    postgres.drop_database("questions")


def plan(ledger: Ledger, query: str) -> list[dict[str, Any]]:
    """Every node of a query's plan."""
    with ledger.read() as conn:
        (told,) = conn.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {query}".replace("%", "%%")).scalars()
    found, waiting = [], [(told if isinstance(told, list) else json.loads(told))[0]["Plan"]]
    while waiting:
        node = waiting.pop()
        found.append(node)
        waiting += node.get("Plans", [])
    return found


def months_read(nodes: list[dict[str, Any]]) -> set[str]:
    return {name for node in nodes if re.fullmatch(r"llm_requests_\d{4}_\d\d", name := node.get("Relation Name", ""))}


@pytest.mark.parametrize("path", BOUNDED, ids=lambda path: path.name)
def test_a_question_about_one_month_reads_no_other(filled: Ledger, path: Path) -> None:
    asked = BOUND.sub("created_at >= '2026-03-01 00:00:00+00'", path.read_text())
    read = months_read(plan(filled, asked))
    assert "llm_requests_2026_03" in read
    assert read.isdisjoint({"llm_requests_2026_01", "llm_requests_2026_02"})
    every = BOUND.sub("created_at >= '2026-01-01 00:00:00+00'", path.read_text())
    assert "llm_requests_2026_01" in months_read(plan(filled, every))


@pytest.mark.parametrize("path", BOUNDED, ids=lambda path: path.name)
def test_a_question_about_one_day_finds_it_by_index(filled: Ledger, path: Path) -> None:
    asked = BOUND.sub("{0} >= '2026-02-10 00:00:00+00' AND {0} < '2026-02-11 00:00:00+00'", path.read_text())
    asked = re.sub(r"([a-z]*\.?)\{0\}([^{]*)\{0\}", r"\1created_at\2\1created_at", asked)
    nodes = plan(filled, asked)
    assert months_read(nodes) == {"llm_requests_2026_02"}
    assert [node for node in nodes if node["Node Type"] == "Seq Scan" and "llm_requests" in node["Relation Name"]] == []


@pytest.mark.parametrize(
    ("condition", "columns"),
    [
        ("team_id = 'team_7'", "team_id"),
        ("dag_id = 'dag_7' AND task_id = 'task'", "dag_id"),
        ("model = 'm/7'", "model"),
        ("status = 'unknown'", "created_at"),
    ],
)
def test_one_team_task_or_model_is_found_by_its_index(filled: Ledger, condition: str, columns: str) -> None:
    query = f"SELECT SUM(cost_nano) FROM llm_requests WHERE {condition} AND created_at >= '2026-02-10 00:00:00+00' "
    nodes = plan(filled, query + "AND created_at < '2026-02-25 00:00:00+00'")
    conditions = [str(node.get("Index Cond", "")) for node in nodes]
    assert any(columns in condition for condition in conditions), nodes
    assert months_read(nodes) == {"llm_requests_2026_02"}


def test_the_rollup_finds_its_days_by_key(filled: Ledger) -> None:
    nodes = plan(filled, "SELECT * FROM team_daily_cost WHERE day >= '2026-02-10' AND day < '2026-03-12'")
    assert any("day" in str(node.get("Index Cond", "")) for node in nodes)
    assert months_read(nodes) == set()


@pytest.mark.parametrize(
    ("condition", "index"),
    [
        ("team_id = 'x'", "llm_requests_team_time"),
        ("dag_id = 'x' AND task_id = 'y'", "llm_requests_task"),
        ("model = 'x'", "llm_requests_model"),
        ("1 = 1", "llm_requests_time"),
    ],
)
def test_sqlite_finds_its_rows_by_the_same_indexes(tmp_path: Path, condition: str, index: str) -> None:
    query = f"SELECT SUM(cost_nano) FROM llm_requests WHERE {condition} AND created_at >= '2026-02-10'"
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger, ledger.read() as conn:
        steps = [row.detail for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}")]
    assert any(f"USING INDEX {index} " in step for step in steps), steps


def test_questions_are_bounded_by_a_day() -> None:
    """All but budgets, forecasts and reviews, which read tables that stay small."""
    free = {path.name for path in QUERIES if not re.search(r"(?:created_at|day) >= '", path.read_text())}
    assert free == {"budgets.sql", "forecast.sqlite.sql", "forecast.postgresql.sql", "reviews.sql"}
    assert len(BOUNDED) >= 6
