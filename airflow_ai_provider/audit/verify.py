"""Reads the whole trail and says whether it is what was written.

The order of reading makes a verification next to running writers and a running sealer safe. Names in the archive come
first, so that whatever appears later is nobody's surprise; then the registry, the spool, and the pins. A sealer clears
the spool only after the pin: a registered segment that is not in the spool is in a manifest that is pinned by the time
the pins are read, and what a pin names is looked for whether it was listed or not.

Only with pins: the newest manifest removed together with its segments, and everything signed anew with a stolen key.
Only with the registry: a segment removed before it was sealed. Without a store both are noted as not checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta

from airflow_ai_provider.audit.archive import SEGMENTS, Archive
from airflow_ai_provider.audit.diagnose import DROPPED, INSERTED
from airflow_ai_provider.audit.events import utc_now
from airflow_ai_provider.audit.findings import VerifyReport
from airflow_ai_provider.audit.keys import PublicKeys
from airflow_ai_provider.audit.pins import AuditStore, RegisteredSegment
from airflow_ai_provider.audit.reader import Visitor
from airflow_ai_provider.audit.spool import Spool
from airflow_ai_provider.audit.verify_manifests import check_manifests, first_since, manifest_numbers
from airflow_ai_provider.audit.verify_segments import Seen, Window, check_archived, check_spool, check_writers
from airflow_ai_provider.audit.writers import host_sign, is_from
from airflow_ai_provider.errors import AuditError, TransientError

_CLOCKS = timedelta(days=1)
"""More than the clocks of hosts can differ."""
_ELSEWHERE = timedelta(days=1)
"""How long a segment may wait in the spool of another host, which this one cannot see."""


def verify(
    archive: Archive,
    spool: Spool,
    store: AuditStore | None,
    public_keys: PublicKeys,
    *,
    since: date | None = None,
    until: date | None = None,
    pins: Mapping[int, str] | None = None,
    visit: Visitor | None = None,
) -> VerifyReport:
    """Verify the trail of ``spool``. Findings are in the report; nothing is raised for them, or for an outage.

    ``since`` and ``until`` are days (UTC, both included): manifests before the first are left out, and segments that
    were opened after the last are not read. ``pins`` are manifest hashes by number that the auditor kept elsewhere; the
    store's must agree with them. ``visit`` gets every intact event. Memory grows with segments, not with events.
    """
    report = VerifyReport(spool.trail)
    if not public_keys:
        report.error = "no verify key is there: nothing was sealed yet, or its folder is lost; run an AuditSealOperator"
        return report
    try:
        _verify(archive, spool, store, public_keys, Window(since, until), pins, visit, report)
    except TransientError as error:
        report.error = str(error)
    except OSError as error:
        report.error = f"{error.filename or 'the trail'} cannot be read: {error.strerror}"
    return report


def _verify(
    archive: Archive,
    spool: Spool,
    store: AuditStore | None,
    public_keys: PublicKeys,
    window: Window,
    kept: Mapping[int, str] | None,
    visit: Visitor | None,
    report: VerifyReport,
) -> None:
    objects = set(archive.list(SEGMENTS))
    numbers = manifest_numbers(archive, report)
    start = datetime.combine(window.since, time(), UTC) if window.since else None
    registered = store.registered_segments(spool.trail, since=start) if store else []
    seen = check_spool(spool, report, visit)
    pins = _all_pins(store, spool.trail, kept, report)
    first = first_since(archive, numbers, window.since)
    entries = check_manifests(archive, numbers, pins, public_keys, report, first=first)
    check_archived(archive, objects, entries, seen, report, window=window, visit=visit)
    check_writers(seen, report, window)
    if shortage := spool.shortage():
        report.find("spool_full", f"spool {spool.folder}", shortage)
    if store is None:
        report.note("store_absent", "pins and registry", "not checked: no database was given")
    else:
        _check_registry(registered, seen, utc_now(), report)
        _check_unregistered(store, seen, report)


def _all_pins(
    store: AuditStore | None, trail: str, kept: Mapping[int, str] | None, report: VerifyReport
) -> Mapping[int, str] | None:
    """The auditor's pins, and the store's where the auditor has none; a difference between them is a finding."""
    stored = {pin.sequence: pin.manifest_hash for pin in store.pins(trail)} if store else None
    if kept is None:
        return stored
    for sequence, digest in kept.items():
        if stored is not None and stored.get(sequence) != digest:
            detail = "the database's pin is another one, or gone; the auditor's counts"
            report.find("pin_changed", f"manifest {sequence}", detail, "pins changed")
    return {**(stored or {}), **kept}


def read_pins(text: str) -> dict[int, str]:
    """Pins that were written down elsewhere: lines of ``SEQUENCE HASH``; ``#`` begins a comment.

    ``AuditError`` names the line that is none.
    """
    pins: dict[int, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not words[0].isdecimal() or len(words[1]) != 64 or not _is_hex(words[1]):
            raise AuditError(f"line {number}: expected a manifest's number and its SHA-256, such as 12 8f83e5f5…")
        pins[int(words[0])] = words[1].lower()
    return pins


def _is_hex(text: str) -> bool:
    return all(each in "0123456789abcdefABCDEF" for each in text)


def _check_registry(registered: list[RegisteredSegment], seen: Seen, now: datetime, report: VerifyReport) -> None:
    """What was opened must be somewhere; what another host opened lately may still wait in its spool."""
    here = host_sign()
    for each in registered:
        if each.segment in seen.counts:
            continue
        opened = f"opened at {each.opened_at:%Y-%m-%dT%H:%M:%SZ}"
        if not is_from(each.writer, here) and now - each.opened_at < _ELSEWHERE:
            report.note("segment_elsewhere", each.segment, f"{opened} on another host; not sealed there yet")
        else:
            detail = f"{opened}; neither in the archive nor in the spool"
            report.find("segment_unaccounted", each.segment, detail, DROPPED)


def _check_unregistered(store: AuditStore, seen: Seen, report: VerifyReport) -> None:
    # Read again: writers have opened segments since the start. One without records may have died before registering.
    since = seen.oldest - _CLOCKS if seen.oldest else None
    known = {each.segment for each in store.registered_segments(report.trail, since=since)}
    for name, count in seen.counts.items():
        if count and name not in known:
            report.find("segment_unregistered", name, f"{count} records by a writer that never registered", INSERTED)
