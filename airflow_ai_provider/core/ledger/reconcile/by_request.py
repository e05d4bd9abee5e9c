"""An invoice that names its requests against the ledger, request by request.

Two rules. Money goes down only for an attempt that the invoice names, or that lies well within a stretch of time for
which the invoice was said to be complete. And an attempt that is still open is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, or_, select

from airflow_ai_provider.core.errors import LedgerError
from airflow_ai_provider.core.ledger.attempts.disabled_deployments import stop_deployment
from airflow_ai_provider.core.ledger.call_costs import usd_from_nano
from airflow_ai_provider.core.ledger.database import Ledger, Scratch
from airflow_ai_provider.core.ledger.model_names import ModelNames
from airflow_ai_provider.core.ledger.reconcile.adjustments import (
    COLUMNS,
    Attempt,
    Change,
    apply,
    attempts_from,
    first_seen,
    move_to,
    one_at_a_time,
)
from airflow_ai_provider.core.ledger.reconcile.invoices import Invoice
from airflow_ai_provider.core.ledger.reconcile.report import DayModel, Figures, Finding, ReconcileReport, Span
from airflow_ai_provider.core.ledger.reconcile.staging import TOKENS, ambiguous, bills, nameless, staged
from airflow_ai_provider.core.ledger.schema import llm_open_attempts, llm_requests

CHUNK = 500
"""Attempts per transaction."""
CLOCKS = timedelta(minutes=5)
"""How far a vendor's clock may be behind ours."""
LATE = timedelta(hours=1)
"""How long after we stopped waiting a vendor may still date and charge a request."""
_LONGEST_CALL = timedelta(days=1)
"""A call that died with its process is settled when its task is tried again; it was over long before."""
_ATTEMPT = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class _Line:
    """What is said of a line that belongs to no settled attempt."""

    number: int
    day: date
    model: str
    cost_nano: int
    input_tokens: int | None
    output_tokens: int | None


@dataclass(slots=True)
class _Day:
    ledger: Figures = field(default_factory=Figures)
    invoice: Figures = field(default_factory=Figures)
    unknown: int = 0


