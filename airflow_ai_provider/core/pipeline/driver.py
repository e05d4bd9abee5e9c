"""Takes one row from step to step: acts, and leaves to ``transitions`` what follows.

prepared → routed → cached, or leased → held → admitted → sent → answered → accepted or rejected; any may end in failed.
"""

from __future__ import annotations

import asyncio
from typing import assert_never

from airflow_ai_provider.core.errors import DeploymentResting, DeploymentStopped, PrivacyError, PromptError
from airflow_ai_provider.core.ledger.attempts.attempts import Settled
from airflow_ai_provider.core.ledger.attempts.group_commit import Journal
from airflow_ai_provider.core.pipeline import transitions
from airflow_ai_provider.core.pipeline.attempt import Attempts, Row
from airflow_ai_provider.core.pipeline.audit_log import AuditLog
from airflow_ai_provider.core.pipeline.deployments import OpenDeployment
from airflow_ai_provider.core.pipeline.failure_limits import GivingUp
from airflow_ai_provider.core.pipeline.in_flight import in_time
from airflow_ai_provider.core.pipeline.leases import Leases
from airflow_ai_provider.core.pipeline.lookup import RowLookup
from airflow_ai_provider.core.pipeline.row import FINAL
from airflow_ai_provider.core.pipeline.settlement import Settlement
from airflow_ai_provider.core.pipeline.transitions import Rules


class Driver:
    """Drives the rows of one job, each in a task of its own, on one event loop."""

    def __init__(
        self,
        lookup: RowLookup[OpenDeployment],
        leases: Leases,
        attempts: Attempts,
        settlement: Settlement,
        rules: Rules,
        *,
        journal: Journal,
        audit_log: AuditLog,
        giving_up: GivingUp,
    ) -> None:
        self._lookup = lookup
        self._leases = leases
        self._attempts = attempts
        self._settlement = settlement
        self._rules = rules
        self._journal = journal
        self._audit_log = audit_log
        self._giving_up = giving_up

    async def drive(self, row: Row) -> None:
        """Take a row to a final step.

        Raises what stops the job: ``LedgerUnavailable``, ``LedgerError``, ``AuditError``, ``JobGivenUp``. Whatever
        happens, the row gives back its place in the queue and its lease; its hold ends with the batch.
        """
        try:
            while row.step not in FINAL:
                await self._step(row)
            await self._leave_tier(row)
        except BaseException as error:
            if row.hold is not None:
                row.hold.stop_waiting(error)
            raise
        finally:
            self._attempts.leave_queue(row)
            await self._leases.end(row)

    async def _step(self, row: Row) -> None:
        """Act as the row's step asks for, and move the row on."""
        try:
            match row.step:
                case "prepared":
                    await self._leave_tier(row)
                    self._lookup.route(row)
                case "routed":
                    await self._acquire(row)
                case "cached":
                    await self.record_reuse([row])
                case "leased":
                    await self._reserve(row)
                case "waiting":
                    await self._wait(row)
                case "held":
                    await self._admit(row)
                case "admitted":
                    await self._open(row)
                case "sent":
                    await self._send(row)
                case "answered":
                    await self._leave_tier(row)
                    self._lookup.judge(row)
                case "accepted" | "rejected" | "failed":
                    raise AssertionError("the row has come to its end")
                case _:
                    assert_never(row.step)
        except TimeoutError:
            transitions.timed_out(row)
        if row.failure is not None and row.failure.unanswered:
            self._raise_if_given_up(row)

    async def record_reuse(self, rows: list[Row]) -> None:
        """Write to the ledger, in one transaction, that rows were answered from the response store."""
        now = self._journal.now()
        settled: list[Settled] = [self._settlement.reused(row, now) for row in rows]
        await self._journal.settle(settled)
        for row, record in zip(rows, settled, strict=True):
            self._audit_log.reused(record.request.request_id, record.saved_nano)
            transitions.reuse_recorded(row)

    async def _acquire(self, row: Row) -> None:
        stored = await self._leases.acquire(row)
        if stored is not None:
            self._lookup.found(row, stored)
        else:
            transitions.leased(row, self._settlement.share(row), self._rules)

    async def _reserve(self, row: Row) -> None:
        assert row.hold is not None
        exhausted = await in_time(row.hold.reserve(row.share_nano), row.deadline)
        if exhausted is None:
            transitions.held(row)
        else:
            transitions.no_budget(row, exhausted, self._rules)

    async def _wait(self, row: Row) -> None:
        if row.new_round:
            self._attempts.leave_queue(row)
            await in_time(asyncio.sleep(row.pause), row.deadline)
        else:
            await row.deployment.gate.pause(row.pause)
        transitions.waited(row)

    async def _admit(self, row: Row) -> None:
        try:
            permit = await self._attempts.admit(row)
        except DeploymentResting as resting:
            transitions.turned_away(row, resting, self._rules)
        else:
            transitions.admitted(row, permit, asyncio.get_running_loop().time())

    async def _open(self, row: Row) -> None:
        try:
            attempt, messages = await self._attempts.open(row)
        except (DeploymentResting, DeploymentStopped) as reason:
            transitions.turned_away(row, reason, self._rules)
        except (PromptError, PrivacyError) as error:  # of its attachments
            transitions.unreadable(row, error)
        else:
            transitions.sent(row, attempt, messages)

    async def _send(self, row: Row) -> None:
        result = await self._attempts.send(row)
        if result.stored is not None:
            transitions.answered(row, result.stored, result.cost_nano)
            return
        assert result.error is not None
        transitions.failed(
            row,
            result.error,
            self._rules,
            asyncio.get_running_loop().time(),
            cost_nano=result.cost_nano,
            still_held=result.still_held,
            given_up=self._giving_up.given_up(row.deployment.name),
            may_retry=row.deployment.gate.may_retry,
        )

    async def _leave_tier(self, row: Row) -> None:
        """Give back what the row holds for asking a tier, once it does not ask it any more."""
        if row.held:
            assert row.hold is not None
            row.held = False
            await row.hold.give_back(row.share_nano)
        if row.lease is not None:
            await self._leases.end(row)

    def _raise_if_given_up(self, row: Row) -> None:
        assert row.routed is not None
        if (given_up := self._giving_up.job_error(row.routed.deployments)) is not None:
            raise given_up
