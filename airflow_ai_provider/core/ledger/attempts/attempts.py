"""Attempts: opened before the request leaves, settled when it is known what came of it.

Each function runs inside the caller's transaction and may be run again after a commit whose outcome was lost: money
moves only for attempts that are still open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, Table, delete, select

from airflow_ai_provider.core.errors import LedgerError
from airflow_ai_provider.core.ledger.attempts.disabled_deployments import refuse_stopped, stop_deployment
from airflow_ai_provider.core.ledger.budgets.holds import (
    TaskRef,
    close_holds,
    refuse_taken_over,
    release,
    same_task,
    usable_holds,
)
from airflow_ai_provider.core.ledger.bulk import among, id_lists, insert_rows
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.ledger.database import upsert_adding
from airflow_ai_provider.core.ledger.maintenance.partitions import make_months, month_of
from airflow_ai_provider.core.ledger.schema import llm_cost_daily, llm_holds, llm_open_attempts, llm_requests

Status = Literal["ok", "reused", "error", "unknown"]
_SUMS = (
    "requests reused errors unknown input_tokens output_tokens cached_input_tokens cache_write_tokens cost_nano"
    " saved_nano baseline_nano"
).split()
_NOTHING = Usage(0, 0)
_REQUEST_COLUMNS = tuple(
    "request_id team_id dag_id run_id task_id map_index try_number row_key route tier deployment model provider"
    " price_version prompt_bytes routed_by fallback_from fallback_reason".split()
)
_OPEN_COLUMNS = ("attempt_id", "hold_id", "bound_nano", "opened_at", *_REQUEST_COLUMNS)
_SETTLED_COLUMNS = (
    "attempt_id",
    "created_at",
    *_REQUEST_COLUMNS,
    "status",
    *("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
    *("cost_nano", "saved_nano", "baseline_nano", "latency_ms", "error_type", "vendor_request_id", "budget_set"),
)


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
    routed_by: str | None = None
    """How the tier was chosen: a short name, such as ``column`` or ``rules:length``."""
    fallback_from: str | None = None
    """The deployment that was to take this request before this one."""
    fallback_reason: str | None = None
    """Why it did not: a short name, such as ``circuit_open`` or ``rate_limited``."""


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


def open_attempts(conn: Connection, attempts: Sequence[OpenAttempt], *, replay: bool = False) -> None:
    """Write attempts down before they are sent; on a ``replay`` those that are there already are left out.

    Raises ``DeploymentStopped`` where one of their deployments is stopped. Raises ``LedgerError`` where their hold is
    gone, settled by a successor of this try, or a successor holds room: this process must send nothing more.
    """
    holds = {attempt.hold_id for attempt in attempts}
    if usable_holds(conn, sorted(holds)) != holds:
        raise LedgerError("this try was fenced off: a newer try of the task has taken over; nothing more is sent")
    refuse_stopped(conn, {attempt.request.deployment for attempt in attempts})
    there = _present(conn, llm_open_attempts, [attempt.attempt_id for attempt in attempts]) if replay else frozenset()
    rows = [
        (attempt.attempt_id, attempt.hold_id, attempt.bound_nano, attempt.opened_at, *_request_values(attempt.request))
        for attempt in attempts
        if attempt.attempt_id not in there
    ]
    insert_rows(conn, llm_open_attempts, _OPEN_COLUMNS, rows)


def settle(conn: Connection, settled: Sequence[Settled], now: datetime, *, replay: bool = False) -> None:
    """Close attempts, write their rows, move the money and bring the rollup up to date.

    Attempts that are no longer open are left alone: they were settled before. Rows with status ``reused`` never were
    open and are simply written; on a ``replay`` those that are there already are left out.
    """
    if replay:
        there = _present(conn, llm_requests, [s.attempt_id for s in settled])
        settled = [s for s in settled if s.attempt_id not in there]
    opened = {s.attempt_id: s for s in settled if s.status != "reused"}
    closed = _close(conn, list(opened))
    held: dict[str, int] = {}
    spent: dict[str, int] = {}
    for attempt_id, (hold_id, bound) in closed.items():
        item = opened[attempt_id]
        held[hold_id] = held.get(hold_id, 0) + (0 if item.keeps_hold else bound)
        spent[hold_id] = spent.get(hold_id, 0) + item.cost_nano
        if item.cost_nano > bound:
            over = item.cost_nano - bound
            stop_deployment(conn, item.request.deployment, attempt_id=attempt_id, over_nano=over, now=now)
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
    settled = unknown_attempts(conn, hold_ids, now)
    settle(conn, settled, now)
    close_holds(conn, hold_ids, now)
    return settled


def unknown_attempts(conn: Connection, hold_ids: Sequence[str], now: datetime) -> list[Settled]:
    """What dead processes left open under these holds, each at the whole of its share."""
    query = select(llm_open_attempts).where(llm_open_attempts.c.hold_id.in_(hold_ids))
    return [
        Settled(
            attempt_id=row["attempt_id"],
            created_at=now,
            request=_request_from(row),
            status="unknown",
            usage=None,
            cost_nano=row["bound_nano"],
            error_type="task_died",
        )
        for row in conn.execute(query).mappings()
    ]


def _close(conn: Connection, attempt_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Remove open attempts; returns hold and bound of those that were there."""
    closed: dict[str, tuple[str, int]] = {}
    for ids in id_lists(conn, attempt_ids):
        rows = conn.execute(
            delete(llm_open_attempts)
            .where(among(conn, llm_open_attempts.c.attempt_id, ids))
            .returning(llm_open_attempts.c.attempt_id, llm_open_attempts.c.hold_id, llm_open_attempts.c.bound_nano)
        )
        closed.update({row.attempt_id: (row.hold_id, row.bound_nano) for row in rows})
    return closed


