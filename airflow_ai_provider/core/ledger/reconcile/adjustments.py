"""Moves an attempt of the ledger to the figure an invoice has for it.

``llm_requests`` is never changed: what an attempt costs now is its row and the sum of its ``llm_adjustments``. The
daily rollup and the budgets the attempt was charged to move in the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

from sqlalchemy import Connection, case, func, insert, select, text

from airflow_ai_provider.core.ledger.budgets.holds import charge
from airflow_ai_provider.core.ledger.database import upsert_adding
from airflow_ai_provider.core.ledger.reconcile.staging import TOKENS
from airflow_ai_provider.core.ledger.schema import (
    llm_adjustments,
    llm_budget_sets,
    llm_cost_daily,
    llm_requests,
)

_OF_ROW = ("attempt_id", "created_at", "team_id", "dag_id", "model", "deployment", "status", "budget_set")
COLUMNS = tuple(llm_requests.c[name] for name in (*_OF_ROW, "cost_nano", *TOKENS))
_ROLLUP = ["unknown", "cost_nano", "adjusted_nano", *TOKENS]
_LOCK = 0x6169_7265_636F  # any constant shared by all reconciliations; spells "aireco"


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt of the ledger as it is now: its row, and what earlier invoices changed."""

    attempt_id: str
    created_at: datetime
    team_id: str
    dag_id: str
    model: str
    deployment: str
    status: str
    budget_set: str | None
    row_nano: int
    """What its row says."""
    cost_nano: int
    """What it costs after all adjustments."""
    tokens: tuple[int, ...]
    """Of ``TOKENS``, after all adjustments."""
    adjustments: int
    superseded: bool
    """An invoice that was first seen after this one has changed it: its word stands."""

    @property
    def day(self) -> date:
        return self.created_at.date()

    @property
    def unresolved(self) -> bool:
        """Its cost is an upper bound, and no invoice has said more."""
        return self.status == "unknown" and self.adjustments == 0


@dataclass(frozen=True, slots=True)
class Change:
    """One adjustment: what is added to an attempt's cost and tokens; both may be below zero, or zero."""

    attempt: Attempt
    delta_nano: int
    tokens: tuple[int, ...]
    status: Literal["billed", "not_billed"]
    vendor_request_id: str | None = None

    @property
    def resolves(self) -> bool:
        return self.attempt.unresolved

    @property
    def above_bound(self) -> bool:
        """It counted with its upper bound until now, and cost more."""
        return self.resolves and self.delta_nano > 0


def move_to(
    attempt: Attempt,
    cost_nano: int,
    tokens: Sequence[int | None],
    *,
    billed: bool = True,
    vendor_request_id: str | None = None,
) -> Change | None:
    """The change to an invoiced cost and tokens (``None``: not said); ``None`` where nothing would change."""
    delta = cost_nano - attempt.cost_nano
    moved = tuple(0 if said is None else said - have for said, have in zip(tokens, attempt.tokens, strict=True))
    if not (delta or any(moved) or attempt.unresolved):
        return None
    return Change(attempt, delta, moved, "billed" if billed else "not_billed", vendor_request_id)


def one_at_a_time(conn: Connection) -> None:
    """Let another reconciliation's transaction end first. SQLite lets one writer in anyway."""
    if conn.dialect.name == "postgresql":
        conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def first_seen(conn: Connection, invoice: str) -> datetime | None:
    """When an invoice was reconciled first."""
    seen = conn.execute(
        select(func.min(llm_adjustments.c.adjusted_at)).where(llm_adjustments.c.invoice == invoice)
    ).scalar()
    return seen and _utc(seen)


