"""What changes the ledger of an installation from outside a run, with its line in the audit trail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING

from airflow_ai_provider.core.administration.audit import record
from airflow_ai_provider.core.installation import Installation
from airflow_ai_provider.gateway.job import Caller
from airflow_ai_provider.gateway.settings import Settings

if TYPE_CHECKING:
    from airflow_ai_provider.ledger.database import Ledger
    from airflow_ai_provider.ledger.maintenance import Maintenance


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
    from airflow_ai_provider.ledger.maintenance import maintain

    with Installation(settings) as installation:
        keep = keep_months if keep_months is not None else _retention(settings)
        ledger = installation.ledger
        done = maintain(ledger, now=ledger.now(), keep_months=keep, dry_run=dry_run, force=force, progress=progress)
        for month in () if dry_run else done.dropped:
            record(installation, "ledger.dropped", caller, period=month.name, rows=month.rows)
    return done


def repair_ledger(settings: Settings, ledger: Ledger, days: Sequence[date], *, caller: Caller | None = None) -> None:
    """Rewrite the rollup of these days from their rows, and say so in the audit trail."""
    from airflow_ai_provider.ledger.rollup import repair_day

    for day in days:
        repair_day(ledger, day)
        record(settings, "ledger.repaired", caller, period=day.isoformat())


def grant_ledger(settings: Settings, ledger: Ledger, role: str) -> list[str]:
    """Let a role of PostgreSQL read the ledger; returns what it may do beyond that. Raises ``LedgerError``."""
    from airflow_ai_provider.ledger.access import grant

    excess = grant(ledger, role)
    record(settings, "ledger.granted", None, role=role)
    return excess


def _retention(settings: Settings) -> int | None:
    from airflow_ai_provider.policy import load_policy

    return load_policy(settings.policy_path).ledger.keep_months if settings.policy_path.is_file() else None
