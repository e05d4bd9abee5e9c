"""What Airflow knows of task instances: from its database for commands, through its API for tasks."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_ai_provider.core.administration.budgets import TaskState
    from airflow_ai_provider.core.ledger.budgets.orphaned_holds import Holder


def watch_supervisor() -> Callable[[], bool] | None:
    """Return a function that tells whether the process that supervises this task still lives.

    ``None`` where none does, as in ``dag.test()`` and notebooks: there a parent may end while its child works on.
    Without its supervisor a task can report nothing, and Airflow starts another try of it.
    """
    runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
    channel = getattr(getattr(runner, "SUPERVISOR_COMMS", None), "socket", None)
    if channel is None:
        return None
    parent, poller = os.getppid(), select.poll()
    poller.register(channel, 0)  # hang-ups are told whatever is asked; what was sent stays to be read

    def lives() -> bool:
        return os.getppid() == parent and not poller.poll(0)

    return lives


def states_from_database(holders: Sequence[Holder]) -> list[TaskState]:
    """For commands, which run beside Airflow's database. One query per DAG."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    found: dict[tuple[str, str, str, int], str | None] = {}
    columns = (
        TaskInstance.dag_id,
        TaskInstance.run_id,
        TaskInstance.task_id,
        TaskInstance.map_index,
        TaskInstance.state,
    )
    with create_session() as session:
        for dag_id in {holder.task.dag_id for holder in holders}:
            runs = {holder.task.run_id for holder in holders if holder.task.dag_id == dag_id}
            query = select(*columns).where(TaskInstance.dag_id == dag_id, TaskInstance.run_id.in_(runs))
            found.update({(dag, run, task, index): state for dag, run, task, index, state in session.execute(query)})
    keys = [(h.task.dag_id, h.task.run_id, h.task.task_id, h.task.map_index) for h in holders]
    return [(key in found, str(found[key]) if found.get(key) else None) for key in keys]


def states_from_task(context: Mapping[str, Any]) -> Callable[[Sequence[Holder]], list[TaskState]]:
    """For tasks, which ask Airflow's API. One request per task instance that is silent."""

    def states(holders: Sequence[Holder]) -> list[TaskState]:
        return [_state(context["ti"], holder) for holder in holders]

    return states


def _state(ti: Any, holder: Holder) -> TaskState:
    task = holder.task
    mapped = {} if task.map_index < 0 else {"map_index": task.map_index}
    states = ti.get_task_states(dag_id=task.dag_id, task_ids=[task.task_id], run_ids=[task.run_id], **mapped)
    of_run = states.get(task.run_id) or {}
    name = task.task_id if task.map_index < 0 else f"{task.task_id}_{task.map_index}"
    return name in of_run, of_run.get(name)
