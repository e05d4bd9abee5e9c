"""Room in the budgets for one batch: asked for row by row, taken in one transaction for all that ask at once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from airflow_ai_provider.gateway.job import Caller
from airflow_ai_provider.ledger.batching import Batcher
from airflow_ai_provider.ledger.holds import Grant, TaskRef, close_holds, take_hold
from airflow_ai_provider.ledger.journal import Journal
from airflow_ai_provider.ledger.periods import budget_period
from airflow_ai_provider.policy import Budget

_LOOK_AGAIN_SECONDS = 0.2
"""How often to look whether calls in flight elsewhere have released room."""


class BatchFunds:
    """The hold of one batch. Close it when every attempt of the batch is settled.

    A batch is charged to the periods in which it began, so that one hold never spans two days.
    """

    def __init__(
        self, journal: Journal, *, owner: str, task: TaskRef, budgets: Sequence[Budget], caller: Caller
    ) -> None:
        self.hold_id = uuid.uuid4().hex
        self._journal = journal
        self._owner = owner
        self._task = task
        now = datetime.now(UTC)
        self._periods = [budget_period(b, now=now, dag_id=caller.dag_id, run_id=caller.run_id) for b in budgets]
        self._asks: Batcher[int, str | bool] = Batcher(self._take)
        self._taken = False
        self._broken: BaseException | None = None

    async def room(self, amount: int) -> str | None:
        """Hold ``amount`` nano-dollars. Returns ``None`` once it is held, or the name of the budget that is spent.

        Waits while calls in flight, here or in any other live process, could still release the room.
        """
        while True:
            answer = await self._asks.ask(amount)
            if answer is True:
                return None
            if isinstance(answer, str):
                return answer
            if self._broken is not None:
                raise self._broken
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    def stop_waiting(self, error: BaseException) -> None:
        """A row of the batch failed with its share held; nobody waits for room that only the end of the batch frees."""
        self._broken = self._broken or error

    async def close(self) -> None:
        """Release what the batch did not use."""
        if self._taken:
            await self._journal.run(lambda conn: close_holds(conn, [self.hold_id], datetime.now(UTC)))

    async def _take(self, amounts: list[int]) -> list[str | bool]:
        """For each amount: ``True`` it is held, ``False`` ask again, or the budget that will not have room."""
        self._taken = True
        grant: Grant = await self._journal.run(
            lambda conn: take_hold(
                conn,
                hold_id=self.hold_id,
                owner=self._owner,
                task=self._task,
                periods=self._periods,
                amounts=amounts,
                now=datetime.now(UTC),
            )
        )
        possible = grant.ceiling if grant.live_holds else grant.room
        refused = [grant.short_of if amount > possible else False for amount in amounts[grant.granted :]]
        return [True] * grant.granted + refused
