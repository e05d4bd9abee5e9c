"""Wait for room in a budget before work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

from airflow.sdk import Context
from airflow.sdk.bases.sensor import BaseSensorOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_ai_provider.operators.base import governed_task, require_text
from airflow_ai_provider.triggers.budget import BudgetTrigger, require_room

_NANO = 1_000_000_000


class BudgetSensor(BaseSensorOperator):
    """Wait until every budget that applies to a team and route has room for a sum.

    A sum that is more than a budget's whole limit fails the task at once: it will never fit.

    :param team: who pays (templated).
    :param route: route of the policy (templated).
    :param room_usd: room to wait for, in USD; a number or text (templated).
    :param calls_dag_id: DAG of the calls to come, this one by default (templated).
    :param policy: path of a policy file that narrows ``[ai] policy_path``; refused unless ``[ai] allow_dag_policy``
        is on (templated).
    :param deferrable: wait in the triggerer, without a worker slot.
    """

    template_fields: Sequence[str] = ("team", "route", "room_usd", "calls_dag_id", "policy")
    ui_color = "#f4f1e8"

    def __init__(
        self,
        *,
        team: str,
        route: str,
        room_usd: str | float | Decimal,
        calls_dag_id: str | None = None,
        policy: str | None = None,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_text(f"BudgetSensor {self.task_id}", team=team, route=route, room_usd=room_usd)
        self.team = team
        self.route = route
        self.room_usd = str(room_usd)
        self.calls_dag_id = calls_dag_id
        self.policy = policy
        self.deferrable = deferrable

    def execute(self, context: Context) -> None:
        with governed_task():
            trigger = self._trigger(context)
            if trigger.has_room():
                return
        if self.deferrable:
            self.defer(trigger=trigger, method_name="resume", timeout=self._remaining())
        super().execute(context)

    def poke(self, context: Context) -> bool:
        with governed_task():
            return self._trigger(context).has_room()

    def resume(self, context: Context, event: Mapping[str, Any]) -> None:
        """Go on when the triggerer has seen room."""
        require_room(event)

    def _trigger(self, context: Context) -> BudgetTrigger:
        from airflow_ai_provider.core.administration.budgets import usd

        try:
            wanted = int(usd(self.room_usd) * _NANO)
        except ValueError as error:
            raise AirflowFailException(f"BudgetSensor {self.task_id}: room_usd {error}") from None
        ti = context["ti"]
        return BudgetTrigger(
            team=self.team,
            dag_id=self.calls_dag_id or str(ti.dag_id),
            run_id=str(ti.run_id),
            route=self.route,
            wanted_nano=wanted,
            policy=self.policy,
            poll_seconds=float(self.poke_interval),
        )

    def _remaining(self) -> timedelta:
        return timedelta(seconds=float(self.timeout))
