"""Waits until budgets have room, in the triggerer: it only looks, holds nothing and spends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.sdk.exceptions import AirflowFailException
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_ai_provider.core.errors import AIProviderError, TransientError


class BudgetTrigger(BaseTrigger):
    """Fires when every budget that applies has room for a sum or, with ``least_nano``, for a part worth going on with.

    :param team: whose budgets.
    :param dag_id: DAG of the calls to come.
    :param run_id: its run.
    :param route: route of the policy.
    :param wanted_nano: room in nano-dollars.
    :param least_nano: what the smallest useful part wants; a part is a tenth of the limits, and no less than this.
    :param policy: path of a policy file that narrows ``[ai] policy_path``; looked at under the same rules as a task's.
    :param poll_seconds: how often to look.
    """

    def __init__(
        self,
        *,
        team: str,
        dag_id: str,
        run_id: str,
        route: str,
        wanted_nano: int,
        least_nano: int | None = None,
        policy: str | None = None,
        poll_seconds: float = 30.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.team = team
        self.dag_id = dag_id
        self.run_id = run_id
        self.route = route
        self.wanted_nano = wanted_nano
        self.least_nano = least_nano
        self.policy = policy
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("team", "dag_id", "run_id", "route", "wanted_nano", "least_nano", "policy", "poll_seconds")
        place = f"{type(self).__module__}.{type(self).__qualname__}"
        return place, {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event: ``{"status": "room"}``, or ``{"status": "error", "message": …}`` where nothing will change."""
        while True:
            try:
                # Airflow's connections are fetched by blocking code, which must go through its own bridge.
                if await sync_to_async(self.has_room)():
                    yield TriggerEvent({"status": "room"})  # type: ignore[no-untyped-call]
                    return
            except TransientError as error:
                self.log.warning("%s; looking again in %g s", error, self.poll_seconds)
            except AIProviderError as error:
                yield TriggerEvent({"status": "error", "message": str(error)})  # type: ignore[no-untyped-call]
                return
            await asyncio.sleep(self.poll_seconds)

    def has_room(self) -> bool:
        """Look once. Raises errors of ``airflow_ai_provider.errors``."""
        from airflow_ai_provider.core.administration.budgets import room_now
        from airflow_ai_provider.core.ledger.budgets.availability import Scope, has_room, worth_going_on
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        scope = Scope(self.team, self.dag_id, self.run_id, self.route)
        found = room_now(settings_from_airflow(policy=self.policy), scope)
        if self.least_nano is None:
            return has_room(found, self.wanted_nano)
        return worth_going_on(found, self.wanted_nano, self.least_nano)


def require_room(event: Mapping[str, Any]) -> None:
    """Raise ``AirflowFailException`` where a trigger ended for another reason than room."""
    if event.get("status") != "room":
        raise AirflowFailException(str(event.get("message") or "the wait for a budget ended without room"))
