"""The budget hold of one batch: rows reserve their shares one by one, the ledger sees one transaction per group."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import count
from typing import Any, TypeVar

from sqlalchemy import Connection

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.ledger.attempts.group_commit import Batcher, Journal
from airflow_ai_provider.core.ledger.budgets.holds import Grant, TaskRef, close_holds, held_now, release, take_hold
from airflow_ai_provider.core.ledger.budgets.limits import BudgetPeriod, LimitChange, budget_period, budgets_in_force
from airflow_ai_provider.core.ledger.budgets.thresholds import Notice, claim_notices
from airflow_ai_provider.core.policy import Budget
from airflow_ai_provider.core.policy.budgets import DagBudget
from airflow_ai_provider.core.policy.loading import PolicyFile

T = TypeVar("T")
_LOOK_AGAIN_SECONDS = 0.2
"""How often a process looks whether calls in flight have released room."""


class BudgetHold:
    """The hold of one batch. Close it when every attempt of the batch is settled.

    A batch is charged to the periods in which it began, so that one hold never spans two days; their limits are read
    again with every reservation, since they may have been changed in between. ``line`` is shared by the batches of a
    process: a batch that finds no budget keeps it for a moment, so that a process asks a few times a second and not
    once for each batch.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        owner: str,
        task: TaskRef,
        budgets: Sequence[Budget],
        read_at: datetime | None = None,
        stated_in: Callable[[Budget], PolicyFile | None] = lambda _: None,
        caller: Caller,
        route: str,
        line: asyncio.Lock,
    ) -> None:
        self.hold_id = uuid.uuid4().hex
        self._journal = journal
        self._owner = owner
        self._task = task
        self._policy = budgets
        self._read_at = read_at
        self._stated_in = stated_in
        self._began = self._journal.now()
        self._scope = {"team": task.team_id, "dag": caller.dag_id, "route": route}
        self._run = {"dag_id": caller.dag_id, "run_id": caller.run_id}
        self._periods: dict[str, BudgetPeriod] = {}
        self.limit_changes: list[LimitChange] = []
        """Limits that the policy has changed since the batch before."""
        self._line = line
        self._asks: Batcher[int, str | bool] = Batcher(self._take)
        self._taken = self._held = False
        self._broken: BaseException | None = None
        self._closed = False
        self._returning: set[asyncio.Task[None]] = set()

    async def reserve(self, amount: int) -> str | None:
        """Hold ``amount`` nano-dollars. Returns ``None`` once they are held, or the name of the exhausted budget.

        Waits while calls in flight, in this or another live process, could still release enough.
        """
        while True:
            asked = self._asks.put(amount)
            try:
                answer = await asyncio.shield(asked)
            except asyncio.CancelledError:
                asked.add_done_callback(lambda done: self._unwanted(done, amount))
                raise
            if answer is True:
                return None
            if isinstance(answer, str):
                return answer
            if self._broken is not None:
                raise self._broken

    def _unwanted(self, asked: asyncio.Future[str | bool], amount: int) -> None:
        """Give back at once what was granted to a row that was cancelled meanwhile."""
        if self._closed or asked.cancelled() or asked.exception() is not None or asked.result() is not True:
            return
        task = asyncio.get_running_loop().create_task(self.give_back(amount))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def give_back(self, amount: int) -> None:
        """Release a share that no attempt will use: other rows may be waiting for it."""

        def free(conn: Connection) -> None:
            release(conn, {self.hold_id: amount}, {}, self._journal.now())

        await self._journal.run(self._once(free))

    def stop_waiting(self, error: BaseException) -> None:
        """A row of the batch failed and keeps its share until the batch ends: rows that wait for it get ``error``."""
        self._broken = self._broken or error

    async def close(self) -> list[Notice]:
        """Release what the batch did not use. Returns the thresholds crossed that were not reported before."""
        self._closed = True
        await self._asks.idle()  # a group of rows that were cancelled may be about to take room
        if self._returning:
            await asyncio.wait(self._returning)
        if not self._taken:
            return []
        now, runs = self._journal.now(), count()

        def finish(conn: Connection) -> list[Notice]:
            close_holds(conn, [self.hold_id], now)
            return claim_notices(conn, now, replay=next(runs) > 0)

        return await self._journal.run(finish)

    def _once(self, move: Callable[[Connection], T]) -> Callable[[Connection], T]:
        """Make ``move`` safe to run again after the reply to its commit was lost.

        If the held amount is what the first run left, that run was committed.
        """
        first: list[tuple[int | None, T]] = []

        def run(conn: Connection) -> T:
            if first and held_now(conn, self.hold_id, ended_in=self._periods) == first[0][0]:
                return first[0][1]
            result = move(conn)
            first[:] = [(held_now(conn, self.hold_id), result)]
            return result

        return run

    def _periods_now(self, conn: Connection) -> dict[str, BudgetPeriod]:
        """The periods of the first hold, with the limits of this moment."""
        in_force = budgets_in_force(conn, self._policy, self._read_at, self._stated_in)
        budgets = [pair for pair in in_force if pair[0].applies(**self._scope)]
        if all(isinstance(budget, DagBudget) for budget, _ in budgets):
            budgets = []  # a DAG's own budget lets no call through where the governing ones are gone
        now = [
            budget_period(budget, now=self._began, source=source, stated_in=self._stated_in(budget), **self._run)
            for budget, source in budgets
        ]
        known = {period.budget_id: period for period in now}
        if not self._periods:
            return known
        return {budget_id: known.get(budget_id, period) for budget_id, period in self._periods.items()}

    def _hold(self, conn: Connection, amounts: Sequence[int]) -> Grant:
        self._periods = self._periods_now(conn)
        periods = list(self._periods.values())
        now = self._journal.now()
        names: dict[str, Any] = {"hold_id": self.hold_id, "owner": self._owner, "task": self._task}
        return take_hold(conn, **names, periods=periods, amounts=amounts, now=now, extends=self._held)

    async def _take(self, amounts: list[int]) -> list[str | bool]:
        """For each amount: ``True`` if held, ``False`` to ask again, or the name of the exhausted budget."""
        self._taken = True
        async with self._line:
            if self._closed:
                return [False] * len(amounts)
            grant = await self._journal.run(self._once(lambda conn: self._hold(conn, amounts)))
            self._held |= grant.granted > 0
            self.limit_changes += grant.limit_changes
            answers = self._answers(grant, amounts)
            if not any(answers) and self._broken is None and not self._closed:
                await asyncio.sleep(_LOOK_AGAIN_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - spreads the looks
        return answers

    def _answers(self, grant: Grant, amounts: Sequence[int]) -> list[str | bool]:
        """After an outage no hold is renewed yet: until the other processes have, they count as alive."""
        possible = grant.ceiling if grant.live_holds or self._journal.just_back else grant.room
        refused = [grant.short_of if amount > possible else False for amount in amounts[grant.granted :]]
        return [True] * grant.granted + refused
