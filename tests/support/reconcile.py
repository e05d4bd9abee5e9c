"""A ledger with calls in it, and invoices over them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Self

from sqlalchemy import func, select, text

from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, Status, open_attempts, settle
from airflow_ai_provider.core.ledger.attempts.disabled_deployments import stopped_deployments
from airflow_ai_provider.core.ledger.budgets.holds import take_hold
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.reconcile.invoices import open_invoice
from airflow_ai_provider.core.ledger.reconcile.reconcile import reconcile
from airflow_ai_provider.core.ledger.reconcile.report import ReconcileReport, Span
from airflow_ai_provider.core.ledger.schema import llm_adjustments, llm_budgets, llm_cost_daily, llm_requests, metadata
from support.ledger import TASK, period, request, settled

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
DAY = Span(NOON.replace(hour=0), NOON.replace(hour=0) + timedelta(days=1))
LATER = NOON + timedelta(days=30)
BOUND = 1000
LIMIT = 10**12
HEADER = "attempt_id,vendor_request_id,model,at,input_tokens,output_tokens,cached_input_tokens,cost_usd"


def usd(nano: int | Decimal) -> str:
    return f"{Decimal(nano).scaleb(-9):f}"


def billed(attempt_id: str, nano: int | Decimal, **fields: Any) -> str:
    """A line of the plain CSV."""
    values = {"vendor": "", "model": "gpt-4o-mini-2024-07-18", "at": NOON.isoformat(), "tokens": (10, 5, 0), **fields}
    tokens = ",".join(str(count) for count in values["tokens"])
    return f"{attempt_id},{values['vendor']},{values['model']},{values['at']},{tokens},{usd(nano)}"


def plain(*lines: str) -> bytes:
    return "\n".join([HEADER, *lines, ""]).encode()


@dataclass
class Desk:
    """Where calls are made and invoices reconciled; time goes on with every reconciliation."""

    ledger: Ledger
    now: datetime = LATER
    opened: dict[str, OpenAttempt] = field(default_factory=dict)
    calls: int = 0

    @classmethod
    def emptied(cls, ledger: Ledger) -> Self:
        with ledger.write() as conn:
            for table in metadata.sorted_tables:
                conn.execute(table.delete())
        return cls(ledger)

    def open(self, at: datetime = NOON, *, model: str = "openai/gpt-4o-mini", deployment: str = "small") -> str:
        self.calls += 1
        attempt_id = f"{int(at.timestamp() * 1000):012x}{self.calls:020x}"
        named = replace(request(), model=model, deployment=deployment, provider=model.partition("/")[0])
        opened = OpenAttempt(attempt_id, "hold", BOUND, at, named)
        with self.ledger.write() as conn:
            periods = [period(LIMIT), period(LIMIT, "organisation/total")]
            take_hold(conn, hold_id="hold", owner="me", task=TASK, periods=periods, amounts=[BOUND], now=at)
            open_attempts(conn, [opened])
        self.opened[attempt_id] = opened
        return attempt_id

    def settle(
        self, attempt_id: str, status: Status, cost: int, *, after: timedelta = timedelta(0), **more: Any
    ) -> str:
        opened = self.opened.pop(attempt_id)
        usage = Usage(10, 5) if status == "ok" else None
        row = settled(opened, cost, **{"status": status, "usage": usage, **more})
        with self.ledger.write() as conn:
            settle(conn, [replace(row, created_at=opened.opened_at + after)], opened.opened_at + after)
        return attempt_id

    def call(self, status: Status, cost: int = BOUND, *, at: datetime = NOON, **more: Any) -> str:
        where = {name: more.pop(name) for name in ("model", "deployment") if name in more}
        return self.settle(self.open(at, **where), status, cost, **more)

    def reconcile(self, invoice: bytes | Iterable[str], **how: Any) -> ReconcileReport:
        content = invoice if isinstance(invoice, bytes) else plain(*invoice)
        self.now += timedelta(minutes=1)
        return reconcile(self.ledger, open_invoice(io.BytesIO(content), "invoice.csv"), now=self.now, **how)

    def costs(self) -> Mapping[str, int]:
        """By attempt, adjustments included, as analysts see it."""
        with self.ledger.read() as conn:
            return {
                row[0]: int(row[1]) for row in conn.execute(text("SELECT attempt_id, cost_nano FROM llm_request_costs"))
            }

    def adjustments(self) -> list[dict[str, Any]]:
        with self.ledger.read() as conn:
            return [dict(row) for row in conn.execute(select(llm_adjustments)).mappings()]

    def stops(self) -> list[tuple[str, str, int]]:
        with self.ledger.read() as conn:
            return [(stop["deployment"], stop["attempt_id"], stop["over_nano"]) for stop in stopped_deployments(conn)]

    def total(self, column: Any) -> int:
        with self.ledger.read() as conn:
            return int(conn.execute(select(func.coalesce(func.sum(column), 0))).scalar_one())

    def assert_books_agree(self) -> None:
        """Rows with their adjustments, rollup and every budget say the same."""
        cost = sum(self.costs().values())
        moved = self.total(llm_adjustments.c.delta_nano)
        assert cost == self.total(llm_requests.c.cost_nano) + moved
        assert self.total(llm_cost_daily.c.cost_nano) == cost
        assert self.total(llm_cost_daily.c.adjusted_nano) == moved
        for name in ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens"):
            expected = self.total(llm_requests.c[name]) + self.total(llm_adjustments.c[name])
            assert self.total(llm_cost_daily.c[name]) == expected, name
        resolved = {row["attempt_id"] for row in self.adjustments()}
        with self.ledger.read() as conn:
            spent = list(conn.execute(select(llm_budgets.c.spent_nano)).scalars())
            unknown = set(
                conn.execute(select(llm_requests.c.attempt_id).where(llm_requests.c.status == "unknown")).scalars()
            )
        assert spent == [cost] * len(spent)
        assert self.total(llm_cost_daily.c.unknown) == len(unknown - resolved)
