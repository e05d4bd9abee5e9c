"""Airflow's context as operators use it, without Airflow's database."""

from __future__ import annotations

import json
import types
from typing import Any


class FakeTaskInstance(types.SimpleNamespace):
    """What operators use of a task instance: who it is, and XComs."""

    def __init__(self) -> None:
        super().__init__(dag_id="d", run_id="run 1", task_id="t", map_index=None, try_number=1, pushed={})

    def xcom_push(self, key: str, value: Any) -> None:
        json.dumps(value)
        self.pushed[key] = value


def context(ti: FakeTaskInstance | None = None) -> Any:
    ti = ti or FakeTaskInstance()
    return {"ti": ti, "run_id": ti.run_id, "dag_run": None}
