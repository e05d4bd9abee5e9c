"""The steps of a row: which follows from which outcome. No loop, no clock, no vendor."""

from __future__ import annotations

import random
from collections import Counter
from decimal import Decimal
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ai_provider.core.cache import Stored
from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt
from airflow_ai_provider.core.pipeline import transitions
from airflow_ai_provider.core.pipeline.deployments import PricedDeployment
from airflow_ai_provider.core.pipeline.prepare import RowRequest
from airflow_ai_provider.core.pipeline.row import FINAL, RoutedRequest, RowState
from airflow_ai_provider.core.pipeline.transitions import Rules
from airflow_ai_provider.core.policy import Deployment, Route, Tier
from airflow_ai_provider.core.routing.router import Needs, Terms
from airflow_ai_provider.errors import (
    DeploymentGivenUp,
    DeploymentResting,
    DeploymentStopped,
    ParameterRefused,
    PromptError,
    RoutingError,
    VendorError,
    VendorPermanentError,
    VendorTransientError,
)

Row = RowState[PricedDeployment]

SHARE = 100
TIERS: dict[Tier, list[str]] = {"simple": ["small", "other"], "complex": ["large"]}
MAX_TOKENS: dict[Tier, int] = {"simple": 50, "complex": 100}
PERMIT = cast("Any", object())
ATTEMPT = cast("OpenAttempt", object())


def rules(*, seed: int = 0, **changes: Any) -> Rules:
    plain = {"tiers": TIERS, "masking": "off", "retry": {"attempts": 3, "wait": 0.5, "max_wait": 2}}
    plain["escalate"] = {"to": "complex", "on": ["schema", "truncated", "filtered"]}
    return Rules(Route.model_validate({**plain, **changes}), MAX_TOKENS, random.Random(seed))


def deployment(name: str) -> PricedDeployment:
    terms = Terms(50, None, {})
    return PricedDeployment(
        name, Deployment(model=f"openai/{name}", timeout=10), cast("Any", None), cast("Any", None), terms
    )


def request(tier: Tier = "simple") -> RowRequest:
    return RowRequest("k", tier, [], "", 0, None, Needs(0), "default", {}, None)


def prepared(tier: Tier = "simple") -> Row:
    return RowState(request(tier), "r", tier)


def route_to(row: Row, *names: str) -> None:
    found = [deployment(name) for name in names or TIERS[row.tier]]
    transitions.routed(row, RoutedRequest(row.request, found, [b"k"] * len(found)))


def leased(by: Rules, *names: str, batch_deadline: float | None = None) -> Row:
    row = prepared()
    row.batch_deadline = batch_deadline
    route_to(row, *names)
    transitions.leased(row, SHARE, by)
    return row


def send(row: Row, now: float = 0.0) -> None:
    """From where a request is wanted to where it is out."""
    if row.step == "waiting":
        transitions.waited(row)
    if row.step == "leased":
        transitions.held(row)
    transitions.admitted(row, PERMIT, now)
    transitions.sent(row, ATTEMPT, ())


def fail(row: Row, error: VendorError, by: Rules, now: float = 0.0, **changes: Any) -> None:
    cost = SHARE if error.billed else 0
    plain: dict[str, Any] = {"cost_nano": cost, "still_held": not error.billed, "given_up": False}
    transitions.failed(row, error, by, now, **{**plain, "may_retry": lambda: True, **changes})


def stored(deployment: str = "small", cost: int = 7) -> Stored:
    return Stored("text", deployment, "stop", 1, 1, cost, "run", 0)


def transient(kind: str = "server_error", status: int | None = 500, *, billed: bool = False) -> VendorTransientError:
    return VendorTransientError("x", kind=kind, http_status=status, billed=billed)


# -- the usual way


def test_a_row_is_answered_in_nine_steps() -> None:
    by, row = rules(), prepared()
    steps = [row.step]

    def note() -> None:
        steps.append(row.step)

    route_to(row)
    note()
    transitions.leased(row, SHARE, by)
    note()
    transitions.held(row)
    note()
    transitions.admitted(row, PERMIT, 0.0)
    note()
    transitions.sent(row, ATTEMPT, ())
    note()
    transitions.answered(row, stored(), 7)
    note()
    transitions.judged(row, None, by)
    note()
    assert steps == ["prepared", "routed", "leased", "held", "admitted", "sent", "answered", "accepted"]
    assert (row.held, row.permit, row.attempt, row.spent_nano) == (False, None, None, 7)


