"""The Airflow plugin: what templates may call, and what listens to task instances.

Loaded through the ``airflow.plugins`` entry point in every Airflow process, so it imports nothing of the core.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk.plugins_manager import AirflowPlugin

from airflow_ai_provider.hooks.context import run_folder
from airflow_ai_provider.hooks.settings import ai_home
from airflow_ai_provider.listeners import task_outcomes


def home() -> str:
    """``[ai] home``, for paths in templates."""
    return str(ai_home())


class AirflowAIPlugin(AirflowPlugin):
    """Adds ``{{ macros.ai.run_folder(run_id) }}`` and ``{{ macros.ai.home() }}`` to task templates, and tells the audit
    trail of outcomes."""

    name = "ai"
    macros: list[Any] = [run_folder, home]  # noqa: RUF012 - the base class declares it so
    listeners: list[Any] = [task_outcomes]  # noqa: RUF012
