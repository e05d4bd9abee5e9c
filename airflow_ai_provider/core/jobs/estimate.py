"""What calls will cost, from what is asked and from what such calls were like. Pure arithmetic; nothing is read.

Two figures that must not be mixed up. *Expected* learns from the task's history and may be off. *Worst* may not: for
each row, the attempts that ``retry`` allows at every deployment of every tier it can come to, each charged what the row
holds for it, and no row spared because another asks the same. It is of one try of the task; ``retry.decide`` keeps it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from airflow_ai_provider.core.errors import RoutingError
from airflow_ai_provider.core.ledger.budgets.availability import Room
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.ledger.reports.call_history import CallHistory
from airflow_ai_provider.core.pipeline.deployments import PricedDeployment
from airflow_ai_provider.core.policy import TIERS, Deployment, Route, Tier
from airflow_ai_provider.core.prompts.text import ASCII_BYTES_PER_TOKEN, OTHER_BYTES_PER_TOKEN
from airflow_ai_provider.core.routing.router import Needs, Router

ESCALATED = Fraction(1, 10)
"""Share of answers taken to be asked again in the higher tier while no figure is known."""
LATENCY_MS = 2000
"""A call's time while none is known; a short answer of a hosted model takes one to three seconds."""
LEAST_CALLS = 20
"""History of fewer calls is an anecdote."""
WRITTEN_PER_SECOND = 30
"""Output tokens a second of a hosted model, assumed without history; most write 30 to 100."""
LEAST_OUTPUT = 100
"""Answers of fewer tokens on average tell how long a first token takes, not how fast the others follow."""
PRIOR_CALLS = 2
"""What the cold-start rule still weighs beside history, in calls: a little at first, nothing for long."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One row's request, by what it costs to ask."""

    needs: Needs
    schema: int
    """Bytes that the answer's schema adds."""
    tokens: int
    """Input tokens by the rule of thumb."""
    messages: int
    row_key: str = ""


AskOf = Callable[[Tier], Ask]
"""A row's request as a tier asks it."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What one call at a deployment is expected to be like."""

    calls: int
    """Answered calls it was learnt from; 0 is the rule of thumb."""
    tokens_per_byte: Fraction | None
    """Input tokens per byte of prompt; ``None`` takes the rule of thumb for each row."""
    output_tokens: Fraction
    cached: Fraction
    """Share of the input that the vendor reads from its cache; ``cache_write`` is what it writes there."""
    cache_write: Fraction
    lost: Fraction
    """Attempts without an answer that count as spent, per answer."""
    latency_ms: int

    @property
    def basis(self) -> str:
        """Where the figures come from, in words."""
        rule = f"{ASCII_BYTES_PER_TOKEN} bytes a token ({OTHER_BYTES_PER_TOKEN} outside ASCII)"
        if not self.calls:
            return f"no history: {rule}, half of max_tokens"
        return f"history of {self.calls:,} calls" + ("" if self.tokens_per_byte is not None else f", {rule}")


@dataclass(frozen=True, slots=True)
class DeploymentFigures:
    """What one deployment is expected to do in one tier. Money in nano-dollars."""

    tier: str
    deployment: str
    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    expected_nano: int
    worst_nano: int
    seconds: float
    """At its limits: requests, tokens, and calls at once."""
    basis: str


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """What a budget would have left. Money in nano-dollars; below 0 is what would be missing."""

    budget: str
    period: str
    limit_nano: int
    left_nano: int
    """Now, what is held by others counted as gone."""
    after_expected_nano: int
    after_worst_nano: int
    rows_over: int
    """About how many rows would be ``over_budget``."""


