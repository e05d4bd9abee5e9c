"""Protecting and opening the columns of a whole source: a stream of rows in, the same rows treated out.

Nothing here knows Airflow, and no model is called. A step says what becomes of one row; ``run_rows`` feeds it batches
and writes parts, so that a retry goes on after the last finished one. Invariants:

- a row that cannot be treated has nulls in the treated columns, never what stood there, and says why; the others go on;
- opening asks the policy first, and what is not allowed there in so many words is refused;
- a batch is in the audit trail before its rows are written where somebody can read them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import Logger
from typing import Any, Literal, Protocol

import pyarrow as pa

from airflow_ai_provider.audit.database import LedgerAuditStore
from airflow_ai_provider.audit.trail import Trail
from airflow_ai_provider.errors import KeyringError, PolicyError, PrivacyError, SourceError
from airflow_ai_provider.gateway.job import Caller
from airflow_ai_provider.gateway.recorder import context_of
from airflow_ai_provider.gateway.settings import Settings
from airflow_ai_provider.ledger import open_ledger
from airflow_ai_provider.ledger.database import Ledger
from airflow_ai_provider.ledger.pins import require_pinned
from airflow_ai_provider.operators.treatments import column_of, values_of
from airflow_ai_provider.rows.inspect import ROW_NUMBER_KEY, inspect, require_columns
from airflow_ai_provider.rows.keys import key_values, keys_digest
from airflow_ai_provider.rows.shard import Shard
from airflow_ai_provider.rows.sink import PartSink
from airflow_ai_provider.rows.source import Source, open_source

STATUS, ERROR = "privacy_status", "privacy_error"
ROW_NUMBER = "row_number"
_OURS = frozenset({STATUS, ERROR})

Act = Literal["restore", "decrypt"]


@dataclass(frozen=True, slots=True)
class RowsJob:
    """Which rows, from where to where."""

    source: str
    sink: str
    key: str
    """Column that names a row, unique in the source; ``#row`` is the row's number."""
    team: str
    shard: Shard
    batch_rows: int
    run: str
    """Names the DAG run: finished parts are kept for a retry of the same run."""


@dataclass(frozen=True, slots=True)
class Treated:
    """What became of one row."""

    values: Mapping[str, Any]
    rejected: str | None = None
    """Why somebody should look at it, as ``kind: explanation``."""


