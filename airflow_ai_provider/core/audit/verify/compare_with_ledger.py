"""Compares the trail with the ledger: every attempt that was paid has its event, every event its attempt.

Each testifies to the other: who can change one of them is found by the other. Both sides are laid into a database file
of their own for the time of the comparison, so memory does not grow with calls.

The order makes a comparison beside running tasks safe. A call's event is durable before the ledger settles it, so a
ledger that is read *before* the trail holds nothing that the trail then lacks; an event without a row is looked up once
more, since its row may have been settled meanwhile.

Answers from the response store are compared by try of a task: their events hold a keyed hash that adds up to that of
the ledger's rows. A try that did not end by itself may have rows its last event was lost for; no call was made for
them, so they are a note. A try that differs is looked up once more: it may have ended after the ledger was read.

Rows whose events are in a segment that another host has still to seal are not compared, and a note says how many: the
rows of the try that opened it, and, since any task may settle what a dead one left, rows of unknown outcome and
people's decisions that are not older than the oldest of these segments.

A person's decision on an answer is in the trail before it is in the ledger, so each decided review item must fit one of
its events.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import Connection, Select, func, null, select

from airflow_ai_provider.core.audit.trail.audit_store import RegisteredSegment, task_key
from airflow_ai_provider.core.audit.trail.events import MultisetHash, format_time
from airflow_ai_provider.core.audit.verify.findings import FORGED, LEDGER_CHANGED, NEVER_WRITTEN, VerifyReport
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.schema import llm_open_attempts, llm_requests, review_items

_CHUNK: Final = 5_000
_SHOWN: Final = 100
"""Findings of one kind that are listed; the rest are counted."""
_LOOK_UP: Final = 500
_MARGIN: Final = timedelta(hours=1)
"""More than a row and its event can be apart."""
_OUTCOMES: Final = {"ok": "success", "error": "failure", "unknown": "unknown"}
_TRY: Final = ("dag_id", "run_id", "task_id", "map_index", "try_number")
_INDEXES: Final = """
CREATE INDEX paid_by_attempt ON paid (attempt, outcome, cost);
CREATE INDEX told_by_attempt ON told (attempt, outcome, cost);
CREATE INDEX ruled_by_item ON ruled (item);
"""
"""Made when all is read: one sort costs less than a hundred thousand places to find."""
_TABLES: Final = """
CREATE TABLE paid (attempt TEXT, outcome TEXT, cost INTEGER, inside INTEGER);
CREATE TABLE told (attempt TEXT, event TEXT, outcome TEXT, cost INTEGER, inside INTEGER);
CREATE TABLE decided (item TEXT, decision TEXT, person TEXT);
CREATE TABLE ruled (item TEXT, decision TEXT, person TEXT);
CREATE TABLE reused (task TEXT PRIMARY KEY, rows INTEGER) WITHOUT ROWID;
CREATE TABLE sums (task TEXT, key TEXT, hash TEXT, PRIMARY KEY (task, key)) WITHOUT ROWID;
CREATE TABLE tries (task TEXT PRIMARY KEY, parts TEXT, rows INTEGER, key TEXT, hash TEXT, started INTEGER,
  finished INTEGER) WITHOUT ROWID;
