"""A listener that tells the audit trail what became of task instances: success, failed, up_for_retry, skipped.

It acts in task processes only, where the spool is, and only for tasks of interest (``[ai] audit_outcomes``): by default
those of this package's operators, which have opened ledger and trail anyhow. Whatever goes wrong here is a warning in
the task's log: the task has ended already, and what it paid for is in the trail.

Every Airflow process imports this module, so it imports nothing of the core.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from airflow.listeners import hookimpl

_PACKAGE = "airflow_ai_provider."
_AUDIT = "airflow_ai_provider.operators.audit"
_MODES = ("ours", "dags", "off")
log = logging.getLogger(__name__)


@hookimpl
def on_task_instance_success(previous_state: Any, task_instance: Any) -> None:
    _record(task_instance, None)


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any, error: Any) -> None:
    _record(task_instance, error)


@hookimpl
def on_task_instance_skipped(previous_state: Any, task_instance: Any) -> None:
    _record(task_instance, None)


def _record(ti: Any, error: Any) -> None:
    try:
        if is_of_interest(ti):
            _write(ti, error)
    except Exception as problem:  # noqa: BLE001 - a task never fails for its listener
        log.warning("the outcome of this task is not in the audit trail: %s: %s", type(problem).__name__, problem)


def is_of_interest(ti: Any) -> bool:
    """Whether the trail hears of this task instance. Servers that set states pass other objects and are left out."""
    task = getattr(ti, "task", None)
    if task is None:
        return False
    if is_ours(type(task)):
        # The sealer's success is in its manifest; an event for it would be one segment more to seal, for ever.
        routine = type(task).__module__ == _AUDIT and _state(ti) == "success"
        return not routine and _mode() != "off"
    return _mode() == "dags" and any(is_ours(type(each)) for each in task.dag.tasks)


def is_ours(kind: type) -> bool:
    """Whether an operator's class is of this package, or derives from one."""
    return any(base.__module__.startswith(_PACKAGE) for base in kind.__mro__)


def _mode() -> str:
    from airflow_ai_provider.hooks.settings import option

    mode = option("audit_outcomes") or "ours"
    if mode not in _MODES:
        raise ValueError(f"[ai] audit_outcomes {mode!r}: expected one of {', '.join(_MODES)}")
    return mode


def _write(ti: Any, error: Any) -> None:
    from airflow_ai_provider.core.administration.audit import record
    from airflow_ai_provider.hooks.context import caller_from_context
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    state = _state(ti)
    started = getattr(ti, "start_date", None)
    seconds = (datetime.now(UTC) - started).total_seconds() if started else None
    record(
        settings_from_airflow(),
        "task.outcome",
        caller_from_context(ti.get_template_context()),
        outcome="ok" if state in ("success", "skipped") else "error",
        state=state,
        operator=type(ti.task).__name__,
        duration_ms=max(0, round(seconds * 1000)) if seconds is not None else None,
        error_type=type(error).__name__ if isinstance(error, BaseException) else None,
    )


def _state(ti: Any) -> str:
    state = getattr(ti, "state", None)
    return str(getattr(state, "value", state) or "unknown")
