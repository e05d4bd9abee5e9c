"""What a job would cost, before a cent is spent: the way of every row up to its call, and no call.

Rows are read, rendered and masked as the gateway would, and looked up in the response store, a rejected answer's
escalation included. Nothing is written: no row of the ledger, no event, no keyring and no store that is not there yet.
Memory grows by eight bytes a row that needs a call, which is what it takes to know a second one that asks the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import nlargest

import numpy as np

from airflow_ai_provider.core.cache import ResponseStore
from airflow_ai_provider.core.errors import PrivacyError, PromptError
from airflow_ai_provider.core.identity import token_scope
from airflow_ai_provider.core.installation import Installation, opened
from airflow_ai_provider.core.job import Caller, MapJob
from airflow_ai_provider.core.jobs.estimate import (
    Ask,
    BudgetLine,
    DeploymentFigures,
    Forecast,
    budget_line,
)
from airflow_ai_provider.core.jobs.plan_warnings import warnings_of
from airflow_ai_provider.core.jobs.runner import Batch, BatchJob, Runner
from airflow_ai_provider.core.jobs.tally import Tally
from airflow_ai_provider.core.jobs.validate import JobPlan, plan_job
from airflow_ai_provider.core.ledger.budgets.availability import Room, Scope, rooms
from airflow_ai_provider.core.ledger.budgets.limits import budgets_in_force
from airflow_ai_provider.core.ledger.reports.call_history import CallHistory, call_history
from airflow_ai_provider.core.pipeline import transitions
from airflow_ai_provider.core.pipeline.deployments import (
    PricedDeployment,
    batches_at_once,
    price_deployments,
    schema_bytes,
)
from airflow_ai_provider.core.pipeline.job_context import CacheScope
from airflow_ai_provider.core.pipeline.lookup import RowLookup
from airflow_ai_provider.core.pipeline.loop_thread import LoopThread
from airflow_ai_provider.core.pipeline.prepare import Preparer, RowRequest, open_masker
from airflow_ai_provider.core.pipeline.row import RowState
from airflow_ai_provider.core.pipeline.transitions import Rules
from airflow_ai_provider.core.policy import Tier
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.core.prompts.messages import tools_bytes
from airflow_ai_provider.core.prompts.text import ASCII_BYTES_PER_TOKEN, tokens_of
from airflow_ai_provider.core.routing.router import Router
from airflow_ai_provider.core.settings import Settings

Watch = Callable[[int, int], None]
"""Called with the rows looked at so far, and how many there are."""


@dataclass(frozen=True, slots=True)
class SpendPlan:
    """What a job would do and cost. Counts are rows, money is nano-dollars."""

    source_rows: int
    """Of the whole source, of which the job's shard has its share."""
    rows: int
    finished: int
    """In parts that an earlier try has written: they are left as they are."""
    stored: int
    """Answered from the response store."""
    equal: int
    """Expected to be answered by the call of an earlier row that asks the same."""
    routed: Mapping[str, int]
    """Rows by their first tier and what led them there, such as ``complex (rules:over_tokens)``."""
    refused: Mapping[str, int]
    """Rows that will get an error instead of a call, by kind."""
    calls: int
    """Rows that need a call."""
    figures: Sequence[DeploymentFigures]
    worst_nano: int
    """The most that one try of the task can cost."""
    worst_attempts: int
    """The most requests that can be charged in one try of the task."""
    holds_nano: int
    """Sum of what the rows with a call hold, each at its highest."""
    held_at_once_nano: int
    """The most that one process can hold at one moment."""
    seconds: float
    """At the policy's rates, one process at work."""
    rooms: Sequence[Room]
    warnings: Sequence[str]
    """What is likely to go wrong, a sentence each."""
    fingerprint: str
    """Names job, rows, policy and shard: two plans of one fingerprint are of the same work. 64 hex digits."""

    @property
    def expected_nano(self) -> int:
        return sum(line.expected_nano for line in self.figures)

    @property
    def input_tokens(self) -> int:
        return sum(line.input_tokens for line in self.figures)

    @property
    def output_tokens(self) -> int:
        return sum(line.output_tokens for line in self.figures)

    @property
    def budgets(self) -> list[BudgetLine]:
        return budget_lines([self])

    @property
    def fits(self) -> bool:
        """Whether every budget is expected to let every row through."""
        return not any(line.rows_over for line in self.budgets)