def test_a_stored_answer_costs_nothing() -> None:
    by, row = rules(), prepared()
    route_to(row)
    transitions.found(row, stored(), deployment("small"))
    transitions.reuse_recorded(row)
    transitions.judged(row, None, by)
    assert row.step == "accepted"
    assert row.answered is not None
    assert row.answered.reused
    assert row.spent_nano == 0


def test_nothing_is_sent_without_a_hold_and_a_permit() -> None:
    by = rules()
    row = leased(by)
    with pytest.raises(AssertionError):
        transitions.sent(row, ATTEMPT, ())
    with pytest.raises(AssertionError):
        transitions.admitted(row, PERMIT, 0.0)
    transitions.held(row)
    with pytest.raises(AssertionError):
        transitions.sent(row, ATTEMPT, ())


def test_a_row_at_its_end_moves_no_more() -> None:
    row = prepared()
    transitions.unroutable(row, RoutingError("x", reason="images"), deployment("small"))
    assert row.failure is not None
    assert row.failure.error == "images: x"
    with pytest.raises(AssertionError):
        route_to(row)


# -- failures


def test_a_hold_that_was_used_up_is_taken_anew() -> None:
    by = rules()
    row = leased(by, "small")
    send(row)
    fail(row, transient(billed=True), by)
    assert (row.step, row.held) == ("waiting", False)
    transitions.waited(row)
    assert row.step == "leased"


def test_a_hold_that_cost_nothing_serves_the_next_attempt() -> None:
    by = rules()
    row = leased(by, "small")
    send(row)
    fail(row, transient(), by)
    transitions.waited(row)
    assert (row.step, row.held) == ("held", True)


@pytest.mark.parametrize(
    ("reason", "kind", "over"),
    [
        (DeploymentResting("x"), "circuit_open", False),
        (DeploymentGivenUp("x"), "given_up", True),
        (DeploymentStopped("x"), "deployment_stopped", True),
    ],
)
def test_the_next_deployment_is_asked_instead_and_the_ledger_will_say_so(
    reason: DeploymentResting | DeploymentStopped, kind: str, over: bool
) -> None:
    by = rules()
    row = leased(by)
    transitions.held(row)
    transitions.turned_away(row, reason, by)
    assert (row.step, row.deployment.name) == ("held", "other")
    assert row.passed_over is not None
    assert (row.passed_over.deployment, row.passed_over.reason) == ("small", kind)
    assert row.is_over("small") is over


def test_while_all_rest_a_row_waits_until_its_patience_is_over() -> None:
    by = rules()
    row = leased(by)
    transitions.held(row)
    waited = 0.0
    while row.step not in FINAL:
        transitions.turned_away(row, DeploymentResting("x"), by)
        if row.step == "waiting":
            assert row.new_round
            waited += row.pause
            transitions.waited(row)
            assert (row.deployment.name, row.passed_over) == ("small", None)
    assert 60 <= waited <= 61.5
    assert row.failure is not None
    assert (row.failure.error, row.failure.unanswered) == ("circuit_open: x", True)


def test_a_parameter_that_is_left_out_uses_no_attempt() -> None:
    by = rules()
    row = leased(by, "small")
    send(row)
    fail(row, ParameterRefused("x", kind="bad_request"), by)
    assert (row.step, row.tries) == ("held", {("simple", "small"): row.tries_of("small")})
    assert row.tries_of("small").requests == 0


def test_a_refusal_of_the_row_is_final_unless_the_deployment_is_given_up() -> None:
    by = rules()
    for given_up in (False, True):
        row = leased(by)
        send(row)
        fail(row, VendorPermanentError("x", kind="bad_request"), by, given_up=given_up)
        assert row.step == ("held" if given_up else "failed")
    assert row.deployment.name == "other"


