"""Rows of a ledger, written as they stand, and the rollup made of them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert

from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.maintenance.partitions import make_months, month_of
from airflow_ai_provider.core.ledger.maintenance.upkeep import repair_day
from airflow_ai_provider.core.ledger.schema import llm_adjustments, llm_requests

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
_ROW = {
    "request_id": "r",
    "team_id": "support",
    "dag_id": "answers",
    "run_id": "run",
    "task_id": "answer",
    "map_index": -1,
    "try_number": 1,
    "row_key": "k",
    "route": "support",
    "tier": "simple",
    "deployment": "small",
    "model": "openai/gpt-4o-mini",
    "provider": "openai",
    "price_version": "p",
    "status": "ok",
    "input_tokens": 10,
    "output_tokens": 5,
    "cached_input_tokens": 0,
    "cost_nano": 0,
    "saved_nano": 0,
    "latency_ms": 7,
    "error_type": None,
    "cache_write_tokens": None,
    "prompt_bytes": 40,
    "baseline_nano": 0,
    "vendor_request_id": None,
    "budget_set": None,
}


def row(number: int, moment: datetime, **changes: Any) -> dict[str, Any]:
    """A row of ``llm_requests``; its attempt is named by its number."""
    return {"attempt_id": f"a{number:08d}", "created_at": moment, **_ROW, "cost_nano": number, **changes}


def adjustment(of: dict[str, Any], delta: int, when: datetime, invoice: str = "i1") -> dict[str, Any]:
    names = ("attempt_id", "created_at", "team_id", "dag_id", "model", "status")
    return {**{name: of[name] for name in names}, "invoice": invoice, "adjusted_at": when, "delta_nano": delta}


def write(ledger: Ledger, rows: Iterable[dict[str, Any]], adjustments: Iterable[dict[str, Any]] = ()) -> None:
    """Write rows and bring the rollup of their days up to date."""
    rows, adjustments = list(rows), list(adjustments)
    with ledger.write() as conn:
        make_months(conn, {month_of(one["created_at"]) for one in rows})
        for table, values in ((llm_requests, rows), (llm_adjustments, adjustments)):
            if values:
                conn.execute(insert(table), values)
    for day in {one["created_at"].date() for one in [*rows, *adjustments]}:
        repair_day(ledger, day)