def expectation(history: Sequence[CallHistory], deployment: str, model: str, max_tokens: int) -> Expectation:
    """What a deployment's calls are expected to be like; the rule of thumb counts as ``PRIOR_CALLS`` more calls."""
    found = [past for past in history if (past.deployment, past.model) == (deployment, model)]

    def total(name: str) -> int:
        return sum(getattr(past, name) for past in found)

    calls, half = total("answered"), Fraction(max_tokens, 2)
    if calls < LEAST_CALLS:
        latency = 0 if model.startswith("offline/") else LATENCY_MS
        return Expectation(0, None, half, Fraction(0), Fraction(0), Fraction(0), latency)
    tokens, size, ratio = total("prompt_tokens"), total("prompt_bytes"), None
    if size:
        prior = Fraction(size, calls) * PRIOR_CALLS
        ratio = (tokens + prior / ASCII_BYTES_PER_TOKEN) / (size + prior)
    read = max(total("input_tokens"), 1)
    return Expectation(
        calls=calls,
        tokens_per_byte=ratio,
        output_tokens=min((total("output_tokens") + PRIOR_CALLS * half) / (calls + PRIOR_CALLS), Fraction(max_tokens)),
        cached=Fraction(total("cached_tokens"), read),
        cache_write=Fraction(total("cache_write_tokens"), read),
        lost=Fraction(total("unknown"), calls + PRIOR_CALLS),
        latency_ms=total("latency_ms") // calls,
    )


def slow_answers(offer: PricedDeployment, tier: Tier, history: Sequence[CallHistory]) -> str | None:
    """What to change where ``max_tokens`` take longer than the time-out, at the speed of earlier calls.

    A row whose answer gets as long times out, is charged, and times out again.
    """
    place = (offer.name, offer.deployment.model)
    found = [past for past in history if (past.deployment, past.model) == place]
    calls, tokens = sum(past.answered for past in found), sum(past.output_tokens for past in found)
    milliseconds = sum(past.latency_ms for past in found)
    if calls >= LEAST_CALLS and tokens >= LEAST_OUTPUT * calls and milliseconds:
        speed, basis = Fraction(1000 * tokens, milliseconds), f"as in {calls:,} earlier calls"
    elif offer.deployment.provider == "offline":
        return None
    else:
        speed, basis = Fraction(WRITTEN_PER_SECOND), "as most models do"
    seconds, timeout = math.ceil(offer.terms.max_tokens / speed), offer.deployment.timeout
    if seconds <= timeout:
        return None
    return (
        f"{offer.name} may write {offer.terms.max_tokens:,} tokens in tier {tier}, which takes {seconds:,} s at "
        f"{float(speed):.0f} a second ({basis}), and its timeout is {timeout:,} s: "
        f"raise deployments.{offer.name}.timeout or lower max_tokens"
    )


