"""Attempts to change the archive that the store's versions made harmless. They are findings all the same.

Reads the whole trail and says whether it is what was written.

The order of reading makes a verification next to running writers and a running sealer safe. Names in the archive come
first, so that whatever appears later is nobody's surprise; then the registry, the spool, and the pins. A sealer clears
the spool only after the pin: a registered segment that is not in the spool is in a manifest that is pinned by the time
the pins are read, and what a pin names is looked for whether it was listed or not.

Another host's unsealed segments cannot be read. One that was opened within ``ELSEWHERE`` is a note; older ones are
findings, and so is one that was opened in this spool, at any age. A segment is this spool's where its registration
names both the spool's id and this host: two hosts may have one name, and a cloned disk has the id of its original.

Only with pins: the newest manifest removed together with its segments, and everything signed anew with a stolen key.
Only with the registry: a segment removed before it was sealed. Without a store both are noted as not checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from datetime import UTC, date, datetime, time, timedelta

from airflow_ai_provider.core.audit.sealing.signing import PublicKeys
from airflow_ai_provider.core.audit.sinks.archive import MANIFESTS, SEGMENTS, Archive
from airflow_ai_provider.core.audit.trail.audit_store import AuditStore, RegisteredSegment
from airflow_ai_provider.core.audit.trail.events import utc_now
from airflow_ai_provider.core.audit.trail.spool import Spool, host_sign, is_from, seal_overdue
from airflow_ai_provider.core.audit.verify.findings import DROPPED, INSERTED, VerifyReport
from airflow_ai_provider.core.audit.verify.manifests import (
    check_manifests,
    first_since,
    listed_before,
    manifest_numbers,
)
from airflow_ai_provider.core.audit.verify.segment_reader import Visitor
from airflow_ai_provider.core.audit.verify.segments import Seen, Window, check_archived, check_spool, check_writers
from airflow_ai_provider.core.errors import AuditError, StoreUnavailable, TransientError


def check_overlays(archive: Archive, report: VerifyReport) -> None:
    """Find what was laid over objects after they were written. What ``verify`` read is the first version."""
    try:
        for overlay in (each for prefix in (MANIFESTS, SEGMENTS) for each in archive.overlays(prefix)):
            what = f"{overlay.versions} later versions, {overlay.markers} delete markers; the first version was read"
            report.find("object_overlaid", overlay.name, what, "tried to overwrite or delete")
    except StoreUnavailable as error:
        report.error = report.error or str(error)


_CLOCKS = timedelta(days=1)
"""More than the clocks of hosts can differ."""
ELSEWHERE = timedelta(days=1)
"""How long a segment may be unsealed on another host, whose spool cannot be read here."""
_AHEAD = timedelta(hours=1)
"""How far another host's clock may be ahead; a registration that is further in the future excuses nothing."""


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
    now: datetime | None = None,
    seal_within: timedelta | None = None,
) -> VerifyReport:
    """Verify the trail of ``spool``. Findings are in the report; nothing is raised for them, or for an outage.

    ``since`` and ``until`` are days (UTC, both included): manifests before the first are left out, and segments that
    were opened after the last are not read. ``pins`` are manifest hashes by number that the auditor kept elsewhere; the
    store's must agree with them. ``visit`` gets every intact event. ``now`` is the time of the writers' clock (this
    host's by default); what has waited for its seal for longer than ``seal_within`` is a finding. Memory grows with
    segments, not with events.
    """
    report = VerifyReport(spool.trail)
    if not public_keys:
        report.error = "no verify key is there: nothing was sealed yet, or its folder is lost; run an AuditSealOperator"
        return report
    try:
        _verify(archive, spool, store, public_keys, Window(since, until), pins, visit, now, seal_within, report)
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
    now: datetime | None,
    seal_within: timedelta | None,
    report: VerifyReport,
) -> None:
    objects = set(archive.list(SEGMENTS))
    numbers = manifest_numbers(archive, report)
    start = datetime.combine(window.since, time(), UTC) if window.since else None
    since = start - ELSEWHERE if start else None
    now = now or utc_now()
    registered = _Registered(spool, store.registered_segments(spool.trail, since=since) if store else [], now)
    seen = check_spool(spool, report, visit)
    in_spool = set(seen.counts)
    pins = _all_pins(store, spool.trail, kept, report)
    first = first_since(archive, numbers, window.since)
    entries = check_manifests(archive, numbers, pins, public_keys, report, first=first)
    check_archived(archive, objects, entries, seen, report, window=window, visit=visit, waits=registered.may_wait)
    check_writers(seen, report, window)
    if shortage := spool.shortage():
        report.find("spool_full", f"spool {spool.folder}", shortage)
    if store is None:
        report.note("store_absent", "pins and registry", "not checked: no database was given")
    else:
        early = [each for each in registered.unseen(seen) if start and each.opened_at < start]
        listed = listed_before(archive, numbers, first, min(each.opened_at for each in early)) if early else set()
        _check_registry(registered, seen, start, listed, report)
        _check_unregistered(store, seen, report)
        if seal_within is not None and window.until is None:
            _check_sealing(store, registered.unsealed(seen, in_spool), now, seal_within, report)


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


