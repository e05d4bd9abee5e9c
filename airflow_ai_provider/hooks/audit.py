"""The audit trail of an installation: where its spool, archive, keys and pins are.

[ai] home/audit/spool      segments waiting for the sealer, written by this host's tasks
[ai] home/audit/keys       the sealer's key and, for whoever verifies, its public half
[ai] archive_uri           sealed segments and signed manifests; home/audit/archive by default

Where the trail is delivered to is in ``audit_sinks``.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.gateway.job import Caller
from airflow_ai_provider.gateway.settings import Settings
from airflow_ai_provider.hooks.audit_sinks import open_archive

if TYPE_CHECKING:
    from airflow_ai_provider.audit.findings import VerifyReport
    from airflow_ai_provider.audit.seal import SealReport
    from airflow_ai_provider.audit.spool import Spool


def seal_audit(settings: Settings) -> SealReport:
    """Take over what dead writers left open, move sealed segments to the archive, and sign and pin a manifest.

    Raises ``AuditError``, ``KeyringError``, ``StoreUnavailable`` and ``LedgerUnavailable``.
    """
    from airflow_ai_provider.audit.database import LedgerAuditStore
    from airflow_ai_provider.audit.keys import load_or_create_signing_key
    from airflow_ai_provider.audit.recover import recover_open
    from airflow_ai_provider.audit.seal import seal_trail
    from airflow_ai_provider.audit.trail import Trail
    from airflow_ai_provider.ledger import open_ledger

    spool, now = _spool(settings), datetime.now(UTC)
    key = load_or_create_signing_key(_keys(settings))
    with open_ledger(settings.ledger_url, settings.home) as ledger:
        store = LedgerAuditStore(ledger)
        if recovered := recover_open(spool, now):
            with Trail(spool, store) as trail:
                trail.emit_many([("segment.recovered", "unknown", recovery.fields()) for recovery in recovered])
        return seal_trail(spool, open_archive(settings, checked=True), store, key, now)


def record(settings: Settings, action: str, caller: Caller, **fields: Any) -> None:
    """Write one event of a task that calls no model. Raises ``AuditError`` and ``LedgerUnavailable``."""
    from airflow_ai_provider.audit.database import LedgerAuditStore
    from airflow_ai_provider.audit.trail import Trail
    from airflow_ai_provider.ledger import open_ledger

    who = {**asdict(caller), "user": caller.user or None}
    with (
        open_ledger(settings.ledger_url, settings.home) as ledger,
        Trail(_spool(settings), LedgerAuditStore(ledger)) as trail,
    ):
        trail.emit(action, "ok", **who, **fields)


def verify_audit(settings: Settings) -> VerifyReport:
    """Read the whole trail and say whether it is what was written.

    Raises ``AuditError``, ``KeyringError`` and ``LedgerUnavailable``.
    """
    from airflow_ai_provider.audit.database import LedgerAuditStore
    from airflow_ai_provider.audit.keys import load_verify_keys
    from airflow_ai_provider.audit.verify import verify
    from airflow_ai_provider.audit.verify_overlays import check_overlays
    from airflow_ai_provider.ledger import open_ledger

    folder = _keys(settings)
    keys = load_verify_keys(folder) if folder.is_dir() else {}
    with open_ledger(settings.ledger_url, settings.home) as ledger:
        archive = open_archive(settings)
        report = verify(archive, _spool(settings), LedgerAuditStore(ledger), keys)
        if not report.error:
            check_overlays(archive, report)
        return report


def _spool(settings: Settings) -> Spool:
    from airflow_ai_provider.audit.spool import Spool

    return Spool(settings.home / "audit" / "spool")


def _keys(settings: Settings) -> Path:
    return settings.home / "audit" / "keys"