def attempts_from(conn: Connection, rows: Sequence[Any], invoice: str, seen: datetime | None) -> dict[str, Attempt]:
    """Attempts by id, from rows of ``COLUMNS``. ``seen`` is when the invoice was first."""
    adjusted = _adjusted(conn, [row.attempt_id for row in rows], invoice, seen)
    found = {}
    for row in rows:
        sums = adjusted.get(row.attempt_id)
        more = tuple(int(sums[name]) for name in TOKENS) if sums else (0,) * len(TOKENS)
        found[row.attempt_id] = Attempt(
            attempt_id=row.attempt_id,
            created_at=_utc(row.created_at),
            team_id=row.team_id,
            dag_id=row.dag_id,
            model=row.model,
            deployment=row.deployment,
            status=row.status,
            budget_set=row.budget_set,
            row_nano=row.cost_nano,
            cost_nano=row.cost_nano + (int(sums["delta_nano"]) if sums else 0),
            tokens=tuple((getattr(row, name) or 0) + extra for name, extra in zip(TOKENS, more, strict=True)),
            adjustments=sums["adjustments"] if sums else 0,
            superseded=bool(sums and sums["later"]),
        )
    return found


def _adjusted(
    conn: Connection, attempt_ids: Collection[str], invoice: str, seen: datetime | None
) -> dict[str, Mapping[str, Any]]:
    later = (llm_adjustments.c.invoice != invoice) & (llm_adjustments.c.adjusted_at > seen) if seen else None
    query = (
        select(
            llm_adjustments.c.attempt_id,
            func.count().label("adjustments"),
            *(func.sum(llm_adjustments.c[name]).label(name) for name in ("delta_nano", *TOKENS)),
            func.sum(case((later, 1), else_=0) if later is not None else 0).label("later"),
        )
        .where(llm_adjustments.c.attempt_id.in_(list(attempt_ids)))
        .group_by(llm_adjustments.c.attempt_id)
    )
    return {row["attempt_id"]: dict(row) for row in conn.execute(query).mappings()}


def apply(conn: Connection, changes: Sequence[Change], invoice: str, now: datetime) -> None:
    """Write the adjustments and move rollup and budgets with them."""
    if not changes:
        return
    _charge(conn, changes, now)
    conn.execute(insert(llm_adjustments), [_row(change, invoice, now) for change in changes])
    for key, sums in sorted(_daily(changes).items()):
        names = ("day", "team_id", "dag_id", "model")
        conn.execute(
            upsert_adding(conn, llm_cost_daily, _ROLLUP),
            {**dict(zip(names, key, strict=True)), **sums},
        )


def _charge(conn: Connection, changes: Sequence[Change], now: datetime) -> None:
    """Budgets in the order of their ids, before the rollup: the order in which calls are settled."""
    by_set: dict[str, int] = {}
    for change in changes:
        if change.attempt.budget_set and change.delta_nano:
            by_set[change.attempt.budget_set] = by_set.get(change.attempt.budget_set, 0) + change.delta_nano
    sets = conn.execute(
        select(llm_budget_sets.c.budget_set, llm_budget_sets.c.budget_ids).where(
            llm_budget_sets.c.budget_set.in_(list(by_set))
        )
    )
    spent: dict[str, int] = {}
    for row in sets:
        for budget_id in json.loads(row.budget_ids):
            spent[budget_id] = spent.get(budget_id, 0) + by_set[row.budget_set]
    charge(conn, spent, now)


def _row(change: Change, invoice: str, now: datetime) -> dict[str, Any]:
    attempt = change.attempt
    return {
        "attempt_id": attempt.attempt_id,
        "invoice": invoice,
        "created_at": attempt.created_at,
        "adjusted_at": now,
        "team_id": attempt.team_id,
        "dag_id": attempt.dag_id,
        "model": attempt.model,
        "status": change.status,
        "delta_nano": change.delta_nano,
        **dict(zip(TOKENS, change.tokens, strict=True)),
        "vendor_request_id": change.vendor_request_id,
    }


def _daily(changes: Sequence[Change]) -> dict[tuple[Any, ...], dict[str, int]]:
    sums: dict[tuple[Any, ...], dict[str, int]] = {}
    for change in changes:
        attempt = change.attempt
        total = sums.setdefault(
            (attempt.day, attempt.team_id, attempt.dag_id, attempt.model), dict.fromkeys(_ROLLUP, 0)
        )
        total["unknown"] -= change.resolves
        total["cost_nano"] += change.delta_nano
        total["adjusted_nano"] += change.delta_nano
        for name, count in zip(TOKENS, change.tokens, strict=True):
            total[name] += count
    return sums


def _utc(moment: datetime) -> datetime:
    """SQLite gives times back without their zone."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
