"""The one path: prepare → reuse? → hold → pace → call → settle → check → restore.

A batch walks it together as far as it can: its rows are prepared, looked up and, where the response store has their
answers, written to the ledger at once. Each row that is left walks on as one coroutine; what these ask of the store,
the budgets and the ledger travels in groups.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from airflow_ai_provider.errors import JobStopped, PrivacyError, PromptError, RoutingError
from airflow_ai_provider.gateway.answer import Answer, RowStatus
from airflow_ai_provider.gateway.attempting import Ask, Attempts, Plan, in_time
from airflow_ai_provider.gateway.calling import Calls, Reply, Way
from airflow_ai_provider.gateway.checks import AnswerChecks
from airflow_ai_provider.gateway.escalation import upper_tier, wants_another_model
from airflow_ai_provider.gateway.funds import BatchFunds
from airflow_ai_provider.gateway.giving_up import GivingUp
from airflow_ai_provider.gateway.identity import attempt_id, request_id, reuse_scope
from airflow_ai_provider.gateway.job import Row
from airflow_ai_provider.gateway.lanes import Lanes, answer_keys
from airflow_ai_provider.gateway.prepare import Prepared, Preparer
from airflow_ai_provider.gateway.recorder import Recorder
from airflow_ai_provider.gateway.reuse import ResponseStore, Stored
from airflow_ai_provider.gateway.reviews import Reviews
from airflow_ai_provider.gateway.routing import Router
from airflow_ai_provider.gateway.stopping import Walks
from airflow_ai_provider.ledger.attempts import Settled
from airflow_ai_provider.ledger.journal import Journal
from airflow_ai_provider.ledger.limits import LimitChange
from airflow_ai_provider.ledger.money import Usage
from airflow_ai_provider.ledger.notices import Notice
from airflow_ai_provider.policy import Tier

_NOTHING_USED = Usage(0, 0)


class Gateway:
    """Answers batches of rows for one job. For one event loop."""

    def __init__(
        self,
        plan: Plan,
        *,
        preparer: Preparer,
        router: Router,
        lanes: Lanes,
        checks: AnswerChecks,
        store: ResponseStore,
        journal: Journal,
        recorder: Recorder,
        reviews: Reviews,
        giving_up: GivingUp,
        on_notice: Callable[[Notice], None] = lambda _: None,
    ) -> None:
        self._plan = plan
        self._preparer = preparer
        self._router = router
        self._lanes = {tier: {lane.name: lane for lane in found} for tier, found in lanes.items()}
        self._by_name = {lane.name: lane for tier in lanes.values() for lane in tier}
        self._max_tokens = {tier: found[0].terms.max_tokens for tier, found in lanes.items()}
        self._checks = checks
        self._store = store
        self._journal = journal
        self._recorder = recorder
        self._reviews = reviews
        self._on_notice = on_notice
        self._line = asyncio.Lock()
        self._in_flight: dict[bytes, asyncio.Future[Stored | None]] = {}
        self._walks = Walks()
        self._giving_up = giving_up
        self._attempts = Attempts(plan, lanes, store, journal, recorder, self._walks, giving_up)
        self._calls = Calls(plan, self._attempts, lanes, giving_up)
        reuse = plan.route.reuse
        self._ttl = reuse.ttl if reuse.scope != "off" else 0
        self._shared_scope = None if plan.route.shares_nothing else reuse_scope(plan.route, plan.team, plan.caller, "")

    async def stop(self, grace_seconds: float) -> None:
        """Send nothing more; what is out may come back for so long, and is unknown after it. ``answer`` then raises
        ``JobStopped``."""
        await self._walks.stop(grace_seconds)

    def had_good_rows(self) -> None:
        """Take note that an earlier try of the job had rows that are ``ok``."""
        self._giving_up.had_good_rows()

    async def finish(self) -> None:
        """Write what waited for the end of a job that was not given up."""
        await self._reviews.finish()
        await self._recorder.flush()

    async def answer(self, rows: Sequence[Row], row_keys: Sequence[str]) -> list[Answer]:
        """Answers in the order of the rows. A bad row is an answer with status ``error``.

        Raises ``LedgerUnavailable``, ``LedgerError`` or ``AuditError`` where no call may be made at all, and
        ``JobStopped`` after ``stop``; every call that was under way then is finished and settled first.
        """
        await self._recorder.batch_started(len(rows))
        answers: list[Answer | None] = [None] * len(rows)
        asks: dict[int, Ask] = {}
        prepared = await self._preparer.prepare_many(rows, row_keys)
        for index, (key, made) in enumerate(zip(row_keys, prepared, strict=True)):
            name = request_id(self._plan.caller, key, self._plan.route_name)
            if isinstance(made, Prepared):
                asks[index] = Ask(made, name)
            else:
                answers[index] = _refused(made, name)
        ways = {index: way for index, ask in asks.items() if isinstance(way := self._way(ask, ask.prepared.tier), Way)}
        found = await self._look_up(asks, ways)
        left: dict[int, tuple[Ask, Way | None, Reply | None]] = {}
        for index, ask in asks.items():
            reply = found.get(index)
            problem = self._problem(ask, reply) if reply else None
            if reply is None or self._upper(reply, problem):
                left[index] = ask, ways.get(index), reply
            else:
                answers[index] = self._answer(ask, reply, problem, 0)
        if left:
            walked = await self._walk_all(list(left.values()))
            answers = [answer if answer is not None else walked.pop(0) for answer in answers]
        done = [answer for answer in answers if answer is not None]
        await self._reviews.settle(done, row_keys)
        self._recorder.batch_reused()
        await self._recorder.flush()
        return done

    # -- what the response store has

    async def _look_up(self, asks: Mapping[int, Ask], ways: Mapping[int, Way]) -> dict[int, Reply]:
        """Rows of a batch that were answered before: found in one look-up, written to the ledger in one go."""
        found: dict[int, Stored] = {}
        for place in range(max((len(way.keys) for way in ways.values()), default=0)):  # the preferred one's first
            keys = ((index, way.keys) for index, way in ways.items() if index not in found)
            wanted = {index: row[place] for index, row in keys if place < len(row)}
            found |= await self._find(wanted)
        replies = {index: self._found(asks[index].prepared.tier, stored) for index, stored in found.items()}
        await self._settle_reused([(asks[index], reply) for index, reply in replies.items()])
        return replies

    async def _find(self, wanted: Mapping[int, bytes]) -> dict[int, Stored]:
        if not wanted:
            return {}
        found = await self._store.find_many(list(wanted.values()), run=self._plan.run, ttl=self._ttl)
        return {index: stored for index, stored in zip(wanted, found, strict=True) if stored is not None}

    def _found(self, tier: Tier, stored: Stored) -> Reply:
        lane = self._lanes[tier].get(stored.deployment) or self._by_name.get(stored.deployment)
        return Reply(stored, tier, lane or next(iter(self._lanes[tier].values())), reused=True)

    async def _settle_reused(self, replies: Sequence[tuple[Ask, Reply]]) -> None:
        now = self._journal.now()
        settled = []
        for ask, reply in replies:
            assert reply.stored is not None
            saved = reply.stored.cost_nano
            request = self._attempts.request(ask, reply.tier, reply.lane)
            settled.append(Settled(attempt_id(now), now, request, "reused", _NOTHING_USED, saved_nano=saved))
        await self._journal.settle(settled)
        for row in settled:
            self._recorder.reused(row.request.request_id, row.saved_nano)

    def _way(self, ask: Ask, tier: Tier) -> Way | Reply:
        """How a tier asks for a row; or why it cannot."""
        try:
            return self._found_way(ask, tier)
        except (RoutingError, PrivacyError) as error:
            kind = error.reason if isinstance(error, RoutingError) else "privacy"
            lane = next(iter(self._lanes[tier].values()))
            return Reply(None, tier, lane, failure=f"{kind}: {error}", status="error", permanent=True)

    def _found_way(self, ask: Ask, tier: Tier) -> Way:
        prepared = ask.prepared.at(tier)
        order = self._router.order(tier, prepared.needs, prepared.row_key)
        lanes = [self._lanes[tier][name] for name in order]
        scope = self._shared_scope
        if scope is None:
            scope = reuse_scope(self._plan.route, self._plan.team, self._plan.caller, prepared.row_key)
        keys = answer_keys(lanes, self._router.stands_for(tier, order), scope, prepared.messages)
        return Way(replace(ask, prepared=prepared) if prepared is not ask.prepared else ask, tier, lanes, keys)

    # -- rows on their own

    async def _walk_all(self, asks: Sequence[tuple[Ask, Way | None, Reply | None]]) -> list[Answer]:
        funds = BatchFunds(
            self._journal,
            owner=self._plan.owner,
            task=self._plan.task,
            budgets=self._plan.budgets,
            read_at=self._plan.read_at,
            stated_in=self._plan.stated_in,
            caller=self._plan.caller,
            route=self._plan.route_name,
            line=self._line,
        )
        limit = self._plan.route.deadline.batch
        deadline = None if limit is None else asyncio.get_running_loop().time() + limit
        try:
            walks = (self._walks.run(self._walk(ask, way, reply, funds, deadline)) for ask, way, reply in asks)
            outcomes = await asyncio.gather(*walks, return_exceptions=True)
        finally:
            notices = await asyncio.shield(funds.close())
            self._tell(funds.limit_changes, notices)
        if broken := [outcome for outcome in outcomes if isinstance(outcome, BaseException)]:
            await self._recorder.flush()
            raise next((error for error in broken if not isinstance(error, JobStopped)), broken[0])
        return [outcome for outcome in outcomes if isinstance(outcome, Answer)]

    def _tell(self, changes: Sequence[LimitChange], notices: Sequence[Notice]) -> None:
        for change in changes:
            self._recorder.limit_changed(change)
        for notice in notices:
            self._recorder.threshold_crossed(notice)
            self._on_notice(notice)

    async def _walk(
        self, ask: Ask, way: Way | None, found: Reply | None, funds: BatchFunds, deadline: float | None
    ) -> Answer:
        """One row: the answer of its tier and, where a check rejects that, of the tier to which the route escalates."""
        reply = found or await self._affordable(ask, way, funds, deadline)
        problem = self._problem(ask, reply)
        spent = reply.cost_nano
        if (upper := self._upper(reply, problem)) and (higher := self._way_up(ask, upper, reply, problem)):
            reply = await self._reply(higher, funds, deadline)
            spent += reply.cost_nano
            problem = self._problem(ask, reply)
        return self._answer(ask, reply, problem, spent)

    def _upper(self, reply: Reply, problem: str | None) -> Tier | None:
        """The tier that is asked as well, because of a problem with this reply."""
        return upper_tier(problem, self._plan.route, reply.tier, self._max_tokens)

    def _way_up(self, ask: Ask, upper: Tier, reply: Reply, problem: str | None) -> Way | Reply | None:
        """How the upper tier asks for a row; ``None`` where it has only the model that filtered or refused it."""
        way = self._way(ask, upper)
        if not isinstance(way, Way) or not problem or not wants_another_model(problem):
            return way
        refused_by = reply.lane.deployment.model
        others = [pair for pair in zip(way.lanes, way.keys, strict=True) if pair[0].deployment.model != refused_by]
        return replace(way, lanes=[lane for lane, _ in others], keys=[key for _, key in others]) if others else None

    async def _affordable(self, ask: Ask, way: Way | None, funds: BatchFunds, deadline: float | None) -> Reply:
        """The answer of the row's tier or, where that has no room and the route says so, of the next cheaper one."""
        tier: Tier | None = ask.prepared.tier
        spent = 0
        while True:
            assert tier is not None
            reply = await self._reply(way or self._way(ask, tier), funds, deadline)
            spent += reply.cost_nano
            below = self._plan.route.tier_below(tier)
            if reply.status != "over_budget" or self._plan.route.over_budget != "cheaper" or below is None:
                return replace(reply, cost_nano=spent)
            tier, way = below, None

    async def _reply(self, way: Way | Reply, funds: BatchFunds, deadline: float | None) -> Reply:
        """A tier's answer: of whoever asks the same, in this process or another, from the store, or by a call."""
        if isinstance(way, Reply):
            return way
        key = way.keys[0]
        while (asked := self._in_flight.get(key)) is not None:
            try:
                stored = await in_time(asyncio.shield(asked), deadline)
            except TimeoutError:
                return _late(way)
            if stored is not None:
                return await self._reused(way, stored)
        mine = self._in_flight[key] = asyncio.get_running_loop().create_future()
        answer: Stored | None = None
        try:
            if self._shared_scope is None:
                answer = await self._store.find(way.keys, run=self._plan.run, ttl=self._ttl)
            else:
                try:
                    answer = await in_time(self._of_another(key), deadline)
                except TimeoutError:
                    return _late(way)
            if answer is not None:
                return await self._reused(way, answer)
            reply = await self._asked(way, funds, deadline)
            answer = reply.stored
            return reply
        except BaseException as error:
            funds.stop_waiting(error)
            raise
        finally:
            del self._in_flight[key]
            mine.set_result(answer)

    async def _of_another(self, key: bytes) -> Stored | None:
        """What another process has answered, or is about to; ``None`` once it is for this one to ask."""
        while not await self._store.claim(key, run=self._plan.run, ttl=self._ttl):
            stored = await self._store.answer_of_another(key, run=self._plan.run, ttl=self._ttl)
            if stored is not None:
                return stored
        return None

    async def _asked(self, way: Way, funds: BatchFunds, deadline: float | None) -> Reply:
        """The answer of a deployment; or what one that is fallen back to has answered. Frees what was claimed."""
        freed = self._shared_scope is None
        try:
            if not freed and way.keys[1:]:
                stored = await self._store.find(way.keys[1:], run=self._plan.run, ttl=self._ttl)
                if stored is not None:
                    return await self._reused(way, stored)
            reply = await self._calls.reply(way, funds, deadline)
            freed |= reply.stored is not None and reply.lane is way.lanes[0]  # kept under the very key
            return reply
        finally:
            if not freed:
                await asyncio.shield(self._store.release(way.keys[0]))

    async def _reused(self, way: Way, stored: Stored) -> Reply:
        reply = self._found(way.tier, stored)
        await self._settle_reused([(way.ask, reply)])
        return reply

    # -- what a row gets

    def _problem(self, ask: Ask, reply: Reply) -> str | None:
        return self._checks.verdict(reply.stored, ask.prepared, reply.tier) if reply.stored else None

    def _answer(self, ask: Ask, reply: Reply, problem: str | None, spent: int) -> Answer:
        stored, status, error, text = reply.stored, reply.status, reply.failure, None
        if stored is not None:
            status, error = _status(problem)
            try:
                text = ask.prepared.restored(self._checks.content(stored))
            except PrivacyError as failure:
                status, error = "error", f"privacy: {failure}"
        answer = Answer(
            status,
            ask.name,
            text=text,
            error=error,
            permanent=reply.permanent or (status == "error" and stored is not None),  # it cannot be restored
            tier=reply.tier,
            deployment=reply.lane.name,
            model=reply.lane.deployment.model,
            reused=reply.reused,
            usage=_usage(stored) if stored and not reply.reused else None,
            cost_nano=spent,
            saved_nano=stored.cost_nano if stored and reply.reused else 0,
            short_nano=reply.short_nano,
        )
        if stored is not None or reply.refused:
            self._giving_up.row(answer)
        return answer


def _late(way: Way) -> Reply:
    failure = "deadline: the same request was still waiting for its answer elsewhere"
    return Reply(None, way.tier, way.lanes[0], failure=failure, status="error")


def _refused(error: PromptError | PrivacyError, name: str) -> Answer:
    kind = "prompt" if isinstance(error, PromptError) else "privacy"
    return Answer("error", name, error=f"{kind}: {error}", permanent=True)


def _usage(stored: Stored) -> Usage:
    return Usage(stored.input_tokens, stored.output_tokens, stored.cached_input_tokens)


def _status(problem: str | None) -> tuple[RowStatus, str | None]:
    return ("rejected", problem) if problem else ("ok", None)
