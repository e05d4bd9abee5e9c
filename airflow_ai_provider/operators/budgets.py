"""Upkeep of budgets: holds of tasks that are over are settled and released."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context

from airflow_ai_provider.operators.base import AIBaseOperator


class SweepHoldsOperator(AIBaseOperator):
    """Find processes that hold room and have fallen silent, ask Airflow whether their task is over, and settle those.

    What they left open is captured as ``unknown``, at its whole hold, until an invoice says what it cost. A task that
    Airflow says is running is left alone, however long it has been silent.
    """

    ui_color = "#f4f1e8"

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.core.administration.budgets import sweep_holds
        from airflow_ai_provider.core.ledger.call_costs import usd_from_nano
        from airflow_ai_provider.hooks.context import caller_from_context
        from airflow_ai_provider.hooks.settings import settings_from_airflow
        from airflow_ai_provider.hooks.tasks import states_from_task

        caller = caller_from_context(context)
        swept = sweep_holds(settings_from_airflow(), states_from_task(context), caller=caller, dry_run=False)
        captured = usd_from_nano(swept.captured_nano)
        self.log.info(
            "%d silent processes, %d of tasks that are over: %d holds released, %d calls captured at $%s",
            swept.holders,
            swept.over,
            swept.holds,
            swept.attempts,
            captured,
        )
        return {
            "silent": swept.holders,
            "over": swept.over,
            "holds": swept.holds,
            "captured": swept.attempts,
            "captured_usd": f"{captured:f}",
        }
