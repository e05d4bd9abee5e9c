"""What follows from what: one function for each outcome of an action, which moves a row to its next step.

No I/O, no clock and no randomness of their own: the time comes in as ``now``, the generator for jitter with ``Rules``.
Each function changes the row and nothing else, so that all of a row's ways can be tried without a loop. A move that is
not among ``row.STEPS`` raises ``AssertionError``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_ai_provider.core.cache import Stored
from airflow_ai_provider.core.errors import (
    DeploymentGivenUp,
    DeploymentResting,
    DeploymentStopped,
    ParameterRefused,
    PrivacyError,
    PromptError,
    RoutingError,
    VendorError,
)
from airflow_ai_provider.core.job import Message
from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt
from airflow_ai_provider.core.pipeline.answer import RowStatus, kind_of_error
from airflow_ai_provider.core.pipeline.retry import Again, decide, patience, uses_attempt
from airflow_ai_provider.core.pipeline.row import (
    STEPS,
    Answered,
    AnyRow,
    D,
    Failure,
    PassedOver,
    RoutedRequest,
    RowState,
    Step,
)
from airflow_ai_provider.core.policy import TIERS, Route, Tier
from airflow_ai_provider.core.ratelimit import Pass

_NOT_WHOLE = frozenset({"truncated", "filtered", "refused"})
_BY_THE_MODEL = frozenset({"filtered", "refused"})
"""Kinds of problems that another model may not have."""
_LOOK_AGAIN_SECONDS = 1.0
"""How often a row that no deployment takes checks whether a circuit has closed."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the transitions of a job's rows depend on."""

    route: Route
    max_tokens: Mapping[Tier, int]
    """Output limit of each tier."""
    rng: random.Random
    """Spreads retries."""


# -- routing


def routed(row: RowState[D], found: RoutedRequest[D]) -> None:
    """The tier has deployments that can take the row."""
    _move(row, "routed")
    row.routed = found
    row.deadline = row.batch_deadline


def unroutable(row: RowState[D], error: RoutingError | PrivacyError, deployment: D) -> None:
    """No deployment of the tier can take the row, or its prompt cannot be masked for the tier."""
    kind = error.reason if isinstance(error, RoutingError) else "privacy"
    _fail(row, f"{kind}: {error}", deployment, permanent=True)


def no_other_model(row: AnyRow) -> None:
    """The upper tier has only the model that filtered or refused the row: its answer stays rejected."""
    _move(row, "rejected")


# -- stored answers and leases


def found(row: RowState[D], stored: Stored, deployment: D) -> None:
    """A stored answer was found, by a look-up or from an equal row in this or another process."""
    _move(row, "cached")
    row.answered = Answered(stored, row.tier, deployment, reused=True)


def reuse_recorded(row: AnyRow) -> None:
    """The ledger has the row's reuse."""
    _move(row, "answered")


def leased(row: AnyRow, share_nano: int, rules: Rules) -> None:
    """This row is the one to ask a vendor. ``share_nano`` bounds the cost of one attempt, in nano-dollars."""
    position = _first_left(row, 0)
    if position is None:  # it comes back to a tier where it has had its attempts
        _fail_unanswered(row, row.last_failure)
        return
    _move(row, "leased")
    _ask(row, position)
    row.share_nano, row.passed_over = share_nano, None
    row.patience = patience(rules.route.retry)
    row.row_seconds = rules.route.deadline.row


# -- budgets


def held(row: AnyRow) -> None:
    """The row's share is held in the budgets."""
    _move(row, "held")
    row.held = True


def no_budget(row: AnyRow, budget: str, rules: Rules) -> None:
    """A budget is exhausted: the next cheaper tier is asked if the route says so."""
    below = rules.route.tier_below(row.tier)
    if rules.route.over_budget == "cheaper" and below is not None and not row.escalated:
        _move(row, "prepared")
        row.tier = below
        return
    error = f"over_budget: no room left in budget {budget}"
    _fail(row, error, row.deployment, status="over_budget", short_nano=row.share_nano)


# -- one request


