"""From Airflow's task context to the heart's own values."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
from collections.abc import Iterator, Mapping
from getpass import getuser
from pathlib import Path
from typing import Any

from airflow_ai_provider.errors import PermanentError
from airflow_ai_provider.gateway.job import Caller

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_DAG_ID = "AIRFLOW_CTX_DAG_ID"
"""Variable in which Airflow tells a task's processes its DAG."""
_READABLE_CHARS = 80
"""Enough of a run id to recognise it; file systems allow 255 bytes in a name."""


def run_folder(run_id: str) -> str:
    """A folder name for one DAG run, safe on every file system and different for different run ids.

    ``manual__2025-01-01T00:00:00+00:00`` becomes ``manual__2025-01-01T00-00-00-00-00-…``: the readable part of the id
    and 48 bits of its SHA-256, because replacing characters alone would let two ids meet.
    """
    readable = _UNSAFE.sub("-", run_id)[:_READABLE_CHARS].lstrip(".")
    return f"{readable}-{hashlib.sha256(run_id.encode()).hexdigest()[:12]}"


def caller_from_context(context: Mapping[str, Any]) -> Caller:
    """The task instance of an Airflow context, as the heart records it with every call."""
    ti = context["ti"]
    map_index = getattr(ti, "map_index", None)
    return Caller(
        dag_id=str(ti.dag_id),
        run_id=str(ti.run_id),
        task_id=str(ti.task_id),
        map_index=-1 if map_index is None else int(map_index),
        try_number=int(ti.try_number or 1),
        user=_triggering_user(context),
    )


def whoever_runs_this(by: str | None = None) -> Caller:
    """The person at the command line: the name they give, and the account the process runs under."""
    try:
        login = getuser()
    except (OSError, KeyError):  # an id that no name was given to, as in many containers
        login = ""
    return Caller("", "", "", user=by or login, account=_account())


def require_person(what: str) -> None:
    """Raise ``PermanentError`` inside an Airflow task: limits and pins are set by people, not by DAGs."""
    if dag_id := dag_of_this_process():
        raise PermanentError(
            f"{what} inside a task (DAG {dag_id}): this is for people who answer for the policy; change policy.yaml, "
            "or run the command outside of Airflow's tasks"
        )


def dag_of_this_process() -> str:
    """Return the DAG id of the task that this process belongs to; empty outside of tasks.

    Airflow exports the id to the task's environment, and so to the processes that the task starts. On Linux the
    environments of the parent processes count too, so that ``env -i`` in a task's shell does not hide the task.
    """
    if dag_id := os.environ.get(_DAG_ID):
        return dag_id
    for pid in _ancestors():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # another account's process, one that has ended, or no Linux
            continue
        for entry in environment.split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name == _DAG_ID.encode() and value:
                return value.decode(errors="replace")
    return ""


def _ancestors() -> Iterator[int]:
    """Yield the ids of the parent processes, nearest first; none where ``/proc`` does not tell."""
    pid = os.getppid()
    while pid > 1:
        yield pid
        try:
            status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return
        pid = int(status.rpartition(")")[2].split()[1])


def _account() -> str:
    """Name or number of the account, whatever the environment calls it."""
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _triggering_user(context: Mapping[str, Any]) -> str:
    return str(getattr(context.get("dag_run"), "triggering_user_name", None) or "")