class Step(Protocol):
    """What is done to each row. ``row`` raises ``PrivacyError`` or ``KeyringError`` for one that cannot be treated."""

    @property
    def action(self) -> str:
        """As the audit trail calls it."""
        ...

    @property
    def opens(self) -> tuple[Act, Sequence[str] | None] | None:
        """The permission it needs, and for which columns; ``None`` of them are all."""
        ...

    @property
    def noted(self) -> Mapping[str, Any]:
        """Further fields of its audit events."""
        ...

    def prepare(self, schema: pa.Schema, key: str) -> StepPlan:
        """Fit the step to a source. Raises ``PolicyError`` or ``SourceError`` where it does not."""
        ...

    def row(self, row: Mapping[str, Any], key: str) -> Treated: ...

    def type_of(self, column: str) -> pa.DataType | None:
        """Type of a written column, once the rows of a batch are through; ``None``: that of its values."""
        ...


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step reads, writes and leaves out; in the order of the output."""

    reads: Sequence[str]
    writes: Sequence[str]
    drops: Sequence[str] = ()
    version: Any = None
    """Everything that decides what becomes of a row, as JSON."""


@dataclass(slots=True)
class RowsSummary:
    """What came of a job; counts are rows."""

    sink: str
    rows: int = 0
    ok: int = 0
    rejected: int = 0
    error: int = 0
    skipped: int = 0
    """Rows in parts that an earlier try had finished; counted above as well."""
    seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, part: Mapping[str, Any], *, skipped: bool) -> None:
        for name in ("rows", "ok", "rejected", "error"):
            setattr(self, name, getattr(self, name) + int(part[name]))
        self.skipped += int(part["rows"]) if skipped else 0
        self.errors.update(part["errors"])

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "errors"} | {"errors": {**self.errors}}


def run_rows(job: RowsJob, step: Step, caller: Caller, settings: Settings, *, log: Logger | Any) -> RowsSummary:
    """Treat every row of a job's shard and write the parts.

    Raises ``PolicyError`` (also for a permission that is missing), ``SourceError``, ``SinkError``, ``KeyringError``,
    ``AuditError``, ``LedgerUnavailable`` and ``StoreUnavailable``, each before or between batches.
    """
    started = time.monotonic()
    with _recorder(job, step, caller, settings) as recorder:
        recorder.permit()
        source = open_source(job.source, storage_options=settings.storage_options, database=settings.database)
        schema = _schema(source)
        plan = step.prepare(schema, job.key)
        _check_columns(job, source, plan)
        version = inspect(source, key=job.key, columns=[]).version
        sink = PartSink(
            job.sink,
            fingerprint=_fingerprint(job, step, plan, version),
            shard=job.shard,
            storage_options=settings.storage_options,
        )
        sink.begin()
        summary = RowsSummary(job.sink)
        for index, keys, batch in _batches(job, source):
            part = sink.finished(index)
            if part is not None and part.summary.get("keys") == keys_digest(keys):
                summary.add(part.summary, skipped=True)
                continue
            table, counts = _treated(batch, keys, step, plan, job.key)
            recorder.batch(index, counts)
            final = not counts["error"]
            sink.write(index, table, summary={**counts, "keys": keys_digest(keys)}, final=final)
            summary.add(counts, skipped=False)
        summary.seconds = round(time.monotonic() - started, 3)
        sink.commit(summary.to_dict())
        log.info("%d rows in %s: %d ok, %d rejected, %d in error", *_line(summary))
    return summary


def _treated(
    batch: pa.RecordBatch, keys: Sequence[str], step: Step, plan: StepPlan, key: str
) -> tuple[pa.Table, dict[str, Any]]:
    table = pa.Table.from_batches([batch])
    earlier = _earlier(table)
    read = {name: values_of(table.column(name)) for name in plan.reads}
    written: dict[str, list[Any]] = {name: [] for name in plan.writes}
    statuses, errors = [], []
    for number, row_key in enumerate(keys):
        row = {name: values[number] for name, values in read.items()}
        status, error, treated = _one(row, row_key, step, *earlier[number])
        for name, values in written.items():
            values.append(None if treated is None else treated.values[name])
        statuses.append(status)
        errors.append(error)
    made = {name: column_of(values, step.type_of(name)) for name, values in written.items()}
    output = _output(table, plan, made, statuses, errors)
    if key == ROW_NUMBER_KEY:
        output = output.add_column(0, ROW_NUMBER, pa.array(list(map(int, keys)), pa.int64()))
    kinds = Counter(error.partition(":")[0] for error in errors if error)
    counts = Counter(statuses)
    return output, {
        "rows": table.num_rows,
        **{name: counts[name] for name in ("ok", "rejected", "error")},
        "errors": dict(kinds),
    }


def _one(
    row: Mapping[str, Any], key: str, step: Step, earlier: str | None, reason: str | None
) -> tuple[str, str | None, Treated | None]:
    """Status, error and values of a row; what an earlier step found wrong with it stays."""
    if earlier == "error":
        return "error", reason, None
    try:
        treated = step.row(row, key)
    except KeyringError as error:
        return "error", f"keyring: {error}", None
    except PrivacyError as error:
        return "error", f"privacy: {error}", None
    except Exception as error:  # noqa: BLE001 - whatever a value does, it costs its row; the message may quote it
        return "error", f"privacy: the row cannot be treated ({type(error).__name__})", None
    if treated.rejected:
        return "rejected", treated.rejected, treated
    return ("rejected", reason, treated) if earlier == "rejected" else ("ok", None, treated)


def _earlier(table: pa.Table) -> list[tuple[str | None, str | None]]:
    """What an earlier privacy step said of each row: status and error."""
    if STATUS not in table.column_names:
        return [(None, None)] * table.num_rows
    return list(zip(table.column(STATUS).to_pylist(), table.column(ERROR).to_pylist(), strict=True))


def _output(
    table: pa.Table, plan: StepPlan, made: Mapping[str, Any], statuses: Sequence[str], errors: Sequence[str | None]
) -> pa.Table:
    columns: dict[str, Any] = {
        name: table.column(name) for name in table.column_names if name not in {*plan.drops, *_OURS}
    }
    columns |= made
    columns[STATUS] = pa.array(statuses, pa.string())
    columns[ERROR] = pa.array(errors, pa.string())
    return pa.table(columns)


def _batches(job: RowsJob, source: Source) -> Iterator[tuple[int, list[str], pa.RecordBatch]]:
    first_row = 0
    for index, batch in enumerate(source.batches(job.batch_rows)):
        if job.shard.owns(index):
            yield index, key_values(batch, job.key, first_row), batch
        first_row += batch.num_rows


def _schema(source: Source) -> pa.Schema:
    """Types of the columns: those of the first row, which all batches of a source share."""
    return next(iter(source.batches(1))).schema


def _check_columns(job: RowsJob, source: Source, plan: StepPlan) -> None:
    known = source.columns()
    wanted = [] if job.key == ROW_NUMBER_KEY else [job.key]
    require_columns(job.source, known, {"key": wanted, "task": list(plan.reads)})
    if job.key in plan.writes:
        raise PolicyError(f"column {job.key} is the key, which must stay readable; name the rows by another column")
    added = {*(set(plan.writes) - set(plan.reads)), *([ROW_NUMBER] if job.key == ROW_NUMBER_KEY else [])}
    if not set(known) >= _OURS:
        added |= _OURS
    if clash := sorted(added & set(known)):
        raise SourceError(f"{job.source}: column {', '.join(clash)} has the name of one that is added; rename it")


def _fingerprint(job: RowsJob, step: Step, plan: StepPlan, version: str | None) -> str:
    """Names job and rows: a part is taken for finished only if all of this is the same."""
    parts = [job.run, job.source, version, job.key, job.team, job.batch_rows, step.action, plan.version]
    return hashlib.sha256(json.dumps([*parts, list(plan.reads), list(plan.writes)]).encode()).hexdigest()


def _line(summary: RowsSummary) -> tuple[Any, ...]:
    return summary.rows, summary.sink, summary.ok, summary.rejected, summary.error


class _Recorder:
    """Asks the policy, and tells the audit trail: who, how many, with which key. Never values."""

    def __init__(
        self, ledger: Ledger, trail: Trail, job: RowsJob, step: Step, caller: Caller, settings: Settings
    ) -> None:
        self._ledger = ledger
        self._trail = trail
        self._job = job
        self._step = step
        self._settings = settings
        self._caller = caller
        self._fields: dict[str, Any] = {"shard": str(job.shard), **step.noted}

    def permit(self) -> None:
        """Raises ``PolicyError``, which the trail then holds too, unless the policy allows what the step does.

        Where nothing is opened, there need not be a policy.
        """
        if self._step.opens is None and not self._settings.policy_path.exists():
            return
        try:
            loaded = self._settings.load_policy()
            with self._ledger.read() as conn:
                require_pinned(conn, loaded.file, always=loaded.policy.ledger.pinned)
            if self._caller.dag_id:  # a person at the command line acts for no DAG
                loaded.policy.require_team(self._job.team, dag=self._caller.dag_id)
            if self._step.opens is not None:
                act, columns = self._step.opens
                loaded.policy.require_grant(act, dag=self._caller.dag_id, team=self._job.team, columns=columns)
        except PolicyError:
            self._emit("error", batch=0, rows=0, error_type="not_permitted")
            raise
        self._fields["policy_hash"] = loaded.file.digest

    def batch(self, index: int, counts: Mapping[str, Any]) -> None:
        """Durable on return. Raises ``AuditError`` where the spool is full or the disk refuses."""
        self._trail.ensure_room()
        numbers = {"rows": counts["rows"], "rows_rejected": counts["rejected"], "rows_error": counts["error"]}
        self._emit("ok", batch=index, **numbers)

    def _emit(self, outcome: str, **fields: Any) -> None:
        self._trail.emit(self._step.action, outcome, **self._fields, **fields)
        self._trail.flush()


@contextmanager
def _recorder(job: RowsJob, step: Step, caller: Caller, settings: Settings) -> Iterator[_Recorder]:
    who = context_of(caller, job.team)
    with (
        open_ledger(settings.ledger_url, settings.home) as ledger,
        Trail(settings.audit_spool(), LedgerAuditStore(ledger), context=who, clock=ledger.now) as trail,
    ):
        yield _Recorder(ledger, trail, job, step, caller, settings)
