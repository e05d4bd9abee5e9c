"""Attempts: opened before the request leaves, settled when it is known what came of it.

Each function runs inside the caller's transaction and may be run again after a commit whose outcome was lost: money
moves only for attempts that are still open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, delete, select

from airflow_ai_provider.errors import LedgerError
from airflow_ai_provider.ledger.database import insert_ignore, upsert_adding
from airflow_ai_provider.ledger.holds import TaskRef, close_holds, refuse_taken_over, release, same_task, usable_holds
from airflow_ai_provider.ledger.money import Usage
from airflow_ai_provider.ledger.partitions import make_months, month_of
from airflow_ai_provider.ledger.schema import llm_cost_daily, llm_holds, llm_open_attempts, llm_requests

Status = Literal["ok", "reused", "error", "unknown"]
_SUMS = (
    "requests reused errors unknown input_tokens output_tokens cached_input_tokens cache_write_tokens cost_nano"
    " saved_nano baseline_nano"
).split()
_NOTHING = Usage(0, 0)
_CHUNK = 500  # identifiers per IN list; SQLite takes at most 32,766 parameters


@dataclass(frozen=True, slots=True)
class Request:
    """What a ledger row says of a request, whatever came of it."""

    request_id: str
    task: TaskRef
    row_key: str
    route: str
    tier: str
    deployment: str
    model: str
    provider: str
    price_version: str
    prompt_bytes: int = 0
    """UTF-8 bytes of the masked prompt; with the billed tokens they tell what a prompt of the task costs."""


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """One HTTP request about to leave. ``bound_nano`` of the hold is its share."""

    attempt_id: str
    hold_id: str
    bound_nano: int
    opened_at: datetime
    request: Request


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of a request. ``usage`` is ``None`` where the vendor's figure is not known."""

    attempt_id: str
    created_at: datetime
    request: Request
    status: Status
    usage: Usage | None
    cost_nano: int = 0
    saved_nano: int = 0
    latency_ms: int | None = None
    error_type: str | None = None
    baseline_nano: int = 0
    """What the route's highest tier would have charged for the same usage; 0 where nothing was answered by a call."""
    vendor_request_id: str | None = None
    """The vendor's own name of the request, as its invoice may have it."""
    keeps_hold: bool = False
    """The attempt cost nothing and its share of the hold serves the next one."""


def open_attempts(conn: Connection, attempts: Sequence[OpenAttempt]) -> None:
    """Write attempts down before they are sent.

    Raises ``LedgerError`` where their hold is gone, settled by a successor of this try, or a successor holds room:
    this process must send nothing more.
    """
    holds = {attempt.hold_id for attempt in attempts}
    if usable_holds(conn, sorted(holds)) != holds:
        raise LedgerError("this try was fenced off: a newer try of the task has taken over; nothing more is sent")
    rows = [
        {
            "attempt_id": attempt.attempt_id,
            "hold_id": attempt.hold_id,
            "bound_nano": attempt.bound_nano,
            "opened_at": attempt.opened_at,
            **_request_columns(attempt.request),
        }
        for attempt in attempts
    ]
    conn.execute(insert_ignore(conn, llm_open_attempts), rows)


def settle(conn: Connection, settled: Sequence[Settled], now: datetime, *, replay: bool = False) -> None:
    """Close attempts, write their rows, move the money and bring the rollup up to date.

    Attempts that are no longer open are left alone: they were settled before. Rows with status ``reused`` never were
    open and are simply written; on a ``replay`` those that are there already are left out.
    """
    if replay:
        there = _written(conn, [s.attempt_id for s in settled])
        settled = [s for s in settled if s.attempt_id not in there]
    opened = {s.attempt_id: s for s in settled if s.status != "reused"}
    closed = _close(conn, list(opened))
    held: dict[str, int] = {}
    spent: dict[str, int] = {}
    for attempt_id, (hold_id, bound) in closed.items():
        item = opened[attempt_id]
        held[hold_id] = held.get(hold_id, 0) + (0 if item.keeps_hold else bound)
        spent[hold_id] = spent.get(hold_id, 0) + item.cost_nano
    sets = release(conn, held, spent, now)
    rows = [s for s in settled if s.status == "reused" or s.attempt_id in closed]
    _write(conn, rows, {attempt_id: sets.get(hold_id) for attempt_id, (hold_id, _) in closed.items()})


