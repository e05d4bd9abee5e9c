"""What a reconciliation says: sums by day and model, what differs, and what was changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Any, Literal

from airflow_ai_provider.core.errors import LedgerError
from airflow_ai_provider.core.ledger.call_costs import usd_from_nano

FindingKind = Literal[
    "not_in_ledger",
    "still_open",
    "ambiguous_id",
    "differs",
    "above_bound",
    "charged_again",
    "superseded",
    "not_on_invoice",
    "not_lowered",
    "no_budgets",
    "day_differs",
]
ALL_MODELS = "all models"
LISTED = 1000
"""Findings kept in full; the others are counted."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time (UTC) from ``start`` up to, and without, ``end``."""

    start: datetime
    end: datetime

    def __str__(self) -> str:
        return f"{self.start:%Y-%m-%dT%H:%M:%SZ}..{self.end:%Y-%m-%dT%H:%M:%SZ}"


def parse_span(text: str) -> Span:
    """Read ``2025-01-01..2025-01-31`` (whole days, UTC) or times such as ``2025-01-01T00:00..2025-01-31T12:00``.

    Raises ``LedgerError`` for anything else.
    """
    first, dots, last = (part.strip() for part in text.partition(".."))
    try:
        start, end = _moment(first, whole_day=False), _moment(last, whole_day=True)
    except ValueError:
        dots = ""
    if not dots or not start < end:
        raise LedgerError(f"covers {text!r}: expected FROM..TO, as in 2025-01-01..2025-01-31 (days, UTC, TO included)")
    return Span(start, end)


def _moment(text: str, *, whole_day: bool) -> datetime:
    if len(text) == len("2025-01-31"):
        day = date.fromisoformat(text)
        return datetime.combine(day, time(0), UTC) + timedelta(days=whole_day)
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be. Money in nano-dollars, ``None`` where a side has no figure."""

    kind: FindingKind
    place: str
    """Line of the invoice, attempt, or day and model."""
    detail: str
    ledger_nano: int | None = None
    invoice_nano: int | None = None

    def row(self) -> dict[str, Any]:
        return {
            "finding": self.kind,
            "place": self.place,
            "ledger_usd": _usd(self.ledger_nano),
            "invoice_usd": _usd(self.invoice_nano),
            "detail": self.detail,
        }


class Findings:
    """The first findings in full, and how many of each kind there are."""

    def __init__(self) -> None:
        self.counts: Counter[FindingKind] = Counter()
        self._listed: list[Finding] = []

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += 1
        if len(self._listed) < LISTED:
            self._listed.append(finding)

    def __len__(self) -> int:
        return self.counts.total()

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._listed)


@dataclass(slots=True)
class Figures:
    """Sums of one side. A figure that one of the added lines does not have is ``None`` from then on."""

    requests: int | None = 0
    input_tokens: int | None = 0
    output_tokens: int | None = 0
    cost: Decimal | None = Decimal(0)
    """Nano-dollars."""

    def add(
        self, requests: int | None, input_tokens: int | None, output_tokens: int | None, cost: Decimal | int | None
    ) -> None:
        self.requests = _plus(self.requests, requests)
        self.input_tokens = _plus(self.input_tokens, input_tokens)
        self.output_tokens = _plus(self.output_tokens, output_tokens)
        self.cost = None if self.cost is None or cost is None else self.cost + cost

    @property
    def cost_nano(self) -> int | None:
        return None if self.cost is None else int(self.cost.to_integral_value(rounding=ROUND_CEILING))


def _plus(total: int | None, more: int | None) -> int | None:
    return None if total is None or more is None else total + more


@dataclass(frozen=True, slots=True)
class DayModel:
    """One day (UTC) and model as the ledger and as the invoice have it, after what was changed."""

    day: date
    model: str
    ledger: Figures
    invoice: Figures
    unknown: int = 0
    """Calls of the ledger whose cost is not known: they count there with their upper bound."""
    rounding: int = 0
    """Nano-dollars by which the costs may differ because each side rounds in its own way."""

    @property
    def difference_nano(self) -> int | None:
        """Ledger less invoice."""
        ledger, invoice = self.ledger.cost_nano, self.invoice.cost_nano
        return None if ledger is None or invoice is None else ledger - invoice

    def differing(self) -> list[str]:
        """Names of the figures that differ; what the invoice does not say cannot."""
        names = [
            name
            for name in ("requests", "input_tokens", "output_tokens")
            if (said := getattr(self.invoice, name)) is not None and said != getattr(self.ledger, name)
        ]
        cost = self.difference_nano
        return [*names, "cost"] if cost is not None and abs(cost) > self.rounding else names

    def row(self) -> dict[str, Any]:
        return {
            "day": self.day.isoformat(),
            "model": self.model,
            "requests": self.ledger.requests,
            "invoice_requests": _said(self.invoice.requests),
            "input_tokens": self.ledger.input_tokens,
            "invoice_input_tokens": _said(self.invoice.input_tokens),
            "output_tokens": self.ledger.output_tokens,
            "invoice_output_tokens": _said(self.invoice.output_tokens),
            "unknown": self.unknown,
            "cost_usd": _usd(self.ledger.cost_nano),
            "invoice_usd": _usd(self.invoice.cost_nano),
            "difference_usd": _usd(self.difference_nano),
        }


@dataclass(slots=True)
class ReconcileReport:
    """What came of a reconciliation. With ``dry_run`` nothing was changed, and figures are as they would be."""

    invoice: str
    """Name of the file."""
    invoice_hash: str
    format: str
    dry_run: bool
    lines: int = 0
    matched: int = 0
    """Attempts of the ledger that the invoice names."""
    resolved: int = 0
    """``unknown`` attempts whose cost is known now, whether the invoice has them or not."""
    not_billed: int = 0
    """Of them, those that are covered by the invoice and not on it."""
    corrected: int = 0
    """Attempts with a known cost, now at another."""
    raised_nano: int = 0
    lowered_nano: int = 0
    stopped: set[str] = field(default_factory=set)
    """Deployments that charged above a bound; nothing more is sent to them."""
    days: list[DayModel] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)

    @property
    def equal(self) -> bool:
        return not len(self.findings)

    def totals(self) -> dict[str, Any]:
        """Counts and USD as decimal strings, small enough for XCom."""
        ledger = [day.ledger.cost_nano for day in self.days]
        invoice = [day.invoice.cost_nano for day in self.days]
        return {
            "invoice_hash": self.invoice_hash,
            "format": self.format,
            "dry_run": self.dry_run,
            "lines": self.lines,
            "matched": self.matched,
            "resolved": self.resolved,
            "not_billed": self.not_billed,
            "corrected": self.corrected,
            "raised_usd": f"{usd_from_nano(self.raised_nano):f}",
            "lowered_usd": f"{usd_from_nano(self.lowered_nano):f}",
            "ledger_usd": _total(ledger),
            "invoice_usd": _total(invoice),
            "findings": dict(sorted(self.findings.counts.items())),
        }


def _total(amounts: list[int | None]) -> str | None:
    known = [amount for amount in amounts if amount is not None]
    return f"{usd_from_nano(sum(known)):f}" if len(known) == len(amounts) else None


def _usd(nano: int | None) -> Decimal | str:
    return "" if nano is None else usd_from_nano(nano)


def _said(count: int | None) -> int | str:
    return "" if count is None else count
