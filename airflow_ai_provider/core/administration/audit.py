"""The audit trail of an installation: where its spool, archive, keys and pins are.

[ai] home/audit/spool      segments waiting for the sealer, written by this host's tasks
[ai] home/audit/keys       the sealer's key and, for verification, its public half
[ai] archive_uri           sealed segments and signed manifests; home/audit/archive by default

Where the trail is delivered to is in ``audit_delivery``.
"""

from __future__ import annotations

import os
import random
import re
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from airflow_ai_provider.core.administration.audit_delivery import open_archive
from airflow_ai_provider.core.administration.people import current_person
from airflow_ai_provider.core.errors import AuditError, KeyringError
from airflow_ai_provider.core.installation import Installation, opened
from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_ai_provider.core.audit.sealing.seal import SealReport
    from airflow_ai_provider.core.audit.sealing.signing import PublicKeys, Signer
    from airflow_ai_provider.core.audit.verify.findings import VerifyReport
    from airflow_ai_provider.core.audit.verify.segment_reader import Visitor
    from airflow_ai_provider.core.ledger.database import Ledger
    from airflow_ai_provider.core.ledger.installation_checks import HostKeys

_TURN_SECONDS = 60
_KMS_KEY = re.compile(r"^kms://(?P<conn_id>[^/]+)/(?P<key>.+)$")


def seal_audit(settings: Settings) -> SealReport:
    """Take over what dead writers left open, move sealed segments to the archive, and sign and pin a manifest.

    Waits up to ``_TURN_SECONDS`` for another host's sealer, where this host has something to seal: hosts that seal on
    one schedule would otherwise keep one another from it.

    Raises ``AuditError``, ``KeyringError``, ``StoreUnavailable`` and ``LedgerUnavailable``.
    """
    from airflow_ai_provider.core.audit.sealing.recover import recover_open
    from airflow_ai_provider.core.audit.sealing.seal import seal_trail
    from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore

    spool = settings.audit_spool()
    with Installation(settings) as installation:
        ledger = installation.ledger
        signer, now = _signer(settings, ledger), ledger.now()
        if recovered := recover_open(spool, now):
            with installation.trail() as trail:
                trail.emit_many([("segment.recovered", "unknown", recovery.fields()) for recovery in recovered])
        archive, store = open_archive(settings, checked=True), LedgerAuditStore(ledger)
        deadline = time.monotonic() + _TURN_SECONDS
        while True:
            report = seal_trail(spool, archive, store, signer, ledger.now(), within=settings.audit_seal_within)
            if report.sequence is not None or not spool.names("sealed") or time.monotonic() > deadline:
                return report
            time.sleep(random.uniform(0.2, 1.0))  # noqa: S311


def record(
    where: Settings | Installation, action: str, caller: Caller | None, *, outcome: str = "ok", **fields: Any
) -> None:
    """Write one event on behalf of a task, or of the person at the command line. Durable on return.

    Raises ``AuditError`` and ``LedgerUnavailable``.
    """
    with opened(where) as installation:
        installation.record(action, caller or current_person(), outcome=outcome, **fields)


def verify_audit(
    settings: Settings,
    *,
    since: date | None = None,
    until: date | None = None,
    pins: Mapping[int, str] | None = None,
    keys: Path | None = None,
    visit: Visitor | None = None,
) -> VerifyReport:
    """Read the trail, say whether it is what was written, and compare it with the ledger.

    ``since`` and ``until`` are days (UTC, both included), ``pins`` the auditor's own, ``keys`` a file or folder of
    verify keys instead of this installation's; ``visit`` gets every intact event. Raises ``AuditError``,
    ``KeyringError`` and ``LedgerUnavailable``.
    """
    from airflow_ai_provider.core.audit.sealing.signing import load_verify_keys
    from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
    from airflow_ai_provider.core.audit.verify.compare_with_ledger import Reconciliation
    from airflow_ai_provider.core.audit.verify.segment_reader import both
    from airflow_ai_provider.core.audit.verify.verify import check_overlays, verify

    folder = keys or _keys(settings)
    trusted = load_verify_keys(folder) if folder.exists() else {}
    with Installation(settings) as installation:
        ledger = installation.ledger
        if keys is None:
            _check_verify_keys(settings, ledger, trusted)
        store, archive, spool = LedgerAuditStore(ledger), open_archive(settings), settings.audit_spool()
        with Reconciliation(ledger, since=since, until=until, hash_keys=_hash_keys(installation)) as reconciliation:
            see = both(reconciliation.visit, visit) if visit else reconciliation.visit
            report = verify(
                archive,
                spool,
                store,
                trusted,
                since=since,
                until=until,
                pins=pins,
                visit=see,
                now=ledger.now(),
                seal_within=settings.audit_seal_within,
            )
            if not report.error:
                reconciliation.report(report)
                check_overlays(archive, report)
        return report


def export_audit(
    settings: Settings, stream: BinaryIO, form: str, *, since: date | None = None, until: date | None = None
) -> tuple[int, VerifyReport]:
    """Write the events of some days to a stream as ``ecs`` or ``ocsf``, and say so in the trail.

    Returns how many were written, and what the verification found on the way: only intact records are exported.
    """
    from airflow_ai_provider.core.audit.sinks.export import Exporter

    exporter = Exporter(stream, form, since, until)
    report = verify_audit(settings, since=since, until=until, visit=exporter.visit)
    record(
        settings,
        "audit.exported",
        None,
        events=exporter.events,
        format=form,
        content_hash=exporter.sha256(),
    )
    return exporter.events, report


