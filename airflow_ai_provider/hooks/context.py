"""From Airflow's task context to the core's own values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from airflow_ai_provider.core.job import Caller

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
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
    """The task instance of an Airflow context, as the core records it with every call."""
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


def _triggering_user(context: Mapping[str, Any]) -> str:
    return str(getattr(context.get("dag_run"), "triggering_user_name", None) or "")