def test_without_a_retry_budget_the_next_deployment_is_asked_and_the_last_one_again() -> None:
    by = rules()
    row = leased(by)
    send(row)
    fail(row, transient(), by, may_retry=lambda: False)
    assert row.deployment.name == "other"
    send(row)
    fail(row, transient(), by, may_retry=lambda: False)
    assert (row.step, row.deployment.name) == ("waiting", "other")


def test_a_row_that_comes_back_to_a_tier_has_no_new_attempts() -> None:
    """Asked in the upper tier, over budget there, answered badly below, and asked above once more."""
    by = rules(over_budget="cheaper", retry={"attempts": 2, "wait": 0, "max_wait": 0})
    row = prepared("complex")
    route_to(row)
    transitions.leased(row, SHARE, by)
    send(row)
    fail(row, transient(billed=True), by)
    transitions.waited(row)
    transitions.no_budget(row, "b", by)
    assert (row.step, row.tier) == ("prepared", "simple")
    route_to(row)
    transitions.leased(row, SHARE, by)
    send(row)
    transitions.answered(row, stored(), 7)
    transitions.judged(row, "schema: x", by)
    assert (row.step, row.tier) == ("prepared", "complex")
    route_to(row)
    transitions.leased(row, SHARE, by)
    send(row)
    fail(row, transient(billed=True), by)
    assert row.step == "failed"
    assert row.spent_nano == 2 * SHARE + 7


def test_a_row_that_comes_back_to_a_tier_without_attempts_left_says_what_failed_there() -> None:
    by = rules(over_budget="cheaper")
    row = prepared("complex")
    route_to(row)
    transitions.leased(row, SHARE, by)
    row.tries_of("large").over = True
    row.last_failure = "server_error: x"
    transitions.no_budget(row, "b", by)
    route_to(row)
    transitions.found(row, stored(), deployment("small"))
    transitions.reuse_recorded(row)
    transitions.judged(row, "schema: x", by)
    route_to(row)
    transitions.leased(row, SHARE, by)
    assert row.failure is not None
    assert (row.failure.error, row.failure.unanswered) == ("server_error: x", True)


# -- budgets, checks


def test_a_row_over_budget_goes_one_tier_down_where_the_route_says_so() -> None:
    for over_budget, step in (("stop", "failed"), ("wait", "failed"), ("cheaper", "prepared")):
        by, row = rules(over_budget=over_budget), prepared("complex")
        route_to(row)
        transitions.leased(row, SHARE, by)
        transitions.no_budget(row, "team", by)
        assert row.step == step
    assert row.tier == "simple"


def test_an_escalated_row_over_budget_does_not_go_down_again() -> None:
    by = rules(over_budget="cheaper")
    row = leased(by)
    send(row)
    transitions.answered(row, stored(), 7)
    transitions.judged(row, "schema: x", by)
    route_to(row)
    transitions.leased(row, SHARE, by)
    transitions.no_budget(row, "team", by)
    assert row.failure is not None
    assert (row.failure.status, row.failure.short_nano) == ("over_budget", SHARE)


@pytest.mark.parametrize(
    ("problem", "tier", "step"),
    [
        ("schema: x", "simple", "prepared"),
        ("schema: x", "complex", "rejected"),
        ("truncated: x", "simple", "prepared"),
        ("filtered: x", "simple", "prepared"),
        ("refused: x", "simple", "rejected"),  # the route does not name it
        (None, "simple", "accepted"),
    ],
)
def test_a_rejected_answer_goes_one_tier_up_once(problem: str | None, tier: Tier, step: str) -> None:
    by, row = rules(), prepared(tier)
    route_to(row)
    transitions.found(row, stored(), deployment("small"))
    transitions.reuse_recorded(row)
    transitions.judged(row, problem, by)
    assert row.step == step
    assert row.other_than == ("openai/small" if problem == "filtered: x" else None)


def test_without_another_model_the_answer_stays_rejected() -> None:
    by, row = rules(), prepared()
    route_to(row)
    transitions.found(row, stored(), deployment("small"))
    transitions.reuse_recorded(row)
    transitions.judged(row, "filtered: x", by)
    transitions.no_other_model(row)
    assert (row.step, row.problem) == ("rejected", "filtered: x")
    assert row.answered is not None
    assert row.answered.tier == "simple"