class RequestReconciliation:
    """One run over one invoice."""

    def __init__(
        self,
        ledger: Ledger,
        invoice: Invoice,
        report: ReconcileReport,
        *,
        now: datetime,
        covers: Span | None,
        deployments: Sequence[str] | None,
        progress: Callable[[str, int], None],
    ) -> None:
        self._ledger = ledger
        self._invoice = invoice
        self._report = report
        self._now = now
        self._covers = covers
        self._deployments = deployments
        self._progress = progress
        self._days: dict[tuple[date, str], _Day] = {}
        self._names = ModelNames(())
        self._doubtful: set[str] = set()
        """Models of which nothing is lowered for not being on the invoice."""
        self._all_doubtful = False
        self._without_budgets = self._without_budgets_nano = 0

    def run(self) -> None:
        """Raises ``LedgerError`` where a coverage does not say what it covers, and what reading the invoice raises."""
        with self._ledger.scratch() as scratch, staged(scratch, self._invoice.lines, self._progress) as lines:
            self._report.lines = lines
            with scratch.read() as conn:
                seen = first_seen(conn, self._invoice.digest)
                self._names = ModelNames(self._models(conn))
                if self._covers:
                    self._require_one_account(conn, self._covers)
                self._set_aside(conn)
            marker = self._take(scratch, seen, _billed_rows, self._settle_bills)
            if self._covers:
                self._take(scratch, seen, self._covered_rows, self._settle_absent)
            if marker and not self._report.dry_run:
                self._leave_mark(scratch, marker)
        self._report.days = [
            DayModel(day, model, found.ledger, found.invoice, found.unknown)
            for (day, model), found in sorted(self._days.items())
        ]
        self._add_budget_finding()

    def _models(self, conn: Connection) -> list[str]:
        """Of the attempts that the invoice names, and of those it covers."""
        model = select(llm_requests.c.model).distinct()
        queries = [model.join(bills, bills.c.attempt_id == llm_requests.c.attempt_id)]
        if self._covers:
            queries.append(model.where(self._covered(self._covers)))
        return [name for query in queries for name in conn.execute(query).scalars()]

    def _require_one_account(self, conn: Connection, covers: Span) -> None:
        if self._deployments:
            return
        calls = [llm_requests.c.status != "reused", self._covered(covers)]
        found = sorted(conn.execute(select(llm_requests.c.deployment).distinct().where(*calls)).scalars())
        if len(found) > 1:
            raise LedgerError(
                f"covers {covers}: calls of deployments {', '.join(found)} lie in it; say with --deployments which of "
                "them this invoice is for, or an unknown call of another vendor would be taken for uncharged"
            )

    def _set_aside(self, conn: Connection) -> None:
        """Lines that belong to no attempt."""
        for line in ambiguous(conn):
            self._report.findings.add(
                Finding(
                    "ambiguous_id",
                    f"line {line.number}",
                    "its vendor_request_id belongs to several attempts of the ledger",
                    invoice_nano=line.cost_nano,
                )
            )
            self._only_invoiced(line)
            self._doubt(line.model)
        for line in nameless(conn):
            self._not_in_ledger(line)
            self._doubt(line.model)

    def _doubt(self, model: str) -> None:
        """A line without an attempt's id may be that of any unknown call of its model."""
        self._doubtful.add(self._names.of_invoice(model))
        self._all_doubtful |= not self._names.knows(model)

    def _take(
        self,
        scratch: Scratch,
        seen: datetime | None,
        rows_after: Callable[[str], Any],
        settle: Callable[[Sequence[Any], dict[str, Attempt]], list[Change]],
    ) -> Attempt | None:
        """Chunk by chunk in the order of attempt ids, a transaction each. Returns the first attempt met."""
        after, first, done = "", None, 0
        while True:
            with self._transaction(scratch) as conn:
                rows = scratch.tables.execute(rows_after(after).limit(CHUNK)).all()
                attempts = attempts_from(conn, [row for row in rows if row.status], self._invoice.digest, seen)
                changes = settle(rows, attempts)
                if not self._report.dry_run:
                    apply(conn, changes, self._invoice.digest, self._now)
                    self._stop_dearer(conn, changes)
            for change in changes:
                self._count(change)
            first = first or next(iter(attempts.values()), None)
            done += len(rows)
            self._progress("match", done)
            if len(rows) < CHUNK:
                return first
            after = rows[-1].bill_id

    def _transaction(self, scratch: Scratch) -> AbstractContextManager[Connection]:
        return scratch.read() if self._report.dry_run else _locked(scratch)

    def _stop_dearer(self, conn: Connection, changes: Sequence[Change]) -> None:
        """Stop deployments that charged above a bound, as the call itself would have, had its answer arrived."""
        for change in changes:
            if change.above_bound:
                name, attempt_id = change.attempt.deployment, change.attempt.attempt_id
                stop_deployment(conn, name, attempt_id=attempt_id, over_nano=change.delta_nano, now=self._now)
                self._report.stopped.add(name)

    # -- what the invoice names

    def _settle_bills(self, rows: Sequence[Any], attempts: dict[str, Attempt]) -> list[Change]:
        changes = []
        for row in rows:
            attempt = attempts.get(row.bill_id)
            if attempt is None:
                self._unmatched(row)
                continue
            self._report.matched += 1
            change = self._settle_bill(row, attempt)
            if change:
                changes.append(change)
        return changes

    def _settle_bill(self, row: Any, attempt: Attempt) -> Change | None:
        tokens = [_int(getattr(row, f"bill_{name}")) for name in TOKENS]
        billed = int(row.bill_nano)
        if row.bill_lines > 1:
            self._find("charged_again", attempt, f"charged on {row.bill_lines} lines", billed)
        change = None
        if attempt.superseded:
            if billed != attempt.cost_nano:
                self._find("superseded", attempt, "an invoice that came later says otherwise, and stands", billed)
        else:
            change = move_to(attempt, billed, tokens, vendor_request_id=row.bill_vendor_request_id)
            self._judge(attempt, billed, change)
        self._compare(attempt, change, billed, tokens)
        return change

    def _judge(self, attempt: Attempt, billed: int, change: Change | None) -> None:
        if change is not None and change.above_bound:
            detail = f"charged more than the upper bound that was held for it by deployment {attempt.deployment}"
            self._find("above_bound", attempt, detail, billed)
        elif attempt.status != "unknown" and change is not None:
            what = "cost" if change.delta_nano else "tokens"
            self._find("differs", attempt, f"the invoice has another {what} than the {attempt.status} row", billed)

    def _unmatched(self, row: Any) -> None:
        tokens = [_int(getattr(row, f"bill_{name}")) for name in TOKENS[:2]]
        line = _Line(row.number, row.day, row.bill_model, int(row.bill_nano), *tokens)
        if row.open_id is None:
            self._not_in_ledger(line)
            if not _is_attempt(row.bill_id, row.day):
                self._doubt(row.bill_model)
            return
        detail = "the call is still open in the ledger; reconcile again once it is settled"
        self._report.findings.add(Finding("still_open", row.bill_id, detail, invoice_nano=line.cost_nano))
        self._only_invoiced(line)

    def _not_in_ledger(self, line: Any) -> None:
        detail = "the ledger has no such attempt: made by others with this account, or not through this gateway"
        self._report.findings.add(
            Finding("not_in_ledger", f"line {line.number}", detail, invoice_nano=int(line.cost_nano))
        )
        self._only_invoiced(line)

    # -- what the invoice covers and does not name

    def _settle_absent(self, rows: Sequence[Any], attempts: dict[str, Attempt]) -> list[Change]:
        changes = []
        for attempt in attempts.values():
            change = self._settle_one_absent(attempt)
            if change:
                changes.append(change)
            self._compare(attempt, change, None, ())
        return changes

    def _settle_one_absent(self, attempt: Attempt) -> Change | None:
        nothing = (0,) * len(TOKENS)
        if attempt.status != "unknown":
            if attempt.cost_nano:
                self._find("not_on_invoice", attempt, "answered, and not charged; the ledger keeps its cost", None)
            return None
        if attempt.superseded:
            if attempt.cost_nano:
                self._find("superseded", attempt, "an invoice that came later has it, and stands", None)
            return None
        if self._all_doubtful or self._names.of_ledger(attempt.model) in self._doubtful:
            if attempt.cost_nano:
                self._find("not_lowered", attempt, "a line that names no attempt of ours may be its", None)
            return None
        return move_to(attempt, 0, nothing, billed=False)

    def _covered_rows(self, after: str) -> Any:
        assert self._covers is not None
        absent = ~exists().where(bills.c.attempt_id == llm_requests.c.attempt_id)
        return (
            select(*COLUMNS, llm_requests.c.attempt_id.label("bill_id"))
            .where(
                llm_requests.c.status.in_(("ok", "unknown")),
                self._covered(self._covers),
                absent,
                llm_requests.c.attempt_id > after,
            )
            .order_by(llm_requests.c.attempt_id)
        )

    def _covered(self, covers: Span) -> ColumnElement[bool]:
        """Opened well after the start, over well before the end: its line would be on the invoice if it had one.

        An attempt's id begins with the time at which it was opened; its row is written when it was over, or later.
        """
        start, end = covers.start + CLOCKS, covers.end - LATE
        clauses = [
            llm_requests.c.created_at >= start,
            llm_requests.c.attempt_id >= _id_at(start),
            or_(llm_requests.c.created_at <= end, llm_requests.c.attempt_id <= _id_at(end - _LONGEST_CALL)),
        ]
        if self._deployments:
            clauses.append(llm_requests.c.deployment.in_(list(self._deployments)))
        return and_(*clauses)

    # -- what is said of it

    def _find(self, kind: Any, attempt: Attempt, detail: str, billed: int | None) -> None:
        self._report.findings.add(Finding(kind, attempt.attempt_id, detail, attempt.cost_nano, billed))

    def _compare(
        self, attempt: Attempt, change: Change | None, billed: int | None, tokens: Sequence[int | None]
    ) -> None:
        """Both sides on the day and model of the ledger's row: a call at midnight is no difference."""
        found = self._day(attempt.day, self._names.of_ledger(attempt.model))
        moved = change.tokens if change else (0,) * len(TOKENS)
        now = [have + more for have, more in zip(attempt.tokens, moved, strict=True)]
        cost = attempt.cost_nano + (change.delta_nano if change else 0)
        counts = billed is not None or cost > 0
        found.ledger.add(int(counts), now[0], now[1], cost)
        found.unknown += attempt.unresolved and change is None
        if billed is not None:
            said = [have if count is None else count for count, have in zip(tokens, now, strict=True)]
            found.invoice.add(1, said[0], said[1], billed)

    def _only_invoiced(self, line: Any) -> None:
        found = self._day(line.day, self._names.of_invoice(line.model))
        found.invoice.add(1, int(line.input_tokens or 0), int(line.output_tokens or 0), int(line.cost_nano))

    def _day(self, day: date, model: str) -> _Day:
        return self._days.setdefault((day, model), _Day())

    def _count(self, change: Change) -> None:
        report = self._report
        report.resolved += change.resolves
        report.not_billed += change.resolves and change.status == "not_billed"
        report.corrected += not change.resolves
        report.raised_nano += max(change.delta_nano, 0)
        report.lowered_nano += max(-change.delta_nano, 0)
        if change.delta_nano and not change.attempt.budget_set:
            self._without_budgets += 1
            self._without_budgets_nano += change.delta_nano

    def _add_budget_finding(self) -> None:
        if self._without_budgets:
            moved = f"{usd_from_nano(self._without_budgets_nano):f} USD in {self._without_budgets} attempts"
            detail = f"{moved}: settled before the ledger kept their budgets, so that no budget moved with them"
            self._report.findings.add(Finding("no_budgets", "budgets", detail))

    def _leave_mark(self, scratch: Scratch, attempt: Attempt) -> None:
        """An invoice that changed nothing is remembered too, so that one that comes later supersedes it."""
        with _locked(scratch) as conn:
            if first_seen(conn, self._invoice.digest) is None:
                mark = Change(attempt, 0, (0,) * len(TOKENS), "billed")
                apply(conn, [mark], self._invoice.digest, self._now)