def admitted(row: AnyRow, permit: Pass, now: float) -> None:
    """The rate limiter lets one request through. With the first one in a tier the row's time budget starts."""
    _move(row, "admitted")
    row.permit = permit
    if row.row_seconds is not None:
        row.deadline = min(now + row.row_seconds, row.batch_deadline or math.inf)


def turned_away(row: AnyRow, reason: DeploymentGivenUp | DeploymentResting | DeploymentStopped, rules: Rules) -> None:
    """The deployment takes no request now, or none of this job any more."""
    _not_sent(row)
    match reason:
        case DeploymentGivenUp():
            kind = "given_up"
        case DeploymentResting():
            kind = "circuit_open"
        case DeploymentStopped():
            kind = "deployment_stopped"
    if kind != "circuit_open":
        row.tries_of(row.deployment.name).over = True
    _pass_over(row, kind, f"{kind}: {reason}", rules)


def unreadable(row: AnyRow, error: PromptError | PrivacyError) -> None:
    """An attachment cannot be read, or has changed."""
    _not_sent(row)
    _fail(row, f"{kind_of_error(error)}: {error}", row.deployment, permanent=True)


def sent(row: AnyRow, attempt: OpenAttempt, messages: Sequence[Message]) -> None:
    """The attempt is durable in the ledger, and the request may leave."""
    assert row.held
    assert row.permit is not None
    _move(row, "sent")
    row.attempt, row.messages = attempt, messages
    row.row_seconds = None


def answered(row: AnyRow, stored: Stored, cost_nano: int) -> None:
    """The vendor answered; the answer is in the response store, and settled."""
    _came_back(row, cost_nano, still_held=False)
    row.answered = Answered(stored, row.tier, row.deployment, reused=False)
    _move(row, "answered")


def failed(
    row: AnyRow,
    error: VendorError,
    rules: Rules,
    now: float,
    *,
    cost_nano: int,
    still_held: bool,
    given_up: bool,
    may_retry: Callable[[], bool],
) -> None:
    """The attempt failed. Its share of the hold serves the next one if ``still_held``.

    ``given_up`` says whether the job has given the deployment up; ``may_retry`` takes one retry out of the
    deployment's retry budget if there is one, and is called only for a retry.
    """
    _came_back(row, cost_nano, still_held=still_held)
    if isinstance(error, ParameterRefused):  # once per parameter, and without a charge
        _move(row, _next_step(row))
        return
    asked, last = row.deployment, row.on_last_deployment
    tries = row.tries_of(asked.name)
    tries.count(error)
    seconds_left = None if row.deadline is None else row.deadline - now
    decision = decide(
        error,
        tries,
        retry=rules.route.retry,
        deployment=asked.deployment,
        rng=rules.rng,
        patience=row.patience,
        last=last,
        seconds_left=seconds_left,
        # Last deployment of the tier: the retry budget does not apply, only the circuit breaker.
        may_retry=_always if last else may_retry,
    )
    text = _failure(error, asked.name, seconds_left)
    if decision == "give up" and not given_up:
        _fail(row, text, asked, permanent=True, refused=True)
    elif isinstance(decision, Again):
        row.last_failure = text
        if not uses_attempt(error):
            row.patience -= decision.seconds
        _wait(row, decision.seconds, new_round=False)
    else:
        tries.over = decision != "later"
        _pass_over(row, error.kind, text, rules)


def waited(row: AnyRow) -> None:
    """The pause is over."""
    _move(row, _next_step(row))


def timed_out(row: AnyRow) -> None:
    """The deadline came while the row waited."""
    if row.step == "routed":
        assert row.routed is not None
        error = "deadline: the same request was still waiting for its answer elsewhere"
        _fail(row, error, row.routed.deployments[0])
        return
    _not_sent(row)
    _fail_unanswered(row, f"deadline: no answer in the time that the route allows; before that: {row.last_failure}")


# -- checks


def judged(row: AnyRow, problem: str | None, rules: Rules) -> None:
    """The answer was checked; ``problem`` is why it is rejected, as ``check: reason``."""
    row.problem = problem
    if problem is None:
        _move(row, "accepted")
        return
    upper = upper_tier(problem, rules.route, row.tier, rules.max_tokens)
    if upper is None:
        _move(row, "rejected")
        return
    assert row.answered is not None
    _move(row, "prepared")
    row.tier, row.escalated = upper, True
    row.other_than = row.answered.deployment.model if kind_of(problem) in _BY_THE_MODEL else None


