"""The LLM tasks of a DAG as they would ask, without a run: template fields rendered from what is known beforehand.

What only a run knows (an upstream task's XCom, mostly) is read from an earlier run if one is named, taken from the
command line, or said to be missing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import jinja2
from airflow.sdk.definitions.mappedoperator import MappedOperator

from airflow_ai_provider.core.errors import PermanentError, TransientError
from airflow_ai_provider.core.job import Caller, MapJob
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.operators.llm import LLMMapOperator

NO_RUN = "plan"
"""Stands for the run id of a run that is not there yet."""
_FIELDS = ("source", "sink", "team", "route", "key", "policy")


class NeedsRun(Exception):
    """A template asks for what only a run knows."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the run to be planned."""

    run_id: str = NO_RUN
    conf: Mapping[str, Any] = field(default_factory=dict)
    moment: datetime = field(default_factory=lambda: datetime.now(UTC))
    """Logical date of the run."""
    exists: bool = False
    """It is a run in Airflow's database, whose XComs can be read."""
    source: str | None = None
    """In place of the tasks' own."""
    key: str | None = None
    policy: str | None = None
    """Governing policy to plan with."""


@dataclass(frozen=True, slots=True)
class Asking:
    """One job of a task: all of its shards."""

    job: MapJob
    caller: Caller
    policy: str | None
    """The task's own file."""
    instead: str | None
    """Policy to plan with in place of every other."""
    notes: Sequence[str]
    """What was assumed, for people."""
    tries: int
    """How often Airflow runs the task at most."""


def load_dag(dag_id: str, bundles: Sequence[str] | None) -> Any:
    """A DAG from the bundles (all by default), parsed now. Raises ``PermanentError`` with what does not import."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag

    manager: Any = DagBundlesManager()  # type: ignore[no-untyped-call]
    broken: dict[str, str] = {}
    chosen = [manager.get_bundle(name) for name in bundles] if bundles else list(manager.get_all_dag_bundles())
    for bundle in chosen:
        bundle.initialize()
        bag = BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
        if dag := bag.dags.get(dag_id):
            return dag
        broken |= bag.import_errors
    reasons = "".join(f"\n  {path}: {text.strip().splitlines()[-1]}" for path, text in broken.items())
    places = ", ".join(str(bundle.path) for bundle in chosen)
    raise PermanentError(
        f"no DAG {dag_id!r} in {places}" + (f"; these files do not import:{reasons}" if broken else "")
    )


def llm_tasks(dag: Any, task_id: str | None) -> list[Any]:
    """The DAG's LLM map tasks, mapped ones too, in order; or the one that is named. Raises ``PermanentError``."""
    found = [task for task in dag.topological_sort() if _is_llm_map(task)]
    names = ", ".join(task.task_id for task in found) or "none"
    if task_id is not None:
        found = [task for task in found if task.task_id == task_id]
        if not found:
            raise PermanentError(f"{dag.dag_id} has no LLM task {task_id!r}; its LLM tasks: {names}")
    if not found:
        raise PermanentError(f"{dag.dag_id} has no LLM task to plan (LLMMapOperator or @task.llm_map)")
    return found


def known_run(dag_id: str, run_id: str) -> Known:
    """What Airflow's database says of a run. Raises ``PermanentError`` where there is none."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with create_session() as session:
            run = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
            if run is not None:
                moment = run.logical_date or run.run_after
                return Known(run_id=run_id, conf=dict(run.conf or {}), moment=moment, exists=True)
    except SQLAlchemyError as error:
        raise TransientError(f"run {run_id!r}: Airflow's database cannot be read ({type(error).__name__})") from None
    latest = latest_run(dag_id)
    raise PermanentError(f"{dag_id} has no run {run_id!r}" + (f"; the latest is {latest}" if latest else ""))


def latest_run(dag_id: str) -> str | None:
    """The DAG's latest run, as far as Airflow's database can say."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    with suppress(SQLAlchemyError), create_session() as session:
        query = select(DagRun.run_id).where(DagRun.dag_id == dag_id).order_by(DagRun.run_after.desc()).limit(1)
        found: str | None = session.scalar(query)
        return found
    return None