class _Registered:
    """The registry as it was read, and which of its segments other hosts may still have to seal."""

    def __init__(self, spool: Spool, segments: list[RegisteredSegment], now: datetime) -> None:
        self._segments = {each.segment: each for each in segments}
        self.spool = spool.identity()
        self._host = host_sign()
        self._now = now

    def unseen(self, seen: Seen) -> list[RegisteredSegment]:
        """Segments that were neither in the spool nor in the archive."""
        return [each for name, each in self._segments.items() if name not in seen.counts]

    def unsealed(self, seen: Seen, in_spool: Set[str]) -> list[RegisteredSegment]:
        """Segments that wait for a sealer, here or elsewhere."""
        return [each for name, each in self._segments.items() if name in in_spool or name not in seen.counts]

    def may_wait(self, name: str) -> bool:
        """Whether a segment was registered lately by another spool, or by another host with a copy of this one."""
        each = self._segments.get(name)
        if each is None or (each.spool is not None and each.spool == self.spool and is_from(each.writer, self._host)):
            return False
        return -_AHEAD < self._now - each.opened_at < ELSEWHERE


def _check_registry(
    registered: _Registered, seen: Seen, start: datetime | None, listed: Set[str], report: VerifyReport
) -> None:
    """What was opened must be somewhere. ``listed`` are segments from before the range that manifests list."""
    for each in registered.unseen(seen):
        opened = f"opened at {each.opened_at:%Y-%m-%dT%H:%M:%SZ}"
        if registered.may_wait(each.segment):
            if each.segment not in listed:
                report.elsewhere.append(each)
                report.note("segment_elsewhere", each.segment, f"{opened} by another host; not sealed there yet")
        elif start is None or each.opened_at >= start:
            detail = f"{opened}; neither in the archive nor in the spool"
            if each.spool != registered.spool:
                hours = ELSEWHERE // timedelta(hours=1)
                detail += f" of this host; another host must seal its segments within {hours} hours"
            report.find("segment_unaccounted", each.segment, detail, DROPPED)


def _check_sealing(
    store: AuditStore, waiting: list[RegisteredSegment], now: datetime, within: timedelta, report: VerifyReport
) -> None:
    """Until a segment is sealed, its writer's host can change it: sealing that stopped must not stay unseen."""
    newest = store.newest_pin(report.trail)
    opened = [each.opened_at for each in waiting]
    if overdue := seal_overdue(newest.pinned_at if newest else None, opened, now, within):
        last = f"the newest manifest is of {newest.pinned_at:%Y-%m-%dT%H:%M:%SZ}" if newest else "there is no manifest"
        detail = (
            f"{len(waiting)} segments wait, the first for {overdue // timedelta(minutes=1)} minutes, and {last}; see "
            "what AuditSealOperator says"
        )
        report.find("sealing_stopped", f"manifest {newest.sequence + 1 if newest else 1}", detail)


def _check_unregistered(store: AuditStore, seen: Seen, report: VerifyReport) -> None:
    # Read again: writers have opened segments since the start. One without records may have died before registering.
    since = seen.oldest - _CLOCKS if seen.oldest else None
    known = {each.segment for each in store.registered_segments(report.trail, since=since)}
    for name, count in seen.counts.items():
        if count and name not in known:
            report.find("segment_unregistered", name, f"{count} records by a writer that never registered", INSERTED)
