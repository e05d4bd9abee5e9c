"""Mask, restore, encrypt or decrypt the columns of a whole source: no model is called.

A step says what becomes of one row; the runner feeds it batches and writes parts. Invariants:

- a row that cannot be treated has nulls in the treated columns, never its earlier values, and says why; the others go
  on;
- opening asks the policy first, and what is not allowed there explicitly is refused;
- a batch is in the audit trail before its rows are written to the sink.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from logging import Logger
from typing import Any, Literal, Protocol

import pyarrow as pa

from airflow_ai_provider.core.audit.trail.trail import Trail
from airflow_ai_provider.core.errors import JobStopped, KeyringError, PolicyError, PrivacyError, SourceError
from airflow_ai_provider.core.installation import Installation, opened
from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs.column_functions import column_of, values_of
from airflow_ai_provider.core.jobs.runner import Batch, BatchJob, Feed, Part, fingerprint, run_to_sink
from airflow_ai_provider.core.jobs.tally import Tally
from airflow_ai_provider.core.ledger.installation_checks import require_pinned
from airflow_ai_provider.core.pipeline.loop_thread import LoopThread
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.core.rows.source import ROW_NUMBER_KEY, Source, inspect, require_columns
from airflow_ai_provider.core.settings import Settings

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


@dataclass(frozen=True, slots=True)
class Treated:
    """What became of one row."""

    values: Mapping[str, Any]
    rejected: str | None = None
    """Why a person should look at it, as ``kind: explanation``."""


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


@dataclass
class RowsTally(Tally):
    """Counts of rows by status."""

    ok: int = 0
    rejected: int = 0
    error: int = 0

    def figures(self) -> list[str]:
        return [f"ok {self.ok:,}", f"rejected {self.rejected:,}", f"errors {self.error:,}"]


@dataclass(frozen=True, slots=True)
class RowsSummary:
    """What came of a job; counts are rows."""

    sink: str
    rows: int
    ok: int
    rejected: int
    error: int
    skipped: int
    """Rows in parts that an earlier try had finished; counted above as well."""
    seconds: float
    errors: Mapping[str, int]
    """Rows by kind of error."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def transform_rows(
    job: RowsJob, step: Step, caller: Caller, where: Settings | Installation, *, log: Logger | Any
) -> RowsSummary:
    """Treat every row of a job's shard and write the parts; blocks until done.

    Raises ``PolicyError`` (also for a permission that is missing), ``SourceError``, ``SinkError``, ``KeyringError``,
    ``AuditError``, ``LedgerUnavailable`` and ``StoreUnavailable``, each before or between batches.
    """
    with opened(where) as installation, installation.trail(caller, job.team) as trail:
        events = _Events(trail, job, step)
        events.policy_hash = _permit(installation, job, step, caller, events)
        source = installation.source(job.source)
        feed = Feed(source, job.key, job.shard, job.batch_rows)
        plan = step.prepare(_schema(source), job.key)
        _check_columns(job, source, plan)
        found = inspect(source, key=job.key, columns=[])
        decides = {"team": job.team, "act": step.action, "step": plan.version, "columns": [plan.reads, plan.writes]}
        sink = installation.sink(job.sink, fingerprint(caller, feed, found.version, **decides), job.shard)
        sink.begin()
        tally = RowsTally()
        work = _Transform(step, plan, job.key, events)
        run = partial(run_to_sink, feed, work, sink, tally, log=log, rows=found.rows)
        seconds: float = LoopThread(run).run()
    return RowsSummary(**tally.to_summary(), sink=job.sink, seconds=seconds)


class _Transform(BatchJob):
    """A step as a job of the runner."""

    def __init__(self, step: Step, plan: StepPlan, key: str, events: _Events) -> None:
        self._step = step
        self._plan = plan
        self._key = key
        self._events = events
        self._stopping = False

    async def process(self, batch: Batch) -> Part:
        return await asyncio.to_thread(self._treat, batch)

    async def stop(self, grace_seconds: float) -> None:
        self._stopping = True

    def _treat(self, batch: Batch) -> Part:
        step, plan = self._step, self._plan
        table = pa.Table.from_batches([batch.rows])
        earlier = _earlier(table)
        read = {name: values_of(table.column(name)) for name in plan.reads}
        written: dict[str, list[Any]] = {name: [] for name in plan.writes}
        statuses, errors = [], []
        for number, row_key in enumerate(batch.keys):
            if self._stopping:
                raise JobStopped
            row = {name: values[number] for name, values in read.items()}
            status, error, treated = _one(row, row_key, step, *earlier[number])
            for name, values in written.items():
                values.append(None if treated is None else treated.values[name])
            statuses.append(status)
            errors.append(error)
        made = {name: column_of(values, step.type_of(name)) for name, values in written.items()}
        output = _output(table, plan, made, statuses, errors)
        if self._key == ROW_NUMBER_KEY:
            output = output.add_column(0, ROW_NUMBER, pa.array(list(map(int, batch.keys)), pa.int64()))
        counts = _counts(statuses, errors)
        self._events.batch(batch.index, counts)
        return Part(output, counts, final=not counts["error"])


def _counts(statuses: Sequence[str], errors: Sequence[str | None]) -> dict[str, Any]:
    by_status = Counter(statuses)
    kinds = Counter(error.partition(":")[0] for error in errors if error)
    return {
        "rows": len(statuses),
        **{name: by_status[name] for name in ("ok", "rejected", "error")},
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


def _permit(installation: Installation, job: RowsJob, step: Step, caller: Caller, events: _Events) -> str | None:
    """Digest of the policy that allows what the step does; ``None`` where nothing is opened and there is no policy.

    Raises ``PolicyError``, which the trail then holds too, where the policy does not allow it.
    """
    if step.opens is None and not installation.settings.policy_path.exists():
        return None
    try:
        loaded = installation.policy
        with installation.ledger.read() as conn:
            require_pinned(conn, loaded.file, always=loaded.policy.ledger.pinned)
        if caller.dag_id:  # a person at the command line acts for no DAG
            loaded.policy.require_team(job.team, dag=caller.dag_id)
        if step.opens is not None:
            act, columns = step.opens
            loaded.policy.require_grant(act, dag=caller.dag_id, team=job.team, columns=columns)
    except PolicyError:
        events.not_permitted()
        raise
    return loaded.file.digest


class _Events:
    """What the audit trail is told of a job: who, how many, with which key. Never values."""

    def __init__(self, trail: Trail, job: RowsJob, step: Step) -> None:
        self._trail = trail
        self._action = step.action
        self._fields = {"shard": str(job.shard), **step.noted}
        self.policy_hash: str | None = None

    def not_permitted(self) -> None:
        self._emit("error", batch=0, rows=0, error_type="not_permitted")

    def batch(self, index: int, counts: Mapping[str, Any]) -> None:
        """Durable on return. Raises ``AuditError`` where the spool is full or the disk refuses."""
        self._trail.ensure_room()
        numbers = {"rows": counts["rows"], "rows_rejected": counts["rejected"], "rows_error": counts["error"]}
        self._emit("ok", batch=index, policy_hash=self.policy_hash, **numbers)

    def _emit(self, outcome: str, **fields: Any) -> None:
        self._trail.emit(self._action, outcome, **self._fields, **fields)
        self._trail.flush()