def budget_lines(plans: Sequence[SpendPlan]) -> list[BudgetLine]:
    """What each budget would have left when all these plans are carried out."""
    charged: dict[tuple[str, str], list[SpendPlan]] = {}
    found: dict[tuple[str, str], Room] = {}
    for plan in plans:
        for room in plan.rooms:
            found[room.name, room.period_start] = room
            charged.setdefault((room.name, room.period_start), []).append(plan)
    return [
        budget_line(
            found[budget],
            calls=sum(plan.calls for plan in together),
            holds_nano=sum(plan.holds_nano for plan in together),
            expected_nano=sum(plan.expected_nano for plan in together),
            worst_nano=sum(plan.worst_nano for plan in together),
        )
        for budget, together in charged.items()
    ]


def plan_spend(
    job: MapJob,
    caller: Caller,
    where: Settings | Installation,
    *,
    defaults: Mapping[str, str] | None = None,
    watch: Watch | None = None,
) -> SpendPlan:
    """Plan a job's shard (the whole source, unless the job says otherwise); blocks until done.

    ``defaults`` stand for columns that the source does not have yet. A job whose sink is empty is planned as if nothing
    were written. Raises what running the job would raise before its first call.
    """
    scope = Scope(job.team, caller.dag_id, caller.run_id, job.route)
    with opened(where) as installation:
        policy, ledger = installation.policy.policy, installation.ledger
        with ledger.read() as conn:
            now = ledger.now()
            in_force = [budget for budget, _ in budgets_in_force(conn, policy.budgets)]
            history = call_history(conn, dag_id=caller.dag_id, task_id=caller.task_id, now=now)
            budgets = rooms(conn, policy.budgets, scope, now)
        keyring = installation.existing_keyring()
        plan = plan_job(job, caller, installation, in_force, defaults=defaults)
        look = _Look(job, caller, installation, plan, history, keyring)
        made: SpendPlan = LoopThread(partial(look.over_all, budgets, watch)).run()
        return made