class Forecast:
    """Adds up what a job's rows will ask of its route."""

    def __init__(
        self,
        route: Route,
        tiers: Mapping[Tier, Sequence[PricedDeployment]],
        history: Sequence[CallHistory],
        router: Router,
    ) -> None:
        self._route = route
        self._tiers = tiers
        self._history = history
        self._router = router
        self._offers = {(tier, offer.name): offer for tier, found in tiers.items() for offer in found}
        self._expected = {
            place: expectation(history, offer.name, offer.deployment.model, offer.terms.max_tokens)
            for place, offer in self._offers.items()
        }
        self._flows: dict[tuple[Tier, Tier | None, tuple[str, ...]], _Flow] = {}
        self._worst: dict[tuple[Tier, str], int] = defaultdict(int)
        self.worst_attempts = 0
        """The most requests that can be charged."""

    def higher(self, tier: Tier) -> Tier | None:
        """The tier that asks again what a check rejected, where there is one."""
        upper = self._route.escalate.to
        return upper if upper is not None and TIERS.index(upper) > TIERS.index(tier) else None

    def call(self, tier: Tier, ask: AskOf, *, equal: bool = False) -> int:
        """A row that no stored answer serves. ``equal`` says that another row asks the same, and is expected to be
        answered first.

        Returns the most that the row may hold at once, in nano-dollars. Raises ``RoutingError`` where no deployment of
        the tier can take it.
        """
        share = self._charge(tier, ask)
        upper = self.higher(tier)
        second = self._charge_if_possible(upper, ask) if upper is not None else None
        if self._route.over_budget == "cheaper":
            self._charge_below(tier, ask, asked_again=upper is not None)
        if not equal:
            self._flow(tier, None, ask, share)
            if upper is not None and second is not None:
                self._flow(upper, tier, ask, second)
        return max(share, second or 0)

    @property
    def worst_nano(self) -> int:
        return sum(self._worst.values())

    def figures(self) -> list[DeploymentFigures]:
        """One line per tier and deployment that may be asked."""
        sums: dict[tuple[Tier, str], _Sums] = defaultdict(_Sums)
        for (tier, came_from, _), flow in self._flows.items():
            chance = self._escalated(came_from) if came_from is not None else Fraction(1)
            for offer, weight in zip(flow.offers, self._weights(tier, flow.offers), strict=True):
                sums[tier, offer.name].add(flow.lanes[offer.name], chance * weight)
        return [
            self._line(tier, offer, sums[tier, name], self._worst[tier, name])
            for (tier, name), offer in self._offers.items()
            if self._worst[tier, name] or sums[tier, name].calls
        ]

    def slow(self) -> list[str]:
        """A sentence for each deployment that can hardly write as much as it may within its time-out."""
        return [
            warning
            for (tier, name), offer in self._offers.items()
            if self._worst[tier, name] and (warning := slow_answers(offer, tier, self._history))
        ]

    def _fitting(self, tier: Tier, ask: Ask) -> list[PricedDeployment]:
        """The deployments that may be asked, in order. Raises ``RoutingError`` where there are none."""
        return [self._offers[tier, name] for name in self._router.order(tier, ask.needs, ask.row_key)]

    def _charge(self, tier: Tier, ask_of: AskOf) -> int:
        """Count the worst of a row in a tier; returns what each of its attempts holds. Raises ``RoutingError``."""
        ask = ask_of(tier)
        fitting = self._fitting(tier, ask)
        share = max(offer.bound(ask.needs, schema=ask.schema, messages=ask.messages) for offer in fitting)
        for offer in fitting:
            self._worst[tier, offer.name] += share * self._route.retry.attempts
        self.worst_attempts += len(fitting) * self._route.retry.attempts
        return share

    def _charge_if_possible(self, tier: Tier, ask: AskOf) -> int | None:
        try:
            return self._charge(tier, ask)
        except RoutingError:
            return None

    def _charge_below(self, tier: Tier, ask: AskOf, *, asked_again: bool) -> None:
        """Count the worst of the cheaper tiers that a row may fall to in the middle of its attempts."""
        below = self._route.tier_below(tier)
        while below is not None:
            self._charge_if_possible(below, ask)
            if not asked_again and (upper := self.higher(below)) is not None:
                asked_again = self._charge_if_possible(upper, ask) is not None
            below = self._route.tier_below(below)

    def _flow(self, tier: Tier, came_from: Tier | None, ask_of: AskOf, share: int) -> None:
        ask = ask_of(tier)
        fitting = self._fitting(tier, ask)
        place = (tier, came_from, tuple(offer.name for offer in fitting))
        if place not in self._flows:
            self._flows[place] = _Flow(fitting, {offer.name: self._expected[tier, offer.name] for offer in fitting})
        self._flows[place].add(ask, share)

    def _weights(self, tier: Tier, offers: Sequence[PricedDeployment]) -> list[Fraction]:
        """Which share of a tier's answers each deployment gives: the first all of them, but for what history says.

        Of a trial, history tells how its weights shared the rows, and not who answered for whom.
        """
        if any(not isinstance(place, str) for place in self._route.tiers[tier]):
            return [Fraction(not position) for position in range(len(offers))]
        answered = [
            sum(past.answered for past in self._history if (past.tier, past.deployment) == (tier, offer.name))
            for offer in offers
        ]
        answered[0] += PRIOR_CALLS
        if sum(answered) < LEAST_CALLS:
            return [Fraction(not position) for position in range(len(offers))]
        return [Fraction(count, sum(answered)) for count in answered]

    def _escalated(self, tier: Tier) -> Fraction:
        """Which share of a tier's answers is asked again in the higher one."""
        past = [past for past in self._history if past.tier == tier]
        answered, went_up = sum(p.answered for p in past), sum(p.went_up for p in past)
        if answered < LEAST_CALLS:
            return ESCALATED
        return (went_up + PRIOR_CALLS * ESCALATED) / (answered + PRIOR_CALLS)

    def _line(self, tier: Tier, offer: PricedDeployment, sums: _Sums, worst: int) -> DeploymentFigures:
        expected = self._expected[tier, offer.name]
        return DeploymentFigures(
            tier=tier,
            deployment=offer.name,
            model=offer.deployment.model,
            calls=round(sums.calls),
            input_tokens=round(sums.input_tokens),
            output_tokens=round(sums.output_tokens),
            expected_nano=math.ceil(sums.cost_nano + sums.held_nano * expected.lost),
            worst_nano=worst,
            seconds=_seconds(offer.deployment, expected, sums),
            basis=expected.basis,
        )


