"""The sealer: moves sealed segments to the archive, signs a manifest, pins it.

Order: archive (read back) → manifest → pin → the spool's copy goes. Killed anywhere between, the next run finds the
same bytes where it left them and carries on; a segment is never listed twice and never gone from both places. Sealers
archive segments side by side, without a lock; one at a time writes a manifest. A manifest is written even when nothing
happened, so that silence is a statement too.

The sealer signs only what follows from the evidence it can check: a segment whose chain is broken, or that clashes
with one in the archive, stays in the spool for ``verify`` to name, and holds up no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from airflow_ai_provider.core.audit.sealing.manifest import (
    NO_MANIFEST,
    SegmentEntry,
    SignedManifest,
    manifest_hash,
    read_manifest,
    write_manifest,
)
from airflow_ai_provider.core.audit.sealing.signing import Signer, key_id, public_keys
from airflow_ai_provider.core.audit.sinks.archive import (
    MANIFESTS,
    Archive,
    compress,
    manifest_object,
    manifest_sequence,
    segment_object,
)
from airflow_ai_provider.core.audit.trail.audit_store import AuditStore
from airflow_ai_provider.core.audit.trail.events import format_time
from airflow_ai_provider.core.audit.trail.spool import SEAL_WITHIN, Spool, sync_folder
from airflow_ai_provider.core.audit.verify.segment_reader import ContainerDamaged, check_segment, gunzip
from airflow_ai_provider.core.errors import AuditError, StoreUnavailable


@dataclass(frozen=True, slots=True)
class Refusal:
    """A segment left in the spool."""

    segment: str
    reason: str


@dataclass(frozen=True, slots=True)
class SealReport:
    """What one run of the sealer did."""

    trail: str
    sequence: int | None = None
    """Number of the manifest written; ``None`` when another sealer was at work."""
    manifest_hash: str = ""
    segments: int = 0
    events: int = 0
    refused: tuple[Refusal, ...] = ()

    def fields(self) -> dict[str, Any]:
        """For ``trail.emit("trail.sealed", **report.fields())``, when ``sequence`` is not ``None``."""
        return {
            "sequence": self.sequence,
            "manifest_hash": self.manifest_hash,
            "segments": self.segments,
            "events": self.events,
        }


@dataclass(frozen=True, slots=True)
class _Moved:
    segment: str
    entry: SegmentEntry
    created: bool
    """Put into the archive by this run; else an earlier run, or another sealer of this spool, did."""


def seal_trail(
    spool: Spool,
    archive: Archive,
    store: AuditStore,
    signer: Signer,
    now: datetime,
    *,
    within: timedelta = SEAL_WITHIN,
) -> SealReport:
    """Archive every sealed segment of the spool and write the next manifest.

    ``AuditError`` when the archive's newest manifest is not the one pinned: the trail was changed, run ``verify``; and
    when another sealer holds the lock and no manifest was written ``within`` that time. ``StoreUnavailable`` when the
    archive cannot be reached or returns other bytes than were written.
    """
    with store.sealer_lock(spool.trail) as held:
        before = None if held is None else _settle_newest(archive, held, spool.trail, signer, now)[0]
    if before is None:
        _refuse_overdue(store, spool.trail, now, within)
        return SealReport(spool.trail)
    moved, refused = _move_all(spool, archive)  # no lock: the archive may be slow, and takes a name once
    with store.sealer_lock(spool.trail) as held:
        if held is None:  # what was moved is listed by the next run
            return SealReport(spool.trail, refused=tuple(refused))
        sequence, previous = _settle_newest(archive, held, spool.trail, signer, now)
        sealed = _unlisted(archive, moved, before, sequence)
        data = write_manifest(spool.trail, sequence + 1, previous, sealed, signer, now)
        digest = _write_and_pin(archive, held, spool.trail, sequence + 1, data, now)
    _clear(spool, moved)  # the pin is durable
    return SealReport(
        spool.trail, sequence + 1, digest, len(sealed), sum(entry.count for entry in sealed), tuple(refused)
    )


def _refuse_overdue(store: AuditStore, trail: str, now: datetime, within: timedelta) -> None:
    """``AuditError`` when the sealer that holds the lock has written no manifest for too long."""
    newest = store.newest_pin(trail)
    if newest is not None:
        since, last = newest.pinned_at, f"the newest manifest, {newest.sequence}, is of {format_time(newest.pinned_at)}"
    else:
        since = min((each.opened_at for each in store.registered_segments(trail)), default=now)
        last = "no manifest was ever written"
    if now - since > within:
        raise AuditError(
            f"audit trail {trail}: sealing has stopped: {last}, and another sealer holds the lock. On PostgreSQL find "
            "its transaction (locktype 'advisory' in pg_locks) and end it with pg_terminate_backend; on SQLite end the "
            "process that has the ledger's .sealer file open"
        )


def _settle_newest(archive: Archive, store: AuditStore, trail: str, signer: Signer, now: datetime) -> tuple[int, str]:
    """Number and hash of the newest manifest, after pinning the one a killed run may have left unpinned."""
    newest = max((manifest_sequence(name) or 0 for name in archive.list(MANIFESTS)), default=0)
    pins = {pin.sequence: pin.manifest_hash for pin in store.pins(trail)}
    pinned = max(pins, default=0)
    if not pinned <= newest <= pinned + 1:
        raise AuditError(
            f"audit trail {trail}: newest manifest in the archive is {newest}, newest pinned is {pinned}; manifests or"
            " pins were removed. Nothing was sealed; run verify"
        )
    if newest == 0:
        return 0, NO_MANIFEST
    signed = _read(archive, newest)
    if newest == pinned:
        if signed.hash != pins[pinned]:
            raise AuditError(f"audit trail {trail}: manifest {newest} is not the one that was pinned; run verify")
        return newest, signed.hash
    manifest = signed.manifest
    expected = (trail, newest, pins.get(pinned, NO_MANIFEST), key_id(signer.public))
    found = (manifest.trail, manifest.sequence, manifest.previous, manifest.key_id)
    if found != expected or not signed.is_signed_by(public_keys(signer)):
        raise AuditError(f"audit trail {trail}: manifest {newest} is not pinned and not this sealer's; run verify")
    store.pin_manifest(trail, newest, signed.hash, now)
    return newest, signed.hash


def _read(archive: Archive, sequence: int) -> SignedManifest:
    try:
        return read_manifest(archive.get(manifest_object(sequence)))
    except FileNotFoundError:
        raise AuditError(f"audit manifest {sequence} is missing from the archive; run verify") from None
    except AuditError as error:
        raise AuditError(f"audit manifest {sequence}: {error}; run verify") from None


def _move_all(spool: Spool, archive: Archive) -> tuple[list[_Moved], list[Refusal]]:
    outcomes = [_move(spool, archive, name) for name in spool.names("sealed")]
    moved = [each for each in outcomes if isinstance(each, _Moved)]
    return moved, [each for each in outcomes if isinstance(each, Refusal)]


def _move(spool: Spool, archive: Archive, name: str) -> _Moved | Refusal | None:
    """Archive one segment; ``None`` where another sealer of this spool has cleared it meanwhile."""
    path = spool.path(name, "sealed")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        return Refusal(name, f"{path} cannot be read: {error.strerror}")
    check = check_segment([data], sealed=True)
    if check.fault is not None or check.head is None:
        place = check.fault.place if check.fault else "head"
        return Refusal(name, f"{path}: its chain is broken at {place}")
    if check.head.name != name or check.head.trail != spool.trail:
        return Refusal(name, f"{path}: its head names another segment")
    target = segment_object(check.head)
    created, stored = _put(archive, target, data)
    if stored is None:
        return Refusal(name, f"{path}: {target} in the archive holds other bytes")
    entry = SegmentEntry(
        name=target,
        writer=check.head.writer,
        segment=check.head.segment,
        count=check.count,
        head=check.chain.hex(),
        seal=check.seal_hash,
        sha256=sha256(data).hexdigest(),
        stored_sha256=stored,
        records=check.records.root().hex(),
    )
    return _Moved(name, entry, created)


def _put(archive: Archive, target: str, data: bytes) -> tuple[bool, str | None]:
    """Whether the object is new, and its hash as read back; no hash when it was there with other content."""
    created = archive.put(target, compress(data))
    stored = archive.get(target)
    try:
        same = b"".join(gunzip([stored])) == data
    except ContainerDamaged:
        same = False
    if created and not same:
        raise StoreUnavailable(f"audit archive returned other bytes for {target} than were written; nothing was sealed")
    return created, sha256(stored).hexdigest() if same else None


def _unlisted(archive: Archive, moved: list[_Moved], before: int, newest: int) -> list[SegmentEntry]:
    """Return the entries that no manifest lists yet. Call it under the lock.

    What this run put into the archive can only be listed in manifests after number ``before``, which another sealer
    wrote meanwhile. What was there already is looked for in all manifests, newest first.
    """
    found: set[str] = set()
    old = {each.entry.name for each in moved if not each.created}
    for number in range(newest, 0, -1):
        if number <= before and old <= found:
            break
        found.update(entry.name for entry in _read(archive, number).manifest.segments)
    return [each.entry for each in moved if each.entry.name not in found]


def _write_and_pin(archive: Archive, store: AuditStore, trail: str, sequence: int, data: bytes, now: datetime) -> str:
    name = manifest_object(sequence)
    newest = store.newest_pin(trail)  # asked now, it also tells that the lock is still held
    if newest is not None and newest.sequence >= sequence:
        raise AuditError(f"audit manifest {sequence} of trail {trail} was pinned by another meanwhile; run verify")
    if not archive.put(name, data) or archive.get(name) != data:
        raise AuditError(f"audit manifest {sequence} of trail {trail} was written by another meanwhile; run verify")
    digest = manifest_hash(data)
    store.pin_manifest(trail, sequence, digest, now)
    return digest


def _clear(spool: Spool, moved: list[_Moved]) -> None:
    for each in moved:
        spool.path(each.segment, "sealed").unlink(missing_ok=True)
    if moved:
        sync_folder(spool.folder)
