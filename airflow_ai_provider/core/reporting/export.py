"""Closed days of the ledger as Parquet files, for a lake or a warehouse.

    TARGET/llm_requests/day=2025-01-31/part-00000.parquet       requests settled on that day (UTC)
    TARGET/llm_adjustments/day=2025-02-03/part-00000.parquet    adjustments made on that day
    TARGET/manifest.json                                        every file with its rows, sums and SHA-256

Rows of both tables are only ever added, so that a closed day does not change: the same day gives the same bytes, and
a day whose rows and sums are those of the manifest is passed over. A day is one file, because one file is there whole
or not at all on every store, whatever its readers know of manifests.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Column, Connection, Table, func, select

from airflow_ai_provider.core.errors import LedgerError, SinkError
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.maintenance.partitions import first_kept, midnight
from airflow_ai_provider.core.ledger.schema import llm_adjustments, llm_cost_daily, llm_requests
from airflow_ai_provider.core.reporting.columns import arrow_schema, arrow_table, stored_columns
from airflow_ai_provider.core.rows.filesystem import (
    is_object_store,
    list_folder,
    name_of,
    open_atomic,
    resolve,
    shown,
    translated,
    write_atomic,
)

MANIFEST = "manifest.json"
PART = "part-00000.parquet"
SETTLING = timedelta(minutes=5)
"""After midnight, until a day counts as closed: a row may reach the ledger a minute after its time (``journal``)."""
_VERSION = 1
_FETCHED_ROWS = 10_000
"""Rows that stand in memory as Python objects at once."""
_GROUP_ROWS = 100_000
"""Rows of a row group; a part of the bytes, so that it must not depend on anything."""
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class DayState:
    """What a day of a table comes to; equal states are equal rows, since rows are never changed."""

    rows: int
    nano: int
    """Sum of ``cost_nano``, or of ``delta_nano``."""
    saved_nano: int = 0


@dataclass(frozen=True, slots=True)
class DayFile:
    """One exported day, as the manifest lists it."""

    rows: int
    nano: int
    saved_nano: int
    bytes: int
    sha256: str

    @property
    def state(self) -> DayState:
        return DayState(self.rows, self.nano, self.saved_nano)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export did."""

    written: int
    """Days of a table that were written."""
    skipped: int
    """Those that were there already."""
    rows: int
    """Written now."""
    bytes: int
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class _Exported:
    """A table that is exported: which column tells a row's day, and how its days are counted."""

    table: Table
    moment: Column[Any]
    nano: Column[Any]
    days: Callable[[Connection], dict[date, DayState]]

    @property
    def name(self) -> str:
        return self.table.name