def recover(conn: Connection, task: TaskRef, owner: str, now: datetime) -> list[Settled]:
    """Settle what dead predecessors of a task instance left open, as ``unknown`` at the whole of its hold.

    Predecessors are holders of the same dag, run, task and map index with another owner. Returns what was settled.
    """
    refuse_taken_over(conn, owner, task)
    holds = conn.execute(
        select(llm_holds.c.hold_id).where(same_task(task), llm_holds.c.owner != owner).with_for_update()
    ).scalars()
    hold_ids = list(holds)
    if not hold_ids:
        return []
    rows = conn.execute(select(llm_open_attempts).where(llm_open_attempts.c.hold_id.in_(hold_ids))).mappings().all()
    settled = [
        Settled(
            attempt_id=row["attempt_id"],
            created_at=now,
            request=_request_from(row),
            status="unknown",
            usage=None,
            cost_nano=row["bound_nano"],
            error_type="task_died",
        )
        for row in rows
    ]
    settle(conn, settled, now)
    close_holds(conn, hold_ids, now)
    return settled


def _close(conn: Connection, attempt_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Remove open attempts; returns hold and bound of those that were there."""
    closed: dict[str, tuple[str, int]] = {}
    for start in range(0, len(attempt_ids), _CHUNK):
        rows = conn.execute(
            delete(llm_open_attempts)
            .where(llm_open_attempts.c.attempt_id.in_(attempt_ids[start : start + _CHUNK]))
            .returning(llm_open_attempts.c.attempt_id, llm_open_attempts.c.hold_id, llm_open_attempts.c.bound_nano)
        )
        closed.update({row.attempt_id: (row.hold_id, row.bound_nano) for row in rows})
    return closed


def _written(conn: Connection, attempt_ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(attempt_ids), _CHUNK):
        chunk = attempt_ids[start : start + _CHUNK]
        found.update(
            conn.execute(select(llm_requests.c.attempt_id).where(llm_requests.c.attempt_id.in_(chunk))).scalars()
        )
    return found


def _write(conn: Connection, settled: Sequence[Settled], budget_sets: Mapping[str, str | None]) -> None:
    if not settled:
        return
    make_months(conn, {month_of(item.created_at) for item in settled})
    rows = [_row(item, budget_sets.get(item.attempt_id)) for item in settled]
    conn.execute(insert_ignore(conn, llm_requests), rows)
    for key, sums in sorted(_daily(settled).items()):
        conn.execute(
            upsert_adding(conn, llm_cost_daily, _SUMS),
            {**dict(zip(("day", "team_id", "dag_id", "model"), key, strict=True)), **sums},
        )


def _row(item: Settled, budget_set: str | None) -> dict[str, Any]:
    return {
        "attempt_id": item.attempt_id,
        "created_at": item.created_at,
        **_request_columns(item.request),
        "status": item.status,
        "input_tokens": item.usage.input if item.usage else None,
        "output_tokens": item.usage.output if item.usage else None,
        "cached_input_tokens": item.usage.cached_input if item.usage else None,
        "cost_nano": item.cost_nano,
        "saved_nano": item.saved_nano,
        "latency_ms": item.latency_ms,
        "error_type": item.error_type,
        "cache_write_tokens": item.usage.cache_write if item.usage else None,
        "cache_write_1h_tokens": item.usage.cache_write_1h if item.usage else None,
        "baseline_nano": item.baseline_nano,
        "vendor_request_id": item.vendor_request_id,
        "budget_set": budget_set,
    }


def _daily(settled: Iterable[Settled]) -> dict[tuple[Any, ...], dict[str, int]]:
    """Sums by day (UTC), team, dag and model."""
    sums: dict[tuple[Any, ...], dict[str, int]] = {}
    for item in settled:
        task, usage = item.request.task, item.usage or _NOTHING
        key = (item.created_at.astimezone(UTC).date(), task.team_id, task.dag_id, item.request.model)
        total = sums.setdefault(key, dict.fromkeys(_SUMS, 0))
        total["requests"] += 1
        total["reused"] += item.status == "reused"
        total["errors"] += item.status == "error"
        total["unknown"] += item.status == "unknown"
        total["input_tokens"] += usage.input
        total["output_tokens"] += usage.output
        total["cached_input_tokens"] += usage.cached_input
        total["cache_write_tokens"] += usage.cache_write
        total["cost_nano"] += item.cost_nano
        total["saved_nano"] += item.saved_nano
        total["baseline_nano"] += item.baseline_nano
    return sums


def _request_columns(request: Request) -> dict[str, Any]:
    task = request.task
    return {
        "request_id": request.request_id,
        "team_id": task.team_id,
        "dag_id": task.dag_id,
        "run_id": task.run_id,
        "task_id": task.task_id,
        "map_index": task.map_index,
        "try_number": task.try_number,
        "row_key": request.row_key,
        "route": request.route,
        "tier": request.tier,
        "deployment": request.deployment,
        "model": request.model,
        "provider": request.provider,
        "price_version": request.price_version,
        "prompt_bytes": request.prompt_bytes,
    }


def _request_from(row: Any) -> Request:
    task = TaskRef(**{field.name: row[field.name] for field in fields(TaskRef)})
    own = {field.name: row[field.name] for field in fields(Request) if field.name != "task"}
    return Request(task=task, **own)
