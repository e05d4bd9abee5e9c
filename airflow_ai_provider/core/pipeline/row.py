"""The state of one row, from its masked request to its answer.

A row is one object that ``transitions`` moves from step to step. It is changed in place: one copy of its fields takes
as long as all of a row's steps together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from airflow_ai_provider.core.cache import Stored
from airflow_ai_provider.core.job import Message
from airflow_ai_provider.core.pipeline.answer import RowStatus
from airflow_ai_provider.core.pipeline.deployments import PricedDeployment
from airflow_ai_provider.core.pipeline.prepare import RowRequest
from airflow_ai_provider.core.pipeline.retry import Tries
from airflow_ai_provider.core.policy import Tier

if TYPE_CHECKING:
    from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt
    from airflow_ai_provider.core.pipeline.budget_hold import BudgetHold
    from airflow_ai_provider.core.pipeline.leases import Lease
    from airflow_ai_provider.core.ratelimit import Pass

Step = Literal[
    "prepared",
    "routed",
    "cached",
    "leased",
    "waiting",
    "held",
    "admitted",
    "sent",
    "answered",
    "accepted",
    "rejected",
    "failed",
]
"""Where a row stands.

``prepared``: masked, for ``tier``. ``routed``: deployments and cache keys are known. ``cached``: a stored answer was
found. ``leased``: this process is the one to ask a vendor. ``waiting``: pauses before the next request. ``held``: an
upper bound of the cost is held in the budgets. ``admitted``: the rate limiter has given a permit. ``sent``: the attempt
is durable in the ledger, and the request may leave. ``answered``: there is an answer to check. ``accepted``,
``rejected`` and ``failed`` are final.
"""
STEPS: Mapping[Step, frozenset[Step]] = {
    "prepared": frozenset({"routed", "rejected", "failed"}),
    "routed": frozenset({"cached", "leased", "failed"}),
    "cached": frozenset({"answered"}),
    "leased": frozenset({"held", "prepared", "failed"}),
    "waiting": frozenset({"held", "leased", "failed"}),
    "held": frozenset({"admitted", "held", "waiting", "failed"}),
    "admitted": frozenset({"sent", "held", "waiting", "failed"}),
    "sent": frozenset({"answered", "held", "leased", "waiting", "failed"}),
    "answered": frozenset({"accepted", "rejected", "prepared"}),
    "accepted": frozenset(),
    "rejected": frozenset(),
    "failed": frozenset(),
}
"""The steps that may follow each step."""
FINAL: frozenset[Step] = frozenset(step for step, following in STEPS.items() if not following)
"""Steps at which a row has come to its end."""

D = TypeVar("D", bound=PricedDeployment)


@dataclass(frozen=True, slots=True)
class RoutedRequest(Generic[D]):
    """A row as one tier asks it, and the deployments that can take it, in the order in which they are asked."""

    request: RowRequest
    deployments: Sequence[D]
    keys: Sequence[bytes]
    """Cache keys of the answer, one per deployment."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A deployment that was preferred to the one that is asked, and why it is not asked."""

    deployment: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answered(Generic[D]):
    """An answer to a row, paid for or found."""

    stored: Stored
    tier: Tier
    deployment: D
    reused: bool


@dataclass(frozen=True, slots=True)
class Failure(Generic[D]):
    """Why a row has no answer."""

    error: str
    """``kind: explanation``, free of row data."""
    deployment: D
    status: RowStatus = "error"
    permanent: bool = False
    """No later try answers this row unless the row, the prompt or the policy is changed."""
    refused: bool = False
    """It was a vendor that refused the row."""
    unanswered: bool = False
    """No deployment gave an answer, in time or at all."""
    short_nano: int = 0
    """Budget that was missing, in nano-dollars."""


@dataclass(slots=True, eq=False)
class RowState(Generic[D]):
    """One row on its way from a masked request to an answer."""

    request: RowRequest
    request_id: str
    tier: Tier
    """The tier that is asked."""
    step: Step = "prepared"
    escalated: bool = False
    """Whether the tier is asked because a check rejected the answer of a lower one."""
    other_than: str | None = None
    """Model that must not be asked again."""
    routed: RoutedRequest[D] | None = None

    # in the batch
    hold: BudgetHold | None = None
    """The budget hold of the row's batch."""
    batch_deadline: float | None = None
    """Time on the loop's clock by which the batch must be done; ``None`` is never."""
    row_seconds: float | None = None
    """Time budget in seconds, counted from the first request in a tier; ``None`` once started, or without a limit."""
    deadline: float | None = None
    """Time on the loop's clock at which the row is given up; ``None`` is never."""

    # asking a tier
    lease: Lease | None = None
    position: int = 0
    """Index of the deployment that is asked."""
    share_nano: int = 0
    """Upper bound of what any attempt of the row can cost, in nano-dollars."""
    held: bool = False
    """Whether the share is held in the budgets."""
    patience: float = 0.0
    """Seconds that the row still waits for open circuits and 429s."""
    pause: float = 0.0
    """Seconds to wait before the next request."""
    new_round: bool = False
    """Whether the wait is for all of the tier's deployments, and not a back-off before asking the same one again."""
    tries: dict[tuple[Tier, str], Tries] = field(default_factory=dict)
    """What the row has asked of each deployment, by tier and name: kept when it comes back to a tier."""
    passed_over: PassedOver | None = None
    last_failure: str = "no deployment"
    """Why the last request, or the last deployment that was passed over, gave no answer."""
    queued: bool = False
    """Whether the row has a place in the queue of its tier."""
    permit: Pass | None = None
    """The rate limiter's permit for one request."""
    attempt: OpenAttempt | None = None
    """The ledger's open attempt."""
    messages: Sequence[Message] = ()
    """What is sent, with the contents of attachments in it; only while a request is out."""

    # what came of it
    spent_nano: int = 0
    """What the row has cost so far, failed attempts included."""
    answered: Answered[D] | None = None
    problem: str | None = None
    """Why the answer is rejected, as ``check: reason``."""
    failure: Failure[D] | None = None

    @property
    def request_as_asked(self) -> RowRequest:
        """The request as the tier asks it: with that tier's system prompt."""
        assert self.routed is not None
        return self.routed.request

    @property
    def deployment(self) -> D:
        """The deployment that is asked."""
        assert self.routed is not None
        return self.routed.deployments[self.position]

    def tries_of(self, deployment: str) -> Tries:
        """Return the count of what the row has asked of a deployment of its tier."""
        place = self.tier, deployment
        found = self.tries.get(place)
        if found is None:
            found = self.tries[place] = Tries()
        return found

    def is_over(self, deployment: str) -> bool:
        """Whether the row must not ask a deployment of its tier any more."""
        found = self.tries.get((self.tier, deployment))
        return found is not None and found.over

    @property
    def on_last_deployment(self) -> bool:
        """Whether no other deployment of the tier is left to ask."""
        assert self.routed is not None
        deployments = self.routed.deployments
        if self.position == len(deployments) - 1:
            return True
        return all(self.is_over(each.name) for n, each in enumerate(deployments) if n != self.position)


AnyRow = RowState[Any]
