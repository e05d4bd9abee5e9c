"""An invoice at a URI against this installation's ledger, with an event in its audit trail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from airflow_ai_provider.core.administration.people import dag_of_this_process
from airflow_ai_provider.core.installation import Installation
from airflow_ai_provider.errors import LedgerError, SourceError
from airflow_ai_provider.gateway.job import Caller
from airflow_ai_provider.gateway.settings import Settings

if TYPE_CHECKING:
    from airflow_ai_provider.ledger.reconciled import ReconcileReport


def reconcile_invoice(
    settings: Settings,
    uri: str,
    *,
    wanted: str | None = None,
    covers: str | None = None,
    deployments: Sequence[str] | None = None,
    dry_run: bool = False,
    caller: Caller | None = None,
    progress: Callable[[str, int], None] = lambda step, done: None,
) -> ReconcileReport:
    """Read, reconcile and, unless it is a dry run, record who did it: a task instance, or whoever runs this command.

    ``covers`` is ``FROM..TO``. Raises ``SourceError``, ``StoreUnavailable``, ``LedgerError``, ``LedgerUnavailable``,
    ``AuditError``, and ``PolicyError`` in a task that may only compare.
    """
    from airflow_ai_provider.ledger.invoices import FORMATS, open_invoice
    from airflow_ai_provider.ledger.reconcile import reconcile
    from airflow_ai_provider.ledger.reconciled import parse_span
    from airflow_ai_provider.rows.fs import resolve, shown, translated

    if wanted is not None and wanted not in FORMATS:
        raise LedgerError(f"format {wanted!r}: expected one of {', '.join(FORMATS)}")
    span = parse_span(covers) if covers else None
    filesystem, path = resolve(uri, settings.storage_options)
    with (
        Installation(settings) as installation,
        translated(uri, SourceError),
        filesystem.open(path, "rb") as file,
    ):
        ledger = installation.ledger
        if not dry_run:
            _require_allowed(installation, caller)
        report = reconcile(
            ledger,
            open_invoice(file, shown(uri), wanted),
            now=ledger.now(),
            covers=span,
            deployments=deployments or None,
            dry_run=dry_run,
            progress=progress,
        )
    if not dry_run:
        _record(settings, report, caller)
    return report


def _require_allowed(installation: Installation, caller: Caller | None) -> None:
    """Ask the policy, where there is one, whether a task may change the ledger; people may. Raises ``PolicyError``."""
    from airflow_ai_provider.ledger.pins import pins, require_pinned

    dag = (caller.dag_id if caller else "") or dag_of_this_process()
    if not dag:
        return
    with installation.ledger.read() as conn:
        if not installation.settings.policy_path.is_file() and not pins(conn):
            return
        loaded = installation.policy
        require_pinned(conn, loaded.file, always=loaded.policy.ledger.pinned)
    loaded.policy.ledger.require_reconciler(dag)


def _record(settings: Settings, report: ReconcileReport, caller: Caller | None) -> None:
    from airflow_ai_provider.core.administration.audit import record

    record(
        settings,
        "ledger.reconciled",
        caller,
        invoice_hash=report.invoice_hash,
        invoice_format=report.format,
        rows=report.lines,
        rows_matched=report.matched,
        rows_resolved=report.resolved,
        rows_corrected=report.corrected,
        raised_nano=report.raised_nano,
        lowered_nano=report.lowered_nano,
        findings=len(report.findings),
    )
    for deployment in sorted(report.stopped):
        record(settings, "deployment.stopped", caller, deployment=deployment, reason="over its bound, by an invoice")
