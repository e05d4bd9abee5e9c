"""The one path of a batch: prepare → look up → drive each row that is left → answers.

What rows ask of response store, budgets and ledger travels in groups: a batch's look-up and its reused rows here, holds
and settlements of the rows that are driven in their own batchers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from airflow_ai_provider.core.cache import ResponseStore
from airflow_ai_provider.core.checks.answer_checks import AnswerChecks
from airflow_ai_provider.core.errors import JobStopped
from airflow_ai_provider.core.identity import request_id
from airflow_ai_provider.core.job import Row as SourceRow
from airflow_ai_provider.core.ledger.attempts.group_commit import Journal
from airflow_ai_provider.core.ledger.budgets.thresholds import Notice
from airflow_ai_provider.core.pipeline.answer import Answer, answer_of, refused_answer
from airflow_ai_provider.core.pipeline.attempt import Attempts, Row
from airflow_ai_provider.core.pipeline.audit_log import AuditLog
from airflow_ai_provider.core.pipeline.budget_hold import BudgetHold
from airflow_ai_provider.core.pipeline.deployments import OpenTiers
from airflow_ai_provider.core.pipeline.driver import Driver
from airflow_ai_provider.core.pipeline.failure_limits import GivingUp
from airflow_ai_provider.core.pipeline.in_flight import InFlight
from airflow_ai_provider.core.pipeline.job_context import CacheScope, JobContext
from airflow_ai_provider.core.pipeline.leases import Leases
from airflow_ai_provider.core.pipeline.lookup import RowLookup
from airflow_ai_provider.core.pipeline.prepare import Preparer, RowRequest
from airflow_ai_provider.core.pipeline.review_queue import Reviews
from airflow_ai_provider.core.pipeline.row import FINAL, RowState
from airflow_ai_provider.core.pipeline.settlement import Settlement
from airflow_ai_provider.core.pipeline.transitions import Rules
from airflow_ai_provider.core.routing.router import Router


class Pipeline:
    """Answers batches of rows for one job. For one event loop."""

    def __init__(
        self,
        context: JobContext,
        *,
        preparer: Preparer,
        router: Router,
        tiers: OpenTiers,
        checks: AnswerChecks,
        store: ResponseStore,
        journal: Journal,
        audit_log: AuditLog,
        reviews: Reviews,
        giving_up: GivingUp,
        on_notice: Callable[[Notice], None] = lambda _: None,
    ) -> None:
        self._context = context
        self._preparer = preparer
        self._checks = checks
        self._journal = journal
        self._audit_log = audit_log
        self._reviews = reviews
        self._giving_up = giving_up
        self._on_notice = on_notice
        self._line = asyncio.Lock()
        self._in_flight = in_flight = InFlight()
        limits = {tier: found[0].terms.max_tokens for tier, found in tiers.items()}
        rules = Rules(context.route, limits, random.Random())  # noqa: S311 - spreads retries, keeps no secret
        scope = CacheScope(context.route, context.team, context.caller)
        settlement = Settlement(context, tiers)
        self._lookup = lookup = RowLookup(tiers, router, store, scope, checks, rules)
        self._driver = Driver(
            lookup,
            Leases(store, scope),
            Attempts(context, tiers, settlement, store, journal, audit_log, in_flight, giving_up),
            settlement,
            rules,
            journal=journal,
            audit_log=audit_log,
            giving_up=giving_up,
        )

    async def stop(self, grace_seconds: float) -> None:
        """Send nothing more, and wait so long for requests that are out. ``answer`` then raises ``JobStopped``."""
        await self._in_flight.stop(grace_seconds)

    def had_good_rows(self) -> None:
        """Note that an earlier try of the job had rows that are ``ok``."""
        self._giving_up.had_good_rows()

    async def finish(self) -> None:
        """Write what waited for the end of a job that was not given up."""
        await self._reviews.finish()
        await self._audit_log.flush()

    async def answer(self, rows: Sequence[SourceRow], row_keys: Sequence[str]) -> list[Answer]:
        """Answer a batch, in the order of its rows. A bad row is an answer with status ``error``.

        Raises ``LedgerUnavailable``, ``LedgerError`` or ``AuditError`` if no call may be made at all, ``JobGivenUp`` if
        none would help, and ``JobStopped`` after ``stop``; every call under way is finished and settled first.
        """
        await self._audit_log.batch_started(len(rows))
        answers: list[Answer | None] = [None] * len(rows)
        states: dict[int, Row] = {}
        prepared = await self._preparer.prepare_many(rows, row_keys)
        for index, (key, made) in enumerate(zip(row_keys, prepared, strict=True)):
            name = request_id(self._context.caller, key, self._context.route_name)
            if isinstance(made, RowRequest):
                states[index] = RowState(made, name, made.tier)
            else:
                answers[index] = refused_answer(made, name)
        await self._look_up(list(states.values()))
        for index, row in states.items():
            if row.step in FINAL:
                answers[index] = self._answer(row)
        left = {index: row for index, row in states.items() if answers[index] is None}
        if left:
            for index, answer in zip(left, await self._drive_all(list(left.values())), strict=True):
                answers[index] = answer
        done = [answer for answer in answers if answer is not None]
        await self._reviews.settle(done, row_keys)
        self._audit_log.batch_reused()
        await self._audit_log.flush()
        return done

    async def _look_up(self, rows: Sequence[Row]) -> None:
        """Route all rows, find their stored answers in one look-up, and write the reused ones in one transaction."""
        lookup = self._lookup
        for row in rows:
            lookup.route(row)
        await lookup.find([row for row in rows if row.step == "routed"])
        reused = [row for row in rows if row.step == "cached"]
        if reused:
            await self._driver.record_reuse(reused)
        for row in reused:
            lookup.judge(row)

    async def _drive_all(self, rows: Sequence[Row]) -> list[Answer]:
        """Drive rows side by side, on one hold. If any raises, the others end first."""
        context = self._context
        hold = BudgetHold(
            self._journal,
            owner=context.owner,
            task=context.task,
            budgets=context.budgets,
            read_at=context.read_at,
            stated_in=context.stated_in,
            caller=context.caller,
            route=context.route_name,
            line=self._line,
        )
        limit = context.route.deadline.batch
        deadline = None if limit is None else asyncio.get_running_loop().time() + limit
        try:
            driven = (self._in_flight.run(self._drive(row, hold, deadline)) for row in rows)
            outcomes = await asyncio.gather(*driven, return_exceptions=True)
        finally:
            notices = await asyncio.shield(hold.close())
            self._tell(hold, notices)
        if broken := [outcome for outcome in outcomes if isinstance(outcome, BaseException)]:
            await self._audit_log.flush()
            raise next((error for error in broken if not isinstance(error, JobStopped)), broken[0])
        return [outcome for outcome in outcomes if isinstance(outcome, Answer)]

    async def _drive(self, row: Row, hold: BudgetHold, deadline: float | None) -> Answer:
        row.hold = hold
        row.deadline = row.batch_deadline = deadline
        await self._driver.drive(row)
        return self._answer(row)

    def _answer(self, row: Row) -> Answer:
        answer = answer_of(row, self._checks)
        if row.failure is None or row.failure.refused:
            self._giving_up.row(answer)
        return answer

    def _tell(self, hold: BudgetHold, notices: Sequence[Notice]) -> None:
        for change in hold.limit_changes:
            self._audit_log.limit_changed(change)
        for notice in notices:
            self._audit_log.threshold_crossed(notice)
            self._on_notice(notice)
