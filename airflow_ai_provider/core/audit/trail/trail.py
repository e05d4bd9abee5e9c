"""The trail as the rest of the package sees it: ``emit``, ``flush``, ``close``.

One ``Trail`` per process. Its writer id is new each time, its events are numbered from 1, and its segments follow
each other. A segment is created at the first event and registered before any event is accepted, so a trail that says
nothing leaves nothing, and a segment that vanishes is missed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from airflow_ai_provider.core.audit.trail.audit_store import AuditStore, RegisteredSegment, task_key
from airflow_ai_provider.core.audit.trail.chain import NO_SEGMENT, Head, canonical_unchecked, event_id
from airflow_ai_provider.core.audit.trail.events import Fields, build_context, build_event, format_time, utc_now
from airflow_ai_provider.core.audit.trail.segment import SegmentWriter
from airflow_ai_provider.core.audit.trail.spool import Spool, new_writer_id
from airflow_ai_provider.core.errors import AuditError

log = logging.getLogger(__name__)

SEGMENT_BYTES = 64 * 1024 * 1024
SEGMENT_EVENTS = 250_000
SEGMENT_AGE = timedelta(hours=1)
"""An older segment is sealed before the next event, so that the events of a long task reach the archive."""
BUFFER_BYTES = 1024 * 1024
"""Above this, ``emit`` flushes by itself: memory stays bounded if a caller forgets to flush."""


class Trail:
    """Writes events of this process. Thread-safe: one lock, held while a flush waits for the disk.

    Every method raises ``AuditError`` when the disk refuses, in a forked child, and after ``close``. A failed flush
    keeps its events; flush again.

    ``context`` is who writes, for whom and from where: fields of ``schema.WHO`` that every event gets.
    """

    def __init__(
        self,
        spool: Spool,
        store: AuditStore,
        *,
        context: Fields | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        segment_events: int = SEGMENT_EVENTS,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.writer = new_writer_id(clock())
        self._spool = spool
        self._store = store
        self._context = build_context(context or {})
        self._segment_bytes = segment_bytes
        self._segment_events = segment_events
        self._clock = clock
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._segment: SegmentWriter | None = None
        self._registered = False
        self._segments = 0
        self._opened_at = datetime.min.replace(tzinfo=UTC)
        self._events = 0
        self._previous = NO_SEGMENT.hex()
        self._closed = False
        self._refused: AuditError | None = None

    def emit(self, action: str, outcome: str = "ok", /, **fields: Any) -> str:
        """Buffer one event and return its id; ``flush`` makes it durable.

        ``outcome`` is ``ok``, ``reused``, ``error`` or ``unknown``. ``AuditError`` for what ``events`` does not know.
        """
        return self.emit_many(((action, outcome, fields),))[0]

    def emit_many(self, events: Iterable[tuple[str, str, Fields]]) -> list[str]:
        """Buffer ``(action, outcome, fields)`` events in order: all of them, or none if one is refused."""
        self._check_process()
        with self._lock:
            self._check_open()
            timestamp = format_time(self._clock())
            ids, bodies = [], []
            for number, (action, outcome, fields) in enumerate(events, self._events + 1):
                ids.append(event_id(self.writer, number))
                bodies.append(
                    canonical_unchecked(build_event(action, outcome, ids[-1], timestamp, fields, self._context))
                )
            if bodies:
                self._append(bodies)
            return ids

    def prepare(self) -> None:
        """Open and register a segment now: who writes events inside a ledger transaction must not begin one there."""
        self._check_process()
        with self._lock:
            self._check_open()
            self._ready_segment()

    def flush(self) -> None:
        """Return when every event emitted so far is on disk."""
        self._check_process()
        with self._lock:
            self._check_open()
            if self._segment is not None:
                self._flush(self._segment)

    def ensure_room(self) -> None:
        """Before anything new begins: ``AuditError``, and an alarm in the log, when the spool is full.

        Events of what is under way are taken all the same, as long as the disk takes them.
        """
        if shortage := self._spool.shortage():
            log.error("AUDIT SPOOL FULL, no call is made: %s", shortage)
            raise AuditError(f"no call is made, since it could not be audited: {shortage}")

    def ensure_durable(self) -> None:
        """``AuditError`` when the last flush failed: what was emitted is still in memory only."""
        if self._refused is not None:
            raise AuditError(str(self._refused))

    def close(self) -> None:
        """Flush and seal. Closing twice is allowed."""
        self._check_process()
        with self._lock:
            if not self._closed:
                self._seal()
                self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except AuditError:
            # There will be no other flush: the segment is let go of, so that recovery can seal what is durable.
            if self._segment is not None:
                self._segment.abandon()
            raise

    def _flush(self, segment: SegmentWriter) -> None:
        try:
            segment.flush()
        except AuditError as error:
            self._refused = error
            raise
        self._refused = None

    def _append(self, bodies: list[bytes]) -> None:
        # One check per call: a segment may exceed its limit by one batch, and a batch never fails half-way.
        segment = self._ready_segment()
        for body in bodies:
            segment.append(body)
        self._events += len(bodies)

    def _ready_segment(self) -> SegmentWriter:
        segment = self._segment
        if segment is not None and self._is_full(segment):
            self._seal()
            segment = None
        if segment is None:
            segment = self._open()
        if not self._registered:
            self._register(segment)
        if segment.buffered >= BUFFER_BYTES:
            self._flush(segment)
        return segment

    def _is_full(self, segment: SegmentWriter) -> bool:
        if segment.size >= self._segment_bytes or segment.count >= self._segment_events:
            return True
        return segment.count > 0 and self._clock() - self._opened_at >= SEGMENT_AGE

    def _open(self) -> SegmentWriter:
        self._spool.prepare()
        self._opened_at = self._clock()
        head = Head(
            trail=self._spool.trail,
            writer=self.writer,
            segment=self._segments + 1,
            previous=self._previous,
            first=self._events + 1,
            opened_at=format_time(self._opened_at),
        )
        self._segment = SegmentWriter(self._spool, head)
        self._segments += 1
        return self._segment

    def _register(self, segment: SegmentWriter) -> None:
        # If this fails the segment stays, empty, and the next event tries again.
        head = segment.head
        opened_at, spool = datetime.fromisoformat(head.opened_at), self._spool.identity(create=True)
        self._store.register_segment(
            RegisteredSegment(head.trail, head.writer, head.name, opened_at, spool, _task_of(self._context))
        )
        self._registered = True

    def _seal(self) -> None:
        if self._segment is not None:
            self._previous = self._segment.seal(self._clock())
            self._segment = None
            self._registered = False

    def _check_process(self) -> None:
        # Before the lock: a fork may have copied it while it was held.
        if os.getpid() != self._pid:
            raise AuditError(
                f"this audit trail belongs to process {self._pid} and was used from its child {os.getpid()};"
                " open a Trail of its own in each process"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise AuditError("this audit trail is closed; open another one")


def _task_of(context: Mapping[str, Any]) -> str | None:
    """The try of a task that a writer's context names."""
    dag_id, run_id, task_id, map_index, try_number = (
        context.get(f"airflow_ai.{name}") for name in ("dag_id", "run_id", "task_id", "map_index", "try_number")
    )
    return task_key(dag_id, run_id, task_id, map_index, try_number) if dag_id else None