# -- deadlines


def test_a_rows_time_starts_with_its_first_request() -> None:
    by = rules(deadline={"row": 5, "batch": 100})
    row = leased(by, batch_deadline=100.0)
    transitions.held(row)
    assert row.deadline == 100
    transitions.admitted(row, PERMIT, 10.0)
    assert row.deadline == 15
    transitions.turned_away(row, DeploymentResting("x"), by)
    assert row.deadline == 100  # nothing was sent
    transitions.admitted(row, PERMIT, 20.0)
    transitions.sent(row, ATTEMPT, ())
    fail(row, transient(), by, now=21.0)
    transitions.waited(row)
    transitions.admitted(row, PERMIT, 22.0)
    assert row.deadline == 25


def test_no_retry_waits_until_after_the_deadline() -> None:
    by = rules(deadline={"row": 5})
    row = leased(by, "small")
    send(row, now=0.0)
    fail(row, VendorTransientError("x", kind="server_error", retry_after=6.0), by, now=0.0)
    assert row.step == "failed"


def test_each_tier_has_the_rows_time_anew() -> None:
    by = rules(deadline={"row": 5, "batch": 100})
    row = leased(by, batch_deadline=100.0)
    send(row, now=10.0)
    transitions.answered(row, stored(), 7)
    transitions.judged(row, "schema: x", by)
    route_to(row)
    transitions.leased(row, SHARE, by)
    assert (row.deadline, row.row_seconds) == (100, 5)


@pytest.mark.parametrize("step", ["routed", "leased", "held", "admitted", "waiting"])
def test_a_row_whose_time_is_over_says_what_it_waited_for(step: str) -> None:
    by = rules()
    row = prepared()
    route_to(row)
    if step != "routed":
        transitions.leased(row, SHARE, by)
    if step in ("held", "admitted"):
        transitions.held(row)
    if step == "admitted":
        transitions.admitted(row, PERMIT, 0.0)
    if step == "waiting":
        send(row)
        fail(row, transient(), by)
    transitions.timed_out(row)
    assert row.failure is not None
    assert row.failure.error.startswith("deadline: ")
    assert row.failure.unanswered is (step != "routed")


# -- any way at all

ERRORS = st.sampled_from(
    [
        transient(),
        transient(billed=True),
        transient("rate_limited", 429),
        transient("rate_limited", 429, billed=True),
        transient("timeout", None, billed=True),
        transient("timeout", 504, billed=True),
        transient("connection_refused", None),
        VendorPermanentError("x", kind="bad_request"),
        VendorPermanentError("x", kind="unauthorized", http_status=401),
        ParameterRefused("x", kind="bad_request"),
    ]
)
PROBLEMS = st.sampled_from([None, "schema: x", "truncated: x", "filtered: x", "refused: x", "grounding: x"])
DOWN = [DeploymentResting("x"), DeploymentGivenUp("x"), DeploymentStopped("x")]