def export_ledger(
    ledger: Ledger,
    uri: str,
    *,
    now: datetime,
    since: date | None = None,
    until: date | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportReport:
    """Write what is missing of the closed days from ``since`` to ``until`` (UTC) under the folder ``uri``.

    Raises ``SinkError`` and ``StoreUnavailable`` for the place, ``LedgerError`` where the ledger has fewer rows of a
    day than were exported, or its rollup differs from its rows.
    """
    target = _Target(uri, storage_options)
    last = min(until, _last_closed(now)) if until else _last_closed(now)
    with ledger.read() as conn:
        found = [(table, day, state) for table in _TABLES for day, state in _days(conn, table, since, last).items()]
    waiting = [(table, day, state) for table, day, state in found if not target.has(table.name, day, state)]
    rows = written = 0
    for number, (table, day, state) in enumerate(waiting, 1):
        done = target.write(ledger, table, day, state)
        rows, written = rows + done.rows, written + done.bytes
        progress(number, len(waiting))
    return ExportReport(len(waiting), len(found) - len(waiting), rows, written, target.manifest_sha256)


def _last_closed(now: datetime) -> date:
    return (now - SETTLING).date() - _DAY


def _days(conn: Connection, table: _Exported, since: date | None, last: date) -> dict[date, DayState]:
    """Days of a table that have rows, oldest first; not those whose rows retention has dropped."""
    kept = first_kept(conn)
    first = max(filter(None, (since, kept.date() if kept else None)), default=date.min)
    return {day: state for day, state in sorted(table.days(conn).items()) if first <= day <= last}


def _request_days(conn: Connection) -> dict[date, DayState]:
    """From the rollup, which is checked against the rows when they are read."""
    c = llm_cost_daily.c
    sums = func.sum(c.requests), func.sum(c.cost_nano - c.adjusted_nano), func.sum(c.saved_nano)
    return {row[0]: DayState(*map(int, row[1:])) for row in conn.execute(select(c.day, *sums).group_by(c.day))}


def _adjustment_days(conn: Connection) -> dict[date, DayState]:
    c = llm_adjustments.c
    utc = c.adjusted_at if conn.dialect.name == "sqlite" else func.timezone("UTC", c.adjusted_at)
    day = func.date(utc)
    rows = conn.execute(select(day, func.count(), func.sum(c.delta_nano)).group_by(day))
    return {date.fromisoformat(str(row[0])): DayState(row[1], int(row[2])) for row in rows}


_TABLES = (
    _Exported(llm_requests, llm_requests.c.created_at, llm_requests.c.cost_nano, _request_days),
    _Exported(llm_adjustments, llm_adjustments.c.adjusted_at, llm_adjustments.c.delta_nano, _adjustment_days),
)


class _Target:
    """The folder of an export, and its manifest."""

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None) -> None:
        self._uri = uri
        self._filesystem, self._path = resolve(uri, storage_options, error=SinkError)
        self._files: dict[str, dict[str, DayFile]] = {table.name: {} for table in _TABLES}
        with translated(uri, SinkError):
            self._load()
            self._sizes = {table.name: self._sizes_of(table.name) for table in _TABLES}

    @property
    def manifest_sha256(self) -> str:
        return hashlib.sha256(self._manifest()).hexdigest()

    def has(self, table: str, day: date, state: DayState) -> bool:
        """Whether the day's file is there and holds what the ledger does. ``LedgerError`` where it holds more."""
        file = self._files[table].get(day.isoformat())
        if file is None:
            return False
        if file.rows > state.rows:
            raise LedgerError(
                f"{shown(self._uri)}/{table}/day={day}: {file.rows} rows were exported, the ledger has {state.rows}; "
                "rows are never taken away singly: find out who did, before the export is made anew"
            )
        return file.state == state and self._sizes[table].get(f"day={day}") == file.bytes

    def write(self, ledger: Ledger, table: _Exported, day: date, state: DayState) -> DayFile:
        """Write the file of a day, then the manifest."""
        folder = f"{self._path}/{table.name}/day={day}"
        with translated(self._uri, SinkError):
            self._prepare(folder)
            with open_atomic(self._filesystem, f"{folder}/{PART}") as raw:
                file = _write_rows(ledger, table, day, raw)
                if file.state != state:
                    raise LedgerError(
                        f"ledger {ledger.place}: {table.name} of {day} has {file.rows} rows and {file.nano} "
                        f"nano-dollars, counted were {state.rows} and {state.nano}; run airflow ai ledger check "
                        f"--since {day} --until {day}"
                    )
            self._files[table.name][day.isoformat()] = file
            write_atomic(self._filesystem, f"{self._path}/{MANIFEST}", self._manifest())
        return file

    def _prepare(self, folder: str) -> None:
        if is_object_store(self._filesystem):
            return
        self._filesystem.makedirs(folder, exist_ok=True)
        for entry in list_folder(self._filesystem, folder):
            if name_of(entry["name"]).endswith(".tmp"):  # of an export that was killed
                self._filesystem.rm_file(entry["name"])

    def _sizes_of(self, table: str) -> dict[str, int]:
        """Size of the file of each day that is there."""
        self._filesystem.invalidate_cache()
        found = self._filesystem.find(f"{self._path}/{table}", detail=True)
        return {path.split("/")[-2]: int(info["size"]) for path, info in found.items() if path.endswith(f"/{PART}")}

    def _load(self) -> None:
        self._filesystem.invalidate_cache()
        try:
            data = self._filesystem.cat_file(f"{self._path}/{MANIFEST}")
        except FileNotFoundError:
            return
        try:
            value = json.loads(data)
            if value["version"] != _VERSION:
                raise ValueError
            for table, days in value["tables"].items():
                self._files[table] = {day: DayFile(**file) for day, file in days.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SinkError(
                f"{shown(self._uri)}/{MANIFEST}: is not the manifest of an export; choose another folder"
            ) from None

    def _manifest(self) -> bytes:
        tables = {
            table: {day: asdict(file) for day, file in sorted(days.items())} for table, days in self._files.items()
        }
        return json.dumps({"version": _VERSION, "tables": tables}, indent=1, sort_keys=True).encode()


def _write_rows(ledger: Ledger, table: _Exported, day: date, raw: BinaryIO) -> DayFile:
    """Stream a day's rows into one Parquet file, in the order of time and attempt."""
    out = _Hashed(raw)
    rows = nano = saved = 0
    schema = arrow_schema(table.table)
    with pq.ParquetWriter(cast("BinaryIO", out), schema, compression="zstd", write_page_checksum=True) as writer:
        for group in _groups(_chunks(ledger, table, day)):
            writer.write_table(group, row_group_size=_GROUP_ROWS)
            rows += group.num_rows
            nano += _sum(group, table.nano.name)
            saved += _sum(group, "saved_nano") if "saved_nano" in schema.names else 0
    return DayFile(rows, nano, saved, out.tell(), out.sha256)


def _chunks(ledger: Ledger, table: _Exported, day: date) -> Iterator[pa.Table]:
    key = [table.moment, *(column for column in table.table.primary_key if column is not table.moment)]
    query = (
        select(*stored_columns(table.table))
        .where(table.moment >= midnight(day), table.moment < midnight(day + _DAY))
        .order_by(*key)
    )
    with ledger.snapshot() as conn:
        result = conn.execute(query, execution_options={"yield_per": _FETCHED_ROWS})
        for rows in result.partitions(_FETCHED_ROWS):
            yield arrow_table(table.table, rows)


def _groups(chunks: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Chunks put together to row groups of one size."""
    assert _GROUP_ROWS % _FETCHED_ROWS == 0
    waiting: list[pa.Table] = []
    for chunk in chunks:
        waiting.append(chunk)
        if len(waiting) * _FETCHED_ROWS >= _GROUP_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _sum(group: pa.Table, column: str) -> int:
    return int(pc.sum(group[column]).as_py() or 0)


class _Hashed(io.RawIOBase):
    """Writes through, and knows the SHA-256 and size of what was written."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()
        self._size = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._raw.write(data)
        self._hash.update(data)
        self._size += memoryview(data).nbytes
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self._size