def askings(task: Any, known: Known) -> list[Asking]:
    """What a task would ask, every shard of it together. Raises ``PermanentError`` where that cannot be known."""
    context = _context(task, known)
    return [_asking(operator, known, context, notes) for operator, notes in _operators(task, known, context)]


def _is_llm_map(task: Any) -> bool:
    kind = task.operator_class if isinstance(task, MappedOperator) else type(task)
    return isinstance(kind, type) and issubclass(kind, LLMMapOperator)


def _operators(task: Any, known: Known, context: dict[str, Any]) -> Iterator[tuple[Any, list[str]]]:
    """The operator itself, or one for each element that it is mapped over; a mapped shard is the whole source."""
    if not isinstance(task, MappedOperator):
        yield task.prepare_for_execution(), []
        return
    in_call = "op_kwargs" in task.partial_kwargs
    for element in _elements(task, known, context):
        whole = {name: value for name, value in element.items() if name != "shard"}
        resolved = {"op_kwargs": whole} if in_call else whole
        notes = ["mapped over shards: planned as one"] if "shard" in element else []
        yield task.unmap(resolved), notes


def _elements(task: Any, known: Known, context: dict[str, Any]) -> Iterable[dict[str, Any]]:
    value = task._get_specified_expand_input().value
    if not isinstance(value, Mapping):  # expand_kwargs
        listed = _resolved(task, "expand_kwargs", value, context)
        rest = {json.dumps({k: v for k, v in one.items() if k != "shard"}, default=str): one for one in listed}
        return rest.values()
    lists = {}
    for name, items in value.items():
        given = {"shard": True, "source": known.source, "key": known.key, "policy": known.policy}.get(name)
        lists[name] = [None] if given else list(_resolved(task, name, items, context))
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def _resolved(task: Any, name: str, value: Any, context: dict[str, Any]) -> Any:
    try:
        return value.resolve(context) if hasattr(value, "resolve") else value
    except NeedsRun as error:
        raise PermanentError(_unknown(task.task_id, name, error, "")) from None


def _asking(operator: Any, known: Known, context: dict[str, Any], notes: list[str]) -> Asking:
    operator.source = known.source or operator.source
    operator.key = known.key or operator.key
    operator.policy = None if known.policy else operator.policy
    operator.shard = Shard(0, 1)
    _render_call(operator, known, context)
    for name in _FIELDS:
        try:
            setattr(operator, name, _rendered(operator, name, getattr(operator, name), context))
        except NeedsRun as error:
            notes = [*notes, _assume(operator, name, error)]
    try:
        job = operator.make_job(context)
    except (TypeError, KeyError, ValueError) as error:  # a decorated function's arguments
        raise PermanentError(f"{operator.task_id}: its arguments cannot be bound: {error}") from None
    caller = Caller(operator.dag_id, known.run_id, operator.task_id)
    return Asking(
        job, caller, operator.policy, known.policy, [note for note in notes if note], (operator.retries or 0) + 1
    )


def _render_call(operator: Any, known: Known, context: dict[str, Any]) -> None:
    """Arguments of a decorated function; ``source``, ``sink`` and ``shard`` may be among them."""
    if not hasattr(operator, "op_kwargs"):
        return
    given = {name: value for name, value in operator.op_kwargs.items() if name != "shard"}
    if known.source:
        given.pop("source", None)
    rendered = {}
    for name, value in [*given.items(), ("op_args", list(operator.op_args))]:
        try:
            rendered[name] = _rendered(operator, name, value, context)
        except NeedsRun as error:
            if name != "sink":
                raise PermanentError(_unknown(operator.task_id, name, error, _remedy(name))) from None
            operator.sink = ""
    operator.op_args = rendered.pop("op_args")
    operator.op_kwargs = rendered
    operator.source = rendered.get("source") or operator.source


def _rendered(operator: Any, name: str, value: Any, context: dict[str, Any]) -> Any:
    try:
        return operator.render_template(value, context, operator.dag.get_template_env())
    except jinja2.TemplateError as error:
        raise PermanentError(f"{operator.task_id}: {name} cannot be rendered: {error}") from None


