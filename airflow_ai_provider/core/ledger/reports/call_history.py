"""What a task's calls have been like lately: what a plan of the next ones is made from. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, case, func, select

from airflow_ai_provider.core.ledger.schema import llm_requests
from airflow_ai_provider.core.policy import TIERS

WINDOW = timedelta(days=30)
"""Older calls say little of the next ones: prompts, models and rows have changed since."""
MOST_CALLS = 20_000
"""The newest that are looked at: enough for any average, and soon read through the index on task and time."""
MOST_ROWS = 500_000
"""How far back the calls are looked for among rows that were reused: a task that reuses much has many of those."""


@dataclass(frozen=True, slots=True)
class CallHistory:
    """Sums over a task's recent attempts in one tier at one deployment, with one model."""

    tier: str
    deployment: str
    model: str
    answered: int
    unknown: int
    """Attempts without an answer that may have been charged."""
    prompt_bytes: int
    """Of the answered calls whose prompt's size is known."""
    prompt_tokens: int
    """Input tokens of those same calls."""
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    latency_ms: int
    went_up: int
    """Of the answered, those whose row was asked again in a higher tier."""


def call_history(conn: Connection, *, dag_id: str, task_id: str, now: datetime) -> list[CallHistory]:
    """What the ledger knows of a task's calls of the last ``WINDOW``, the newest ``MOST_CALLS`` of them.

    Rows that were reused are left out: they say nothing of what a call costs.
    """
    table = llm_requests.c
    rank = case({tier: number for number, tier in enumerate(TIERS)}, value=table.tier, else_=0)
    wanted = (
        *(table.request_id, table.tier, table.deployment, table.model, table.status, table.prompt_bytes),
        *(table.input_tokens, table.output_tokens, table.cached_input_tokens, table.cache_write_tokens),
        *(table.latency_ms, table.created_at, rank.label("rank")),
    )
    rows = (
        select(*wanted)
        .where(table.dag_id == dag_id, table.task_id == task_id, table.created_at > now - WINDOW)
        .order_by(table.created_at.desc())
        .limit(MOST_ROWS)
        .subquery("rows")
    )
    recent = (
        select(rows)
        .where(rows.c.status != "reused")
        .order_by(rows.c.created_at.desc())
        .limit(MOST_CALLS)
        .subquery("recent")
    )
    top = func.max(recent.c.rank).over(partition_by=recent.c.request_id)
    calls = select(recent, top.label("top")).subquery("calls").c
    answered = calls.status == "ok"
    measured = answered & (calls.prompt_bytes > 0)
    sums = {
        "answered": func.sum(case((answered, 1), else_=0)),
        "unknown": func.sum(case((calls.status == "unknown", 1), else_=0)),
        "prompt_bytes": func.sum(case((measured, calls.prompt_bytes), else_=0)),
        "prompt_tokens": func.sum(case((measured, calls.input_tokens), else_=0)),
        "input_tokens": func.sum(case((answered, calls.input_tokens), else_=0)),
        "output_tokens": func.sum(case((answered, calls.output_tokens), else_=0)),
        "cached_tokens": func.sum(case((answered, calls.cached_input_tokens), else_=0)),
        "cache_write_tokens": func.sum(case((answered, calls.cache_write_tokens), else_=0)),
        "latency_ms": func.sum(case((answered, calls.latency_ms), else_=0)),
        "went_up": func.sum(case((answered & (calls.top > calls.rank), 1), else_=0)),
    }
    groups = (calls.tier, calls.deployment, calls.model)
    query = select(*groups, *(column.label(name) for name, column in sums.items())).group_by(*groups).order_by(*groups)
    return [
        CallHistory(row["tier"], row["deployment"], row["model"], **{name: int(row[name] or 0) for name in sums})
        for row in conn.execute(query).mappings()
    ]


def spent_since(conn: Connection, *, dag_id: str, run_id: str, task_id: str, map_index: int, since: datetime) -> int:
    """What a task instance has spent from a moment on, over all its tries, in nano-dollars."""
    table = llm_requests.c
    query = select(func.sum(table.cost_nano)).where(
        table.dag_id == dag_id,
        table.task_id == task_id,
        table.created_at >= since,
        table.run_id == run_id,
        table.map_index == map_index,
    )
    return int(conn.execute(query).scalar() or 0)