class _Look(BatchJob):
    """One pass over a job's rows."""

    def __init__(
        self,
        job: MapJob,
        caller: Caller,
        installation: Installation,
        plan: JobPlan,
        history: Sequence[CallHistory],
        keyring: Keyring | None,
    ) -> None:
        self._job, self._caller, self._plan, self._installation = job, caller, plan, installation
        settings = installation.settings
        self._keyring = keyring
        masker = open_masker(
            plan.policy,
            plan.route,
            self._keyring or _passing_keyring(),
            team=job.team,
            scope=token_scope(plan.route, job.team, caller),
        )
        self._tiers: dict[Tier, tuple[PricedDeployment, ...]] = price_deployments(
            plan.policy,
            plan.route,
            settings,
            terms=plan.terms,
            output_schema=job.output_schema,
            prompt_version=plan.renderer.version,
            tools=job.tools,
            tool_choice=job.tool_choice,
        )
        self._router = Router(job.route, plan.route, self._tiers)
        self._preparer = Preparer(
            plan.renderer,
            plan.route,
            masker,
            self._router,
            plan.terms,
            json=job.output_schema is not None,
            tools=bool(job.tools),
            storage_options=settings.storage_options,
        )
        self._schema = schema_bytes(job.output_schema) + tools_bytes(job.tools)
        limits = {tier: found[0].terms.max_tokens for tier, found in self._tiers.items()}
        self._rules = Rules(plan.route, limits, random.Random(0))  # noqa: S311 - spreads retries, of which a plan has none
        self._forecast = Forecast(plan.route, self._tiers, history, self._router)
        self._asked = _Digests()
        self._counts: Counter[str] = Counter()
        self._finished = Tally()
        self._refused: Counter[str] = Counter()
        self._routed: Counter[str] = Counter()
        self._holds: list[int] = []
        """What each batch can hold at once."""

    async def over_all(self, budgets: Sequence[Room], watch: Watch | None, stop: asyncio.Event) -> SpendPlan:
        """Look at every row of the job's shard that no earlier try has finished."""
        job, plan = self._job, self._plan
        sink = self._installation.sink(job.sink, plan.fingerprint, job.shard) if job.sink else None
        store = self._open_store()
        scope = CacheScope(plan.route, job.team, self._caller)
        self._lookup = RowLookup(self._tiers, self._router, store, scope, plan.checks, self._rules)
        try:
            await Runner(plan.feed, self, self._finished, sink, seen=self._seen(watch)).run(stop)
        finally:
            if store is not None:
                await store.close()
        return self._made(budgets)

    def _seen(self, watch: Watch | None) -> Callable[[int], None]:
        return lambda rows: watch(rows, self._plan.inspection.rows) if watch is not None else None

    def _open_store(self) -> ResponseStore | None:
        """The response store, where there can be something in it."""
        if self._keyring is None or not self._installation.has_responses:
            return None
        return ResponseStore(self._installation.responses(), self._keyring)

    async def process(self, batch: Batch) -> None:
        """Take the rows as far as a run takes them without a call, a rejected answer's escalation included."""
        self._counts["rows"] += batch.rows.num_rows
        rows = [RowState[PricedDeployment](request, "", request.tier) for request in self._prepared(batch)]
        under_way = rows
        while under_way:
            for row in under_way:
                self._lookup.route(row)
            await self._lookup.find([row for row in under_way if row.step == "routed"])
            found = [row for row in under_way if row.step == "cached"]
            for row in found:
                transitions.reuse_recorded(row)  # nothing is: a plan has no row in the ledger
                self._lookup.judge(row)
            under_way = [row for row in found if row.step == "prepared"]
        for row in rows:
            if row.failure is not None:
                self._refused[row.failure.error.partition(":")[0]] += 1
        missing = [row for row in rows if row.step == "routed"]
        self._counts["stored"] += sum(row.answered is not None and row.step != "routed" for row in rows)
        self._count_calls(missing)

    def _prepared(self, batch: Batch) -> Iterator[RowRequest]:
        for row, key in zip(batch.rows.to_pylist(), batch.keys, strict=True):
            try:
                prepared = self._preparer.prepare(row, key)
                self._routed[f"{prepared.tier} ({prepared.routed_by})"] += 1
                yield prepared
            except PromptError:
                self._refused["prompt"] += 1
            except PrivacyError:
                self._refused["privacy"] += 1

    def _count_calls(self, missing: Sequence[RowState[PricedDeployment]]) -> None:
        held, keys = 0, [row.routed.keys[0] for row in missing if row.routed is not None]
        for row, new in zip(missing, self._asked.add(keys), strict=True):
            hold = self._forecast.call(row.tier, partial(self._ask, row.request), equal=not new)
            self._counts["calls" if new else "equal"] += 1
            self._counts["holds"] += hold if new else 0
            held += hold
        self._holds.append(held)

    def _ask(self, prepared: RowRequest, tier: Tier) -> Ask:
        asked = prepared.at(tier)
        return Ask(
            needs=asked.needs,
            schema=self._schema,
            tokens=tokens_of(asked.text, asked.size) + self._schema // ASCII_BYTES_PER_TOKEN,
            messages=len(asked.messages),
            row_key=asked.row_key,
        )

    def _made(self, budgets: Sequence[Room]) -> SpendPlan:
        figures, counts = self._forecast.figures(), self._counts
        at_once = batches_at_once(self._tiers, self._job.batch_rows)
        return SpendPlan(
            source_rows=self._plan.inspection.rows,
            rows=counts["rows"] + self._finished.rows,
            finished=self._finished.rows,
            stored=counts["stored"],
            equal=counts["equal"],
            routed=dict(self._routed),
            refused=dict(self._refused),
            calls=counts["calls"],
            figures=figures,
            worst_nano=self._forecast.worst_nano,
            worst_attempts=self._forecast.worst_attempts,
            holds_nano=counts["holds"],
            held_at_once_nano=sum(nlargest(at_once, self._holds)),
            seconds=_seconds(figures),
            rooms=budgets,
            warnings=[*self._forecast.slow(), *warnings_of(self._tiers)],
            fingerprint=hashlib.sha256(f"{self._plan.fingerprint} {self._job.shard}".encode()).hexdigest(),
        )


class _Digests:
    """A set of keys that only grows, at eight bytes each: sorted runs, merged when two are of one size.

    Two keys out of ten million are taken for one with a chance of 1 in 370,000 (the birthday bound for 64 bits).
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray[tuple[int], np.dtype[np.uint64]]] = []

    def add(self, keys: Sequence[bytes]) -> list[bool]:
        """For each key, whether it is there for the first time."""
        digests = np.frombuffer(b"".join(key[:8] for key in keys), dtype=np.uint64)
        unique, first = np.unique(digests, return_index=True)
        known = np.zeros(len(unique), dtype=bool)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, unique), len(run) - 1)
            known |= run[place] == unique
        new = np.zeros(len(digests), dtype=bool)
        new[first[~known]] = True
        self._grow(unique[~known])
        return [bool(one) for one in new]

    def _grow(self, run: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
        if not len(run):
            return
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort()
        self._runs.append(run)


def _seconds(figures: Sequence[DeploymentFigures]) -> float:
    """Of the slowest deployment: its tiers share its limits, and different deployments work side by side."""
    seconds: dict[str, float] = {}
    for line in figures:
        seconds[line.deployment] = seconds.get(line.deployment, 0.0) + line.seconds
    return max(seconds.values(), default=0.0)


def _passing_keyring() -> Keyring:
    """Keys of no other use than that tokens have their length."""
    return Keyring("plan", {"plan": secrets.token_bytes(32)})