def _assume(operator: Any, name: str, error: NeedsRun) -> str:
    """What stands for a field that only a run knows; returns what to tell people. Raises ``PermanentError``."""
    from airflow_ai_provider.core.rows.keys import ROW_NUMBER_KEY

    match name:
        case "key":
            operator.key = ROW_NUMBER_KEY
            return f"key {error}: rows are named by their number (or pass --key)"
        case "sink":
            operator.sink = ""
            return ""
    raise PermanentError(_unknown(operator.task_id, name, error, _remedy(name)))


def _remedy(name: str) -> str:
    return "--input URI, or " if name == "source" else "--policy PATH, or " if name == "policy" else ""


def _unknown(task_id: str, name: str, error: NeedsRun, option: str) -> str:
    return f"{task_id}: {name} {error}; pass {option}--run-id of an earlier run, whose values are then taken"


def _context(task: Any, known: Known) -> dict[str, Any]:
    """What templates may name, as far as it is known."""
    from airflow.sdk.definitions.param import process_params
    from airflow.sdk.exceptions import ParamValidationError
    from airflow.sdk.execution_time.context import ConnectionAccessor, MacrosAccessor, VariableAccessor
    from airflow.sdk.plugins_manager import integrate_macros_plugins

    integrate_macros_plugins()
    try:
        params = process_params(task.dag, task, dict(known.conf), suppress_exception=False)
    except ParamValidationError as error:
        reason = str(error).splitlines()[0]
        raise PermanentError(f"{task.task_id}: params do not fit: {reason}; pass --conf with a JSON object") from None
    stand_in, moment = _TaskInstance(task, known), known.moment
    day = f"{moment:%Y-%m-%d}"
    run = SimpleNamespace(
        dag_id=task.dag_id, run_id=known.run_id, conf=dict(known.conf), logical_date=moment, run_after=moment
    )
    return {
        "dag": task.dag,
        "task": task,
        "ti": stand_in,
        "task_instance": stand_in,
        "run_id": known.run_id,
        "dag_run": run,
        "params": params,
        "macros": MacrosAccessor(),
        "var": {"value": VariableAccessor(deserialize_json=False), "json": VariableAccessor(deserialize_json=True)},
        "conn": ConnectionAccessor(),
        "logical_date": moment,
        "data_interval_start": moment,
        "data_interval_end": moment,
        "ds": day,
        "ds_nodash": day.replace("-", ""),
        "ts": moment.isoformat(),
        "ts_nodash": f"{moment:%Y%m%dT%H%M%S}",
        "ts_nodash_with_tz": moment.isoformat().replace("-", "").replace(":", ""),
    }


class _TaskInstance:
    """What templates use of a task instance: who it is, and XComs of an earlier run."""

    map_index, try_number = -1, 1

    def __init__(self, task: Any, known: Known) -> None:
        self.dag_id, self.task_id, self.run_id = task.dag_id, task.task_id, known.run_id
        self._exists = known.exists

    def xcom_pull(
        self,
        task_ids: str | Sequence[str] | None = None,
        dag_id: str | None = None,
        key: str = "return_value",
        **_: Any,
    ) -> Any:
        """Raises ``NeedsRun`` where there is no run, or it has no such XCom."""
        names = [task_ids] if isinstance(task_ids, str) else list(task_ids or [self.task_id])
        if not self._exists:
            raise NeedsRun(f"comes from {', '.join(names)} ({key}), which only a run knows")
        values = [self._one(name, dag_id or self.dag_id, key) for name in names]
        return values if len(names) > 1 else values[0]

    def get_relevant_upstream_map_indexes(self, **_: Any) -> Any:
        """Airflow asks for it inside a mapped task group."""
        raise NeedsRun("depends on the element of a mapped task group, which only a run knows")

    def _one(self, task_id: str, dag_id: str, key: str) -> Any:
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        query: Any = XComModel.get_many(run_id=self.run_id, key=key, task_ids=task_id, dag_ids=dag_id)
        with create_session() as session:
            found = {row.map_index: XComModel.deserialize_value(row) for row in session.scalars(query)}
        if not found:
            raise NeedsRun(f"comes from {task_id} ({key}), which run {self.run_id} does not have")
        return found[-1] if -1 in found else [found[index] for index in sorted(found)]