"""


class Reconciliation:
    """One comparison: open it before the trail is read, hand ``visit`` to ``verify``, then ask for the findings.

    ``since`` and ``until`` are days (UTC, both included); ``hash_keys`` are the keys of content hashes by id, without
    which answers from the store are compared by number only. Raises ``LedgerUnavailable``.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        since: date | None = None,
        until: date | None = None,
        hash_keys: Mapping[str, bytes] | None = None,
    ) -> None:
        self._ledger = ledger
        self._since = datetime.combine(since, time(), UTC) if since else None
        self._until = datetime.combine(until, time(), UTC) + timedelta(days=1) if until else None
        self._whole = since is None and until is None
        self._first = format_time(self._since) if self._since else ""
        self._end = format_time(self._until) if self._until else "~"
        self._hash_keys = dict(hash_keys or {})
        self._folder = tempfile.TemporaryDirectory(prefix="ai-audit-")
        self._base = sqlite3.connect(Path(self._folder.name) / "reconcile.db", isolation_level=None)
        self._told: list[tuple[str, str, str, int, bool]] = []
        self._elsewhere = _Elsewhere([])
        self._excused = 0
        """Rows that were not compared, since another host has still to seal their events."""
        self._oldest = ""
        """Of the ledger's rows. Events before it are of rows that its retention has dropped."""
        self._before = 0

    def __enter__(self) -> Self:
        self._base.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;")
        self._base.executescript(_TABLES)
        self._base.execute("BEGIN")
        self._read_ledger()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._base.close()
        self._folder.cleanup()

    def visit(self, document: dict[str, Any], body: bytes) -> None:
        """Take one event."""
        match document["event.action"]:
            case "llm.call":
                attempt = document.get("airflow_ai.attempt_id")
                if attempt is not None:
                    self._add_call(document, attempt)
            case "batch.reused":
                self._add_reused(document)
            case "review.decided":
                ruling = (document["airflow_ai.review"], document["airflow_ai.decision"], document.get("user.name"))
                self._base.execute("INSERT INTO ruled VALUES (?,?,?)", ruling)
            case "task.started" | "task.finished" as action:
                self._mark_try(document, action.partition(".")[2])

    def report(self, report: VerifyReport) -> None:
        """Add what differs to the report. Only for a trail that was read to its end."""
        self._write_told()
        self._base.executescript(_INDEXES)
        self._elsewhere = _Elsewhere(report.elsewhere)
        self._report_untold(report)
        self._report_unpaid(report)
        self._report_differing(report)
        self._report_reused(report)
        self._report_decided(report)
        if self._excused:
            detail = f"{self._excused} were not compared: their events wait in segments of other hosts"
            report.note("ledger_elsewhere", "rows of the ledger", detail)

    # The ledger's side

    def _read_ledger(self) -> None:
        columns = llm_requests.c
        # Reading a moment is most of the work for a row; without a range it is not needed.
        created = null() if self._whole else columns.created_at
        paid = select(columns.attempt_id, columns.status, columns.cost_nano, created)
        names = [columns[name] for name in (*_TRY, "request_id")]
        with self._ledger.read() as conn:
            oldest = conn.execute(select(func.min(columns.created_at))).scalar()
            self._oldest = format_time(_aware(oldest)) if oldest else ""
            streamed = conn.execution_options(yield_per=_CHUNK)
            rows = streamed.execute(self._in_range(paid.where(columns.status != "reused"), _MARGIN))
            for chunk in rows.partitions(_CHUNK):
                self._base.executemany("INSERT INTO paid VALUES (?,?,?,?)", map(self._paid, chunk))
            reused = self._in_range(select(*names).where(columns.status == "reused"), timedelta()).order_by(*names)
            for task, group in groupby(streamed.execute(reused), key=lambda row: tuple(row[:5])):
                self._add_reused_rows(task_key(*task), group)
            self._read_decided(conn)

    def _read_decided(self, conn: Connection) -> None:
        columns = review_items.c
        query = select(columns.item_id, columns.decision, columns.decided_by).where(columns.status == "decided")
        if self._since:
            query = query.where(columns.decided_at >= self._since)
        if self._until:
            query = query.where(columns.decided_at < self._until)
        self._base.executemany("INSERT INTO decided VALUES (?,?,?)", map(tuple, conn.execute(query)))

    def _in_range(self, query: Select[Any], margin: timedelta) -> Select[Any]:
        if self._since:
            query = query.where(llm_requests.c.created_at >= self._since - margin)
        return query.where(llm_requests.c.created_at < self._until + margin) if self._until else query

    def _paid(self, row: Any) -> tuple[str, str, int, bool]:
        attempt, status, cost, created = row
        inside = self._whole or self._inside(format_time(_aware(created)))
        return attempt, _OUTCOMES[status], cost, inside

    def _add_reused_rows(self, task: str, rows: Iterator[Any]) -> None:
        count, sums = self._sum(row.request_id for row in rows)
        self._base.execute("INSERT INTO reused VALUES (?,?)", (task, count))
        self._base.executemany("INSERT INTO sums VALUES (?,?,?)", [(task, *each) for each in sums.items()])

    def _sum(self, request_ids: Iterable[str]) -> tuple[int, dict[str, str]]:
        """How many requests there are, and their hash under each key."""
        count, sums = 0, {key_id: MultisetHash(key) for key_id, key in self._hash_keys.items()}
        for request_id in request_ids:
            count += 1
            for total in sums.values():
                total.add(request_id)
        return count, {key_id: total.hexdigest() for key_id, total in sums.items()}

    def _inside(self, moment: str) -> bool:
        return self._whole or self._first <= moment < self._end

    # The trail's side

    def _add_call(self, event: Mapping[str, Any], attempt: str) -> None:
        moment = event["@timestamp"]
        kept = moment >= self._oldest
        self._before += not kept
        cost = event.get("airflow_ai.cost_nano", 0)
        inside = kept and self._inside(moment)
        self._told.append((attempt, event["event.id"], event["event.outcome"], cost, inside))
        if len(self._told) >= _CHUNK:
            self._write_told()

    def _write_told(self) -> None:
        self._base.executemany("INSERT INTO told VALUES (?,?,?,?,?)", self._told)
        self._told.clear()

    def _add_reused(self, event: Mapping[str, Any]) -> None:
        key = self._try_of(event)
        found = self._base.execute("SELECT rows, hash FROM tries WHERE task=?", (key,)).fetchone()
        total = MultisetHash(bytes(16))
        for digest in (found[1] if found else "0", event["airflow_ai.reused_hash"]):
            total.add_hash(digest)
        rows = (found[0] if found else 0) + event["airflow_ai.rows"]
        self._base.execute(
            "UPDATE tries SET rows=?, hash=?, key=? WHERE task=?",
            (rows, total.hexdigest(), event.get("airflow_ai.hash_key_id"), key),
        )

    def _mark_try(self, event: Mapping[str, Any], column: str) -> None:
        # Wholly inside the range: only then can the two be equal.
        query = f"UPDATE tries SET {column}=? WHERE task=?"  # noqa: S608 - one of two words
        self._base.execute(query, (self._inside(event["@timestamp"]), self._try_of(event)))

    def _try_of(self, event: Mapping[str, Any]) -> str:
        parts = [event.get(f"airflow_ai.{name}") for name in _TRY]
        key, zero = task_key(*parts), "0" * 32
        row = (key, json.dumps(parts), zero)
        self._base.execute("INSERT OR IGNORE INTO tries VALUES (?,?,0,NULL,?,0,0)", row)
        return key

    # Differences

    def _report_untold(self, report: VerifyReport) -> None:
        query = "SELECT attempt FROM paid LEFT JOIN told USING (attempt) WHERE told.event IS NULL AND paid.inside"
        detail = "paid in the ledger, and the trail has no event of it"
        self._find(report, "ledger_without_event", "attempt", self._calls_here(query), detail, NEVER_WRITTEN)

    def _calls_here(self, query: str) -> Iterator[str]:
        """Attempts of a query without those whose events another host has still to seal."""
        columns = llm_requests.c
        wanted = select(columns.attempt_id, columns.status, columns.created_at, *(columns[name] for name in _TRY))
        for attempts in self._chunks(query):
            excused = set()
            if self._elsewhere:
                with self._ledger.read() as conn:
                    for attempt, status, created, *parts in conn.execute(
                        wanted.where(columns.attempt_id.in_(attempts))
                    ):
                        since = _aware(created) if status == "unknown" else None
                        if self._elsewhere.may_hold(task_key(*parts), since):
                            excused.add(attempt)
            self._excused += len(excused)
            yield from (attempt for attempt in attempts if attempt not in excused)

    def _chunks(self, query: str) -> Iterator[list[str]]:
        found = self._base.execute(query)
        while chunk := [row[0] for row in found.fetchmany(_LOOK_UP)]:
            yield chunk

    def _report_unpaid(self, report: VerifyReport) -> None:
        found = self._base.execute(
            "SELECT attempt, event FROM told LEFT JOIN paid USING (attempt) WHERE paid.cost IS NULL AND told.inside"
        )
        missing = 0
        while chunk := dict(found.fetchmany(_LOOK_UP)):
            for attempt in self._not_there(list(chunk)):
                missing += 1
                if missing <= _SHOWN:
                    detail = f"its attempt {attempt} is not in the ledger"
                    report.find("event_without_ledger", f"event {chunk[attempt]}", detail, FORGED)
        if missing > _SHOWN:
            report.find("event_without_ledger", f"{missing - _SHOWN} more", "not in the ledger", FORGED)
        if self._before:
            detail = f"{self._before} calls are older than the ledger's first row, and were not compared"
            report.note("ledger_starts_later", f"ledger from {self._oldest}", detail)

    def _not_there(self, attempts: list[str]) -> list[str]:
        """Attempts that are neither under way nor, looked up after that, settled since the ledger was read."""
        there: set[str] = set()
        for table in (llm_open_attempts, llm_requests):
            with self._ledger.read() as conn:
                query = select(table.c.attempt_id).where(table.c.attempt_id.in_(attempts))
                there.update(conn.execute(query).scalars())
        return [attempt for attempt in attempts if attempt not in there]

    def _report_differing(self, report: VerifyReport) -> None:
        """An attempt whose process died between its event and the ledger has a second event; one of them must fit."""
        query = (
            "SELECT attempt FROM paid WHERE inside AND EXISTS (SELECT 1 FROM told WHERE told.attempt = paid.attempt)"
            " AND NOT EXISTS (SELECT 1 FROM told WHERE told.attempt = paid.attempt AND told.outcome = paid.outcome"
            " AND told.cost = paid.cost)"
        )
        detail = "outcome or cost in the ledger is not what its event says"
        self._find(report, "ledger_differs", "attempt", self._calls_here(query), detail, LEDGER_CHANGED)

    def _report_reused(self, report: VerifyReport) -> None:
        differing = (
            "SELECT task FROM tries LEFT JOIN reused USING (task) LEFT JOIN sums USING (task, key) WHERE tries.started"
            " AND (tries.rows <> coalesce(reused.rows, 0) OR tries.hash <> coalesce(sums.hash, tries.hash)) AND"
        )
        detail = "answers from the response store: events and ledger rows of this try are not the same"
        ended = self._tries_that_differ(f"{differing} tries.finished")
        self._find(report, "reuse_differs", "try", ended, detail, LEDGER_CHANGED)
        for (task,) in self._base.execute(f"{differing} NOT tries.finished").fetchmany(_SHOWN):
            report.note("reuse_open", f"try {task}", "did not end by itself, or not yet: its reuse was not compared")
        silent = "SELECT task FROM reused LEFT JOIN tries USING (task) WHERE tries.task IS NULL"
        detail = "answers from the response store in the ledger, and the trail knows nothing of this try"
        self._find(report, "ledger_without_event", "try", self._tries_here(silent), detail, NEVER_WRITTEN)

    def _tries_that_differ(self, query: str) -> Iterator[str]:
        """Tries of a query that still differ when the ledger is read again."""
        columns = llm_requests.c
        for chunk in self._chunks(query):
            for task in chunk:
                told = self._base.execute("SELECT parts, rows, key, hash FROM tries WHERE task=?", (task,)).fetchone()
                same_try = [columns[name] == part for name, part in zip(_TRY, json.loads(told[0]), strict=True)]
                with self._ledger.read() as conn:
                    paid = select(columns.request_id).where(*same_try, columns.status == "reused")
                    rows, sums = self._sum(conn.execute(paid).scalars())
                if (rows, sums.get(told[2], told[3])) != (told[1], told[3]):
                    yield task

    def _tries_here(self, query: str) -> Iterator[str]:
        """Tries of a query without those whose events another host has still to seal."""
        for task in (task for chunk in self._chunks(query) for task in chunk):
            if self._elsewhere.may_hold(task):
                rows = self._base.execute("SELECT rows FROM reused WHERE task=?", (task,)).fetchone()
                self._excused += rows[0]
            else:
                yield task

    def _report_decided(self, report: VerifyReport) -> None:
        silent = "SELECT item FROM decided WHERE NOT EXISTS (SELECT 1 FROM ruled WHERE ruled.item = decided.item)"
        detail = "decided in the ledger, and the trail has no event of it"
        self._find(report, "ledger_without_event", "review", self._decisions_here(silent), detail, NEVER_WRITTEN)
        differing = (
            "SELECT item FROM decided WHERE EXISTS (SELECT 1 FROM ruled WHERE ruled.item = decided.item)"
            " AND NOT EXISTS (SELECT 1 FROM ruled WHERE ruled.item = decided.item"
            " AND ruled.decision = decided.decision AND ruled.person = decided.person)"
        )
        detail = "decision, or who decided, is not in the ledger what its event says"
        self._find(report, "ledger_differs", "review", self._decisions_here(differing), detail, LEDGER_CHANGED)

    def _decisions_here(self, query: str) -> Iterator[str]:
        """Review items of a query without those whose events another host has still to seal."""
        columns = review_items.c
        for items in self._chunks(query):
            with self._ledger.read() as conn:
                decided = select(columns.item_id, columns.decided_at).where(columns.item_id.in_(items))
                moments = {item: _aware(moment) for item, moment in conn.execute(decided) if moment}
            here = [item for item in items if not self._elsewhere.may_hold(None, moments.get(item))]
            self._excused += len(items) - len(here)
            yield from here

    def _find(self, report: VerifyReport, kind: str, what: str, found: Iterator[str], detail: str, attack: str) -> None:
        for place in islice(found, _SHOWN):
            report.find(kind, f"{what} {place}", detail, attack)
        if more := sum(1 for _ in found):
            report.find(kind, f"{more} more", detail, attack)


class _Elsewhere:
    """Segments that other hosts have still to seal; false where there are none."""

    def __init__(self, segments: Sequence[RegisteredSegment]) -> None:
        self._tasks = {each.task for each in segments}
        self._since = min((each.opened_at for each in segments), default=None)

    def __bool__(self) -> bool:
        return self._since is not None

    def may_hold(self, task: str | None, since: datetime | None = None) -> bool:
        """Whether they may hold the event of a row: of this try, or of any where ``since`` says when it was written."""
        if self._since is None:
            return False
        return (task is not None and task in self._tasks) or (since is not None and since >= self._since - _MARGIN)


def _aware(moment: datetime) -> datetime:
    """SQLite gives moments back without their zone; they were stored as UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