def upper_tier(problem: str, route: Route, tier: Tier, max_tokens: Mapping[Tier, int]) -> Tier | None:
    """Return the tier to ask because of a problem with an answer of ``tier``; ``None`` if it stays rejected.

    An answer that is not whole is asked for again only if the route's ``escalate.on`` names its kind, and one that was
    cut only in a tier with a larger limit (``max_tokens`` by tier).
    """
    upper = route.escalate.to
    if upper is None or TIERS.index(upper) <= TIERS.index(tier):
        return None
    kind = kind_of(problem)
    if kind in _NOT_WHOLE and kind not in route.escalate.on:
        return None
    if kind == "truncated" and max_tokens[upper] <= max_tokens[tier]:
        return None
    return upper


def kind_of(problem: str) -> str:
    """Return the kind of a problem that is given as ``kind: reason``."""
    return problem.partition(":")[0]


# -- moves


def _move(row: AnyRow, step: Step) -> None:
    assert step in STEPS[row.step], f"a row that is {row.step} cannot become {step}"
    row.step = step


def _fail(
    row: AnyRow,
    error: str,
    deployment: Any,
    *,
    status: RowStatus = "error",
    permanent: bool = False,
    refused: bool = False,
    unanswered: bool = False,
    short_nano: int = 0,
) -> None:
    _move(row, "failed")
    row.failure = Failure(error, deployment, status, permanent, refused, unanswered, short_nano)


def _fail_unanswered(row: AnyRow, error: str) -> None:
    assert row.routed is not None
    _fail(row, error, row.routed.deployments[-1], unanswered=True)


def _came_back(row: AnyRow, cost_nano: int, *, still_held: bool) -> None:
    row.spent_nano += cost_nano
    row.held = still_held
    row.permit = row.attempt = None
    row.messages = ()


def _not_sent(row: AnyRow) -> None:
    """Nothing was sent: the row's time budget has not started unless an earlier request has started it."""
    row.permit = None
    if row.row_seconds is not None:
        row.deadline = row.batch_deadline


def _pass_over(row: AnyRow, reason: str, failure: str, rules: Rules) -> None:
    """Ask the next deployment that has attempts left; after the last one start over, while the row has patience."""
    assert row.routed is not None
    deployments = row.routed.deployments
    row.last_failure = failure
    row.passed_over = PassedOver(row.deployment.name, reason)
    if (position := _first_left(row, row.position + 1)) is not None:
        _ask(row, position)
        _move(row, _next_step(row))
    elif row.patience > 0 and (position := _first_left(row, 0)) is not None:
        _ask(row, position)
        row.passed_over = None
        pause = _LOOK_AGAIN_SECONDS * rules.rng.uniform(0.5, 1.5)
        row.patience -= pause
        _wait(row, pause, new_round=True)
    else:
        _fail(row, failure, deployments[-1], unanswered=True)


def _first_left(row: AnyRow, start: int) -> int | None:
    assert row.routed is not None
    deployments = row.routed.deployments
    return next((n for n in range(start, len(deployments)) if not row.is_over(deployments[n].name)), None)


def _ask(row: AnyRow, position: int) -> None:
    row.position = position
    row.tries_of(row.deployment.name).limited = 0


def _wait(row: AnyRow, seconds: float, *, new_round: bool) -> None:
    _move(row, "waiting")
    row.pause, row.new_round = seconds, new_round


def _next_step(row: AnyRow) -> Step:
    return "held" if row.held else "leased"


def _failure(error: VendorError, deployment: str, seconds_left: float | None) -> str:
    """What the row's error says if this was its last request."""
    if error.kind != "timeout" or error.http_status is not None or (seconds_left is not None and seconds_left <= 0):
        return f"{error.kind}: {error}"
    return f"{error.kind}: {error}; raise deployments.{deployment}.timeout or lower max_tokens"


def _always() -> bool:
    return True