@contextmanager
def _locked(scratch: Scratch) -> Iterator[Connection]:
    with scratch.write() as conn:
        one_at_a_time(conn)
        yield conn


def _billed_rows(after: str) -> Any:
    """Bills with the ledger's row or open attempt, in one look at both: a call that settles meanwhile is in one."""
    named = [
        bills.c.attempt_id.label("bill_id"),
        bills.c.lines.label("bill_lines"),
        bills.c.cost_nano.label("bill_nano"),
        bills.c.vendor_request_id.label("bill_vendor_request_id"),
        *(bills.c[name].label(f"bill_{name}") for name in TOKENS),
        bills.c.number,
        bills.c.day,
        bills.c.model.label("bill_model"),
    ]
    return (
        select(*COLUMNS, *named, llm_open_attempts.c.attempt_id.label("open_id"))
        .select_from(bills)
        .outerjoin(llm_requests, llm_requests.c.attempt_id == bills.c.attempt_id)
        .outerjoin(llm_open_attempts, llm_open_attempts.c.attempt_id == bills.c.attempt_id)
        .where(bills.c.attempt_id > after)
        .order_by(bills.c.attempt_id)
    )


def _id_at(moment: datetime) -> str:
    """Ids of attempts opened from ``moment`` on are not below this."""
    return f"{int(moment.timestamp() * 1000):012x}"


def _is_attempt(attempt_id: str, day: date) -> bool:
    """Whether an id is one of a gateway like ours, made on about that day, and not a key that others gave."""
    if not _ATTEMPT.fullmatch(attempt_id):
        return False
    opened = int(attempt_id[:12], 16) / 1000
    return abs(opened - datetime.combine(day, time(12), UTC).timestamp()) < 2 * _LONGEST_CALL.total_seconds()


def _int(value: Any) -> int | None:
    return None if value is None else int(value)
