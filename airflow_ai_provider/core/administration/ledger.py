"""Changes of an installation's ledger by people and maintenance tasks, each with its audit event.

What changes the ledger of an installation from outside a run, with its line in the audit trail.

Pinning policies in the ledger: from then on no other policy makes calls with it.

An invoice at a URI against this installation's ledger, with an event in its audit trail.

Decisions of people on answers that wait for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.core.administration.audit import record
from airflow_ai_provider.core.administration.people import dag_of_this_process, require_person
from airflow_ai_provider.core.errors import LedgerError, SourceError
from airflow_ai_provider.core.installation import Installation
from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_ai_provider.core.ledger.database import Ledger
    from airflow_ai_provider.core.ledger.maintenance.upkeep import Maintenance
    from airflow_ai_provider.core.ledger.reconcile.report import ReconcileReport
    from airflow_ai_provider.core.ledger.reviews import Decision
    from airflow_ai_provider.core.policy.loading import PolicyFile


def maintain_ledger(
    settings: Settings,
    *,
    keep_months: int | None = None,
    dry_run: bool = False,
    force: bool = False,
    caller: Caller | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Maintenance:
    """Make months ahead and drop those past their retention: ``keep_months``, or else the policy's.

    Raises ``PolicyError`` where the policy that would say it is wrong, ``LedgerError`` and ``LedgerUnavailable``.
    """
    from airflow_ai_provider.core.ledger.maintenance.upkeep import maintain

    with Installation(settings) as installation:
        keep = keep_months if keep_months is not None else _retention(settings)
        ledger = installation.ledger
        done = maintain(ledger, now=ledger.now(), keep_months=keep, dry_run=dry_run, force=force, progress=progress)
        for month in () if dry_run else done.dropped:
            record(installation, "ledger.dropped", caller, period=month.name, rows=month.rows)
    return done


def repair_ledger(settings: Settings, ledger: Ledger, days: Sequence[date], *, caller: Caller | None = None) -> None:
    """Rewrite the rollup of these days from their rows, and say so in the audit trail."""
    from airflow_ai_provider.core.ledger.maintenance.upkeep import repair_day

    for day in days:
        repair_day(ledger, day)
        record(settings, "ledger.repaired", caller, period=day.isoformat())


def grant_ledger(settings: Settings, ledger: Ledger, role: str) -> list[str]:
    """Let a role of PostgreSQL read the ledger; returns what it may do beyond that. Raises ``LedgerError``."""
    from airflow_ai_provider.core.ledger.maintenance.read_access import grant

    excess = grant(ledger, role)
    record(settings, "ledger.granted", None, role=role)
    return excess


def _retention(settings: Settings) -> int | None:
    from airflow_ai_provider.core.policy import load_policy

    return load_policy(settings.policy_path).ledger.keep_months if settings.policy_path.is_file() else None


def pin_policy(settings: Settings, *, caller: Caller, reason: str) -> PolicyFile:
    """Let the governing policy as it is now make calls, and none that is not pinned. It is in the trail first.

    Raises ``PolicyError`` where the file is wrong, ``LedgerError`` without a name or a reason, and ``PermanentError``
    inside a task.
    """
    from airflow_ai_provider.core.ledger import installation_checks
    from airflow_ai_provider.core.policy.loading import shown_path

    require_person("a policy cannot be pinned")
    installation_checks.require_reason(caller.user, reason)
    with Installation(settings) as installation:
        file = installation.policy.file
        said = {"policy_hash": file.digest, "policy_path": shown_path(file.path), "reason": reason}
        installation.record("policy.pinned", caller, **said)
        ledger = installation.ledger
        with ledger.write() as conn:
            installation_checks.pin_policy(conn, file, by=caller.user, reason=reason, now=ledger.now())
    return file


def unpin_policy(settings: Settings, digest: str, *, caller: Caller, reason: str) -> str:
    """Take a pin back; returns its whole digest. After the last one every policy may make calls again.

    ``digest`` may be shortened. Raises ``LedgerError`` where no pin, or more than one, begins with it, and
    ``PermanentError`` inside a task.
    """
    from airflow_ai_provider.core.ledger import installation_checks

    require_person("a policy cannot be unpinned")
    installation_checks.require_reason(caller.user, reason)
    with Installation(settings) as installation:
        with installation.ledger.read() as conn:
            whole = installation_checks.pinned_digest(conn, digest)
        installation.record("policy.unpinned", caller, policy_hash=whole, reason=reason)
        with installation.ledger.write() as conn:
            installation_checks.unpin_policy(conn, whole)
    return whole


def pinned_policies(settings: Settings) -> list[dict[str, Any]]:
    """All pins, oldest first."""
    from airflow_ai_provider.core.ledger import installation_checks

    with Installation(settings) as installation, installation.ledger.read() as conn:
        return installation_checks.pins(conn)


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
    """Read, reconcile and, unless it is a dry run, record who did it: a task instance, or the user of this command.

    ``covers`` is ``FROM..TO``. Raises ``SourceError``, ``StoreUnavailable``, ``LedgerError``, ``LedgerUnavailable``,
    ``AuditError``, and ``PolicyError`` in a task that may only compare.
    """
    from airflow_ai_provider.core.ledger.reconcile.invoices import FORMATS, open_invoice
    from airflow_ai_provider.core.ledger.reconcile.reconcile import reconcile
    from airflow_ai_provider.core.ledger.reconcile.report import parse_span
    from airflow_ai_provider.core.rows.filesystem import resolve, shown, translated

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
    from airflow_ai_provider.core.ledger.installation_checks import pins, require_pinned

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


def decide_reviews(
    settings: Settings, item_ids: Sequence[str], decision: Decision, *, caller: Caller, note: str | None
) -> None:
    """Decide on open items, each by itself and in this order.

    A decision is in the trail before it is in the ledger; its note, which may speak of a row, is in the ledger alone.
    Raises ``LedgerError``, with nothing decided, where an item is not open, and for what no item can be given.
    """
    from airflow_ai_provider.core.ledger.reviews import check_decision, decide, require_open

    check_decision(decision, caller.user, note)
    with Installation(settings) as installation:
        ledger = installation.ledger
        with ledger.read() as conn:
            items = [require_open(conn, item_id) for item_id in dict.fromkeys(item_ids)]
        alone = replace(caller, dag_id="", run_id="", task_id="")  # each event names the task whose answer it is
        with installation.trail(alone) as trail:
            for item in items:
                trail.emit("review.decided", decision=decision, **_fields(item))
        for item in items:
            with ledger.write() as conn:
                decide(conn, item["item_id"], decision, by=caller.user, note=note, now=ledger.now())


def _fields(item: Mapping[str, Any]) -> dict[str, Any]:
    """What the event says of an item: names and ids, as when it was opened."""
    same = ("request_id", "route", "tier", "deployment", "model")
    whose = ("dag_id", "run_id", "task_id", "map_index", "try_number")
    named = {"review": item["item_id"], "team": item["team_id"], "reason": item["reason_kind"]}
    return {**named, **{name: item[name] for name in (*same, *whose)}}
