"""Who uses the command line, and whether that is a person: limits and pins are set by people, not by DAGs."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from getpass import getuser
from pathlib import Path

from airflow_ai_provider.core.errors import PermanentError
from airflow_ai_provider.core.job import Caller

_DAG_ID = "AIRFLOW_CTX_DAG_ID"
"""Variable in which Airflow tells a task's processes its DAG."""


def current_person(by: str | None = None) -> Caller:
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
