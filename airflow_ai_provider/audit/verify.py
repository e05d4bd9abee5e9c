"""Reads the whole trail and says whether it is what was written.

The order of reading makes a verification next to running writers and a running sealer safe. Names in the archive come
first, so that whatever appears later is nobody's surprise; then the registry, the spool, and the pins. A sealer clears
the spool only after the pin: a registered segment that is not in the spool is in a manifest that is pinned by the time
the pins are read, and what a pin names is looked for whether it was listed or not.

Only with pins: the newest manifest removed together with its segments, and everything signed anew with a stolen key.
Only with the registry: a segment removed before it was sealed. Without a store both are noted as not checked.
"""

from __future__ import annotations

from airflow_ai_provider.audit.archive import SEGMENTS, Archive
from airflow_ai_provider.audit.findings import VerifyReport
from airflow_ai_provider.audit.keys import PublicKeys
from airflow_ai_provider.audit.pins import AuditStore, RegisteredSegment
from airflow_ai_provider.audit.spool import Spool
from airflow_ai_provider.audit.verify_manifests import check_manifests, manifest_numbers
from airflow_ai_provider.audit.verify_segments import Seen, check_archived, check_spool, check_writers
from airflow_ai_provider.errors import TransientError


def verify(archive: Archive, spool: Spool, store: AuditStore | None, public_keys: PublicKeys) -> VerifyReport:
    """Verify the trail of ``spool``. Findings are in the report; nothing is raised for them, or for an outage."""
    report = VerifyReport(spool.trail)
    if not public_keys:
        report.error = "no verify key is there: nothing was sealed yet, or its folder is lost; run an AuditSealOperator"
        return report
    try:
        _verify(archive, spool, store, public_keys, report)
    except TransientError as error:
        report.error = str(error)
    except OSError as error:
        report.error = f"{error.filename or 'the trail'} cannot be read: {error.strerror}"
    return report


def _verify(
    archive: Archive, spool: Spool, store: AuditStore | None, public_keys: PublicKeys, report: VerifyReport
) -> None:
    objects = set(archive.list(SEGMENTS))
    manifests = manifest_numbers(archive, report)
    registered = store.registered_segments(spool.trail) if store else []
    seen = check_spool(spool, report)
    pins = {pin.sequence: pin.manifest_hash for pin in store.pins(spool.trail)} if store else None
    entries = check_manifests(archive, manifests, pins, public_keys, report)
    check_archived(archive, objects, entries, seen, report)
    check_writers(seen, report)
    if store is None:
        report.note("store_absent", "pins and registry", "not checked: no database was given")
    else:
        _check_registry(registered, seen, report)
        _check_unregistered(store, seen, report)


def _check_registry(registered: list[RegisteredSegment], seen: Seen, report: VerifyReport) -> None:
    for each in registered:
        if each.segment not in seen.counts:
            report.find(
                "segment_unaccounted",
                each.segment,
                f"opened at {each.opened_at:%Y-%m-%dT%H:%M:%SZ}; neither in the archive nor in the spool",
                "removed before it was sealed, or with its manifest",
            )


def _check_unregistered(store: AuditStore, seen: Seen, report: VerifyReport) -> None:
    # Read again: writers have opened segments since the start. One without records may have died before registering.
    known = {each.segment for each in store.registered_segments(report.trail)}
    for name, count in seen.counts.items():
        if count and name not in known:
            report.find("segment_unregistered", name, f"{count} records by a writer that never registered", "inserted")