def budget_line(room: Room, *, calls: int, holds_nano: int, expected_nano: int, worst_nano: int) -> BudgetLine:
    """What a budget would have left, and how many of ``calls`` it would not let through.

    A call goes through as long as its hold fits beside what those before it have spent.
    """
    free, over = room.free_nano, 0
    if calls and worst_nano > free:
        spare = free - holds_nano // calls
        let_through = 0 if spare < 0 else calls if not expected_nano else 1 + spare * calls // expected_nano
        over = max(0, calls - let_through)
    return BudgetLine(
        budget=room.name,
        period=room.period_start,
        limit_nano=room.limit_nano,
        left_nano=free,
        after_expected_nano=free - expected_nano,
        after_worst_nano=free - worst_nano,
        rows_over=over,
    )


class _Even:
    """Shares out a growing sum in whole units: what was handed out is never more than one unit away from the sum.

    Rounding each row's tokens by itself would lose or win half a token a row, which is much of a short answer.
    """

    __slots__ = ("_down", "_given", "_total", "_up")

    def __init__(self, ratio: Fraction) -> None:
        self._up, self._down = ratio.numerator, ratio.denominator
        self._total = self._given = 0

    def next(self, amount: int) -> int:
        self._total += amount
        whole = self._total * self._up // self._down
        taken, self._given = whole - self._given, whole
        return taken


class _LaneSum:
    """What all of a flow's rows would cost at one deployment."""

    __slots__ = (
        "_cached",
        "_input",
        "_offer",
        "_output",
        "_seconds",
        "_written",
        "calls",
        "cost",
        "held",
        "input",
        "output",
    )

    def __init__(self, offer: PricedDeployment, expected: Expectation) -> None:
        self._offer = offer
        self._input = _Even(expected.tokens_per_byte) if expected.tokens_per_byte is not None else None
        self._output = _Even(expected.output_tokens)
        self._seconds = Decimal(expected.latency_ms) / 1000
        self._cached, self._written = _Even(expected.cached), _Even(expected.cache_write)
        self.calls = self.input = self.output = self.cost = self.held = 0

    def add(self, ask: Ask, share: int) -> None:
        tokens = self._input.next(ask.needs.size + ask.schema) if self._input else ask.tokens
        cached = min(self._cached.next(tokens), tokens)
        written = min(self._written.next(tokens), tokens - cached)
        usage = Usage(tokens, self._output.next(1), cached, written)
        self.calls += 1
        self.input += usage.input
        self.output += usage.output
        self.cost += self._offer.facts.rate.cost(usage, seconds=self._seconds)
        self.held += share


class _Flow:
    """Rows that take the same way: into one tier, from one other or from the start, past the same deployments."""

    def __init__(self, offers: Sequence[PricedDeployment], expected: Mapping[str, Expectation]) -> None:
        self.offers = offers
        self.lanes = {offer.name: _LaneSum(offer, expected[offer.name]) for offer in offers}

    def add(self, ask: Ask, share: int) -> None:
        for lane in self.lanes.values():
            lane.add(ask, share)


@dataclass(slots=True)
class _Sums:
    """Expected figures of one deployment in one tier."""

    calls: Fraction = field(default_factory=Fraction)
    input_tokens: Fraction = field(default_factory=Fraction)
    output_tokens: Fraction = field(default_factory=Fraction)
    cost_nano: Fraction = field(default_factory=Fraction)
    held_nano: Fraction = field(default_factory=Fraction)

    def add(self, lane: _LaneSum, weight: Fraction) -> None:
        self.calls += lane.calls * weight
        self.input_tokens += lane.input * weight
        self.output_tokens += lane.output * weight
        self.cost_nano += lane.cost * weight
        self.held_nano += lane.held * weight


def _seconds(deployment: Deployment, expected: Expectation, sums: _Sums) -> float:
    """The longest of what each limit of a deployment takes."""
    attempts = float(sums.calls * (1 + expected.lost))
    times = [attempts * expected.latency_ms / 1000 / deployment.concurrency]
    if deployment.requests_per_minute:
        times.append(attempts * 60 / deployment.requests_per_minute)
    if deployment.tpm:
        times.append(float(sums.input_tokens + sums.output_tokens) * 60 / deployment.tpm)
    return max(times)
