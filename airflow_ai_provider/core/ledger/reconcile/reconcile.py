"""Holds the ledger against a vendor's invoice, and resolves what it could not know.

An ``unknown`` attempt counts with its upper bound until an invoice says what it cost. An invoice that names its
requests settles that, by adjustments beside the row; one of sums is compared by day and model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from airflow_ai_provider.core.errors import LedgerError
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.reconcile.by_day import compare_sums
from airflow_ai_provider.core.ledger.reconcile.by_request import RequestReconciliation
from airflow_ai_provider.core.ledger.reconcile.invoices import Invoice
from airflow_ai_provider.core.ledger.reconcile.report import ReconcileReport, Span

Progress = Callable[[str, int], None]
"""Called with a step (``read``, ``match``) and how many lines or attempts of it are done."""


def reconcile(
    ledger: Ledger,
    invoice: Invoice,
    *,
    now: datetime,
    covers: Span | None = None,
    deployments: Sequence[str] | None = None,
    dry_run: bool = False,
    progress: Progress = lambda step, done: None,
) -> ReconcileReport:
    """Compare, and change what the invoice settles: the same invoice again changes nothing, a later one its word.

    ``covers`` is the time for which the invoice is complete; unknown calls well within it that are not on it are
    lowered to nothing. ``deployments`` are those the vendor's account serves. Each chunk of attempts is a transaction.

    Raises ``SourceError`` for a line that cannot be read (nothing was changed then), ``LedgerError`` where ``covers``
    cannot be used, and ``LedgerUnavailable``: what was changed until then stands, and the next run goes on from it.
    """
    _require_usable(covers, invoice, now)
    report = ReconcileReport(invoice.name, invoice.digest, invoice.format, dry_run)
    if not invoice.by_request:
        compare_sums(ledger, invoice, report, deployments=deployments, progress=progress)
        return report
    run = RequestReconciliation(
        ledger, invoice, report, now=now, covers=covers, deployments=deployments, progress=progress
    )
    run.run()
    return report


def _require_usable(covers: Span | None, invoice: Invoice, now: datetime) -> None:
    if covers is None:
        return
    if not invoice.by_request:
        raise LedgerError(
            f"{invoice.name}: format {invoice.format} names no requests, so that no call can be told to be missing "
            "from it; leave --covers out"
        )
    if covers.end > now:
        raise LedgerError(f"covers {covers}: ends in the future; an invoice is complete for past times only")