class Life:
    """A row that meets one outcome after the other, and the books of what it sent."""

    def __init__(self, data: st.DataObject, by: Rules) -> None:
        self.data, self.by = data, by
        self.row = prepared(data.draw(st.sampled_from(["simple", "complex"])))
        self.row.batch_deadline = data.draw(st.sampled_from([None, 50.0]))
        self.now = self.cost = 0.0
        self.parameters = 2
        self.requests: Counter[tuple[str, str]] = Counter()
        """Those that count, by tier and deployment."""
        self.timeouts: Counter[tuple[str, str]] = Counter()

    def live(self) -> None:
        for _ in range(3_000):
            if self.row.step in FINAL:
                return
            getattr(self, self.row.step)()
        raise AssertionError("the row comes to no end")

    def one_of(self, *outcomes: str) -> str:
        return self.data.draw(st.sampled_from(outcomes))

    def prepared(self) -> None:
        names = TIERS[self.row.tier]
        match self.one_of("routed", "routed", "routed", "unroutable", "no other"):
            case "unroutable":
                transitions.unroutable(self.row, RoutingError("x", reason="images"), deployment(names[0]))
            case "no other" if self.row.other_than is not None:
                transitions.no_other_model(self.row)
            case _:
                route_to(self.row, *names[: self.data.draw(st.integers(1, len(names)))])

    def routed(self) -> None:
        match self.one_of("leased", "leased", "found", "late"):
            case "found":
                transitions.found(self.row, stored(), deployment("small"))
            case "late":
                transitions.timed_out(self.row)
            case _:
                transitions.leased(self.row, SHARE, self.by)

    def cached(self) -> None:
        transitions.reuse_recorded(self.row)

    def leased(self) -> None:
        assert not self.row.held
        match self.one_of("held", "held", "held", "held", "short", "late"):
            case "short":
                transitions.no_budget(self.row, "team", self.by)
            case "late":
                transitions.timed_out(self.row)
            case _:
                transitions.held(self.row)

    def waiting(self) -> None:
        assert self.row.pause >= 0
        self.now += self.row.pause
        transitions.waited(self.row)

    def held(self) -> None:
        outcome = self.data.draw(st.sampled_from([None, None, None, *DOWN[:2]]))
        if outcome is None:
            transitions.admitted(self.row, PERMIT, self.now)
        else:
            transitions.turned_away(self.row, outcome, self.by)

    def admitted(self) -> None:
        match self.one_of("sent", "sent", "sent", "sent", "down", "unreadable", "late"):
            case "down":
                transitions.turned_away(self.row, self.data.draw(st.sampled_from(DOWN)), self.by)
            case "unreadable":
                transitions.unreadable(self.row, PromptError("x"))
            case "late":
                transitions.timed_out(self.row)
            case _:
                transitions.sent(self.row, ATTEMPT, ())

    def sent(self) -> None:
        row, place = self.row, (self.row.tier, self.row.deployment.name)
        assert row.held
        assert row.permit is PERMIT
        self.now += 0.1
        if self.one_of("failed", "failed", "failed", "answered") == "answered":
            self.requests[place] += 1
            self.cost += 7
            transitions.answered(row, stored(place[1]), 7)
            return
        error = self.data.draw(ERRORS)
        if isinstance(error, ParameterRefused):
            self.parameters -= 1
            if self.parameters < 0:  # the adapter leaves a parameter out once
                error = transient()
        if not isinstance(error, ParameterRefused) and (error.billed or error.http_status != 429):
            self.requests[place] += 1
        self.timeouts[place] += error.kind == "timeout"
        self.cost += SHARE if error.billed else 0
        fail(row, error, self.by, self.now, may_retry=lambda: self.data.draw(st.booleans()))

    def answered(self) -> None:
        transitions.judged(self.row, self.data.draw(PROBLEMS), self.by)


@settings(max_examples=400, deadline=None)
@given(
    data=st.data(),
    attempts=st.integers(1, 4),
    over_budget=st.sampled_from(["stop", "cheaper", "wait"]),
    deadline=st.sampled_from([None, 3, 1_000]),
    to=st.sampled_from([None, "complex"]),
    seed=st.integers(0, 99),
)
def test_whatever_happens_a_row_ends_within_its_attempts_and_sends_nothing_without_a_hold(
    data: st.DataObject, attempts: int, over_budget: str, deadline: int | None, to: str | None, seed: int
) -> None:
    by = rules(
        seed=seed,
        retry={"attempts": attempts, "wait": 0.5, "max_wait": 2},
        over_budget=over_budget,
        deadline={"row": deadline},
        escalate={"to": to, "on": ["schema", "truncated", "filtered", "refused", "grounding"]},
    )
    life = Life(data, by)
    life.live()
    row = life.row
    assert max(life.requests.values(), default=0) <= attempts
    assert max(life.timeouts.values(), default=0) <= 2
    assert row.spent_nano == life.cost
    assert (row.permit, row.messages) == (None, ())
    assert (row.failure is None) == (row.step != "failed")
    assert row.step == "failed" or row.answered is not None
    assert Decimal(row.spent_nano) <= SHARE * sum(life.requests.values())
