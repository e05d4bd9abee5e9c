"""The Airflow plugin: what templates may call.

Loaded through the ``airflow.plugins`` entry point in every Airflow process, so it imports nothing of the heart.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk.plugins_manager import AirflowPlugin

from airflow_ai_provider.hooks.context import run_folder
from airflow_ai_provider.hooks.settings import ai_home


def home() -> str:
    """``[ai] home``, for paths in templates."""
    return str(ai_home())


class AirflowAIPlugin(AirflowPlugin):
    """Adds ``{{ macros.ai.run_folder(run_id) }}`` and ``{{ macros.ai.home() }}`` to task templates."""

    name = "ai"
    macros: list[Any] = [run_folder, home]  # noqa: RUF012 - the base class declares it so