def _present(conn: Connection, table: Table, attempt_ids: Sequence[str]) -> frozenset[str]:
    """Those of the attempts that are in a table."""
    found: set[str] = set()
    for ids in id_lists(conn, attempt_ids):
        found.update(conn.execute(select(table.c.attempt_id).where(among(conn, table.c.attempt_id, ids))).scalars())
    return frozenset(found)


def _write(conn: Connection, settled: Sequence[Settled], budget_sets: Mapping[str, str | None]) -> None:
    if not settled:
        return
    make_months(conn, {month_of(moment) for moment in {item.created_at for item in settled}})
    rows = [_row(item, budget_sets.get(item.attempt_id)) for item in settled]
    insert_rows(conn, llm_requests, _SETTLED_COLUMNS, rows)
    for key, sums in sorted(_daily(settled).items()):
        conn.execute(
            upsert_adding(conn, llm_cost_daily, _SUMS),
            {**dict(zip(("day", "team_id", "dag_id", "model"), key, strict=True)), **sums},
        )


def _row(item: Settled, budget_set: str | None) -> tuple[Any, ...]:
    usage = item.usage
    written = (usage.cache_write, usage.cache_write_1h) if usage else (None, None)
    tokens = (usage.input, usage.output, usage.cached_input, *written) if usage else (None,) * 5
    return (
        item.attempt_id,
        item.created_at,
        *_request_values(item.request),
        item.status,
        *tokens,
        item.cost_nano,
        item.saved_nano,
        item.baseline_nano,
        item.latency_ms,
        item.error_type,
        item.vendor_request_id,
        budget_set,
    )


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


def _request_values(request: Request) -> tuple[Any, ...]:
    """In the order of ``_REQUEST_COLUMNS``."""
    task = request.task
    return (
        request.request_id,
        task.team_id,
        task.dag_id,
        task.run_id,
        task.task_id,
        task.map_index,
        task.try_number,
        request.row_key,
        request.route,
        request.tier,
        request.deployment,
        request.model,
        request.provider,
        request.price_version,
        request.prompt_bytes,
        request.routed_by,
        request.fallback_from,
        request.fallback_reason,
    )


def _request_from(row: Any) -> Request:
    task = TaskRef(**{field.name: row[field.name] for field in fields(TaskRef)})
    own = {field.name: row[field.name] for field in fields(Request) if field.name != "task"}
    return Request(task=task, **own)