def prove_event(settings: Settings, event_id: str) -> dict[str, Any]:
    """The proof that an event is in the sealed trail. Raises ``AuditError`` and ``StoreUnavailable``."""
    from airflow_ai_provider.core.audit.verify.proof import prove

    return prove(open_archive(settings), event_id)


def pins_from(path: Path) -> Mapping[int, str]:
    """Pins that were written down elsewhere. ``AuditError`` names file and line where they cannot be read."""
    from airflow_ai_provider.core.audit.verify.verify import read_pins

    try:
        return read_pins(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"pin file {path} cannot be read: {getattr(error, 'strerror', 'not UTF-8')}") from None
    except AuditError as error:
        raise AuditError(f"pin file {path}: {error}") from None


def write_pin(path: Path, sequence: int, manifest_hash: str) -> None:
    """Add a line to a pin file, durably. ``AuditError`` where it cannot be written."""
    try:
        with path.expanduser().open("a", encoding="ascii") as file:
            file.write(f"{sequence} {manifest_hash}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise AuditError(
            f"pin file {path} cannot be written: {error.strerror}; manifest {sequence} has hash {manifest_hash}"
        ) from None


def signing_keys(settings: Settings, signer: Signer | None) -> HostKeys:
    """The keys of this host that sign manifests or verify them, as they are compared with other hosts'."""
    from airflow_ai_provider.core.audit.sealing.signing import fingerprint, key_id, load_verify_keys
    from airflow_ai_provider.core.ledger.installation_checks import SIGNING, HostKeys

    folder = _keys(settings)
    known = dict(load_verify_keys(folder)) if folder.exists() else {}
    if signer is not None:
        known[key_id(signer.public)] = signer.public
    remedy = (
        "Let all sealers use one key: the same folder or KMS key in [ai] audit_signing_key, or copies of that host's"
        f" signing_key.pem; and copy its verify_key-*.pem to {folder}. Only where that key is lost for good, or was"
        " replaced on purpose: airflow ai keys adopt signing"
    )
    fingerprints = {name: fingerprint(public) for name, public in known.items()}
    return HostKeys(
        f"{SIGNING} {settings.audit_spool().trail}", fingerprints, key_id(signer.public) if signer else "", remedy
    )


def open_signer(settings: Settings) -> Signer:
    """The sealer's key as ``[ai] audit_signing_key`` says, made at first use. Raises ``KeyringError``."""
    from airflow_ai_provider.core.audit.sealing.signing import load_or_create_signing_key

    place = settings.audit_signing_key or ""
    if match := _KMS_KEY.match(place):
        from airflow_ai_provider.core.audit.sealing.signing import KmsSigner

        return KmsSigner(settings.kms(match["conn_id"]), match["key"])
    if "://" in place:
        raise KeyringError(f"[ai] audit_signing_key {place}: expected a folder, or kms://CONN_ID/KEY")
    return load_or_create_signing_key(_signing_folder(settings))


def _signing_folder(settings: Settings) -> Path:
    place = settings.audit_signing_key
    return Path(place).expanduser() if place else _keys(settings)


def _signer(settings: Settings, ledger: Ledger) -> Signer:
    """The sealer's key, if it is the one that all hosts use; its public half is put where ``verify`` looks for it."""
    from airflow_ai_provider.core.audit.sealing.signing import SIGNING_KEY, publish_key
    from airflow_ai_provider.core.ledger.installation_checks import check_keys

    if "://" not in (settings.audit_signing_key or "") and not (_signing_folder(settings) / SIGNING_KEY).exists():
        # No key is made beside that of another host.
        check_keys(ledger, signing_keys(settings, None), register=False)
    signer = open_signer(settings)
    check_keys(ledger, signing_keys(settings, signer))
    publish_key(_keys(settings), signer.public)
    return signer


def _check_verify_keys(settings: Settings, ledger: Ledger, trusted: PublicKeys) -> None:
    """Raises ``KeyringError`` where manifests were signed with a key whose public half is not on this host."""
    from airflow_ai_provider.core.ledger.installation_checks import explain, registered_keys

    keys = signing_keys(settings, None)
    lacking = [
        f"{key.key_id} (of host {key.host})"
        for key in registered_keys(ledger, keys.purpose)
        if key.active_since is not None and key.key_id not in trusted
    ]
    if lacking:
        mismatch = f"the verify key of {', '.join(lacking)} is not in {_keys(settings)}"
        raise KeyringError(explain(keys.purpose, mismatch, keys.remedy))


def _hash_keys(installation: Installation) -> dict[str, bytes]:
    """The keys of content hashes by id; none where there is no keyring, as on an auditor's host."""
    from airflow_ai_provider.core.pipeline.audit_log import HASH_KEY_PURPOSE

    if not installation.has_keyring:
        return {}
    keyring = installation.keyring(create=False, register=False)
    return {key_id: keyring.derive(HASH_KEY_PURPOSE, key_id=key_id) for key_id in keyring.key_ids}


def _keys(settings: Settings) -> Path:
    return settings.home / "audit" / "keys"
