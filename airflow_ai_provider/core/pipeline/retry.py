"""Decide when to try again. Pure decisions: what happened goes in, what to do comes out; nothing here waits.

What a row may cost is bounded here: of one deployment, in one tier, it uses at most ``retry.attempts`` requests that
may have been charged, however often the row comes back to that deployment. Requests that cost nothing are bounded by
time instead, where the vendor itself says when to come back (429).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from airflow_ai_provider.core.errors import PermanentError, VendorError
from airflow_ai_provider.core.pipeline.failure_limits import concerns_deployment
from airflow_ai_provider.core.policy import Deployment, Retry

LEAST_PATIENCE = 60.0
"""Seconds a row waits at least for open circuits and 429s, whatever its retries would take."""
_LEAST_LIMITED_WAIT = 0.1
"""Seconds before the second 429 is risked, however short ``retry.wait`` is; doubles like other waits."""
_LEAST_LIMITED_MAX = 1.0
"""The longest of those waits, where ``retry.max_wait`` is shorter."""
_MOST_TIMEOUTS = 2
"""Time-outs of a row at one deployment: the first, and one more with a longer time-out."""


@dataclass(frozen=True, slots=True)
class Again:
    """Try the same deployment again after ``seconds``."""

    seconds: float


Decision = Again | Literal["later", "fall back", "give up"]
"""``later``: ask the next deployment, and this one again if that does not help. ``fall back``: ask the next one; this
one has had its attempts. ``give up``: no deployment would take the row."""


@dataclass(slots=True)
class Tries:
    """What one row has asked of one deployment of its tier, in one try of the task."""

    attempts: int = 0
    """Failed requests that count: all but a 429 that cost nothing."""
    limited: int = 0
    """429s since the row last came to the deployment."""
    requests: int = 0
    timeouts: int = 0
    over: bool = False
    """Whether the row must not ask the deployment any more."""

    def count(self, error: VendorError) -> None:
        """Count a failed request."""
        self.requests += 1
        if uses_attempt(error):
            self.attempts += 1
        else:
            self.limited += 1
        self.timeouts += error.kind == "timeout"

    def timeout(self, deployment: Deployment) -> int:
        """Seconds the next request may take: after a time-out, the longest that the policy allows."""
        return deployment.longest_timeout if self.timeouts else deployment.timeout


def uses_attempt(error: VendorError) -> bool:
    """Whether a failed request counts as one of ``retry.attempts``.

    All do but a 429 that cost nothing: the vendor is well, and says when to come back. A refused connection counts: it
    costs nothing either, but the deployment is down, and the next one should be asked.
    """
    return error.billed or error.http_status != 429


def patience(retry: Retry) -> float:
    """Seconds a row waits for open circuits and 429s in one tier: as long as its retries might have taken."""
    return max(retry.attempts * retry.max_wait, LEAST_PATIENCE)


def decide(
    error: VendorError,
    tries: Tries,
    *,
    retry: Retry,
    deployment: Deployment,
    rng: random.Random,
    patience: float,
    last: bool,
    seconds_left: float | None = None,
    may_retry: Callable[[], bool] = lambda: True,
) -> Decision:
    """What follows a failed request, which ``tries`` counts already.

    Waits grow twofold from ``retry.wait`` to ``retry.max_wait`` with full jitter on the upper half ("equal jitter"
    of the AWS Architecture Blog), never less than the vendor's ``retry-after``. No wait ends after the row's deadline,
    in ``seconds_left``. ``patience`` are the seconds that the row still waits for 429s, ``last`` says that no other
    deployment is left to ask. ``may_retry`` takes one retry out of the deployment's budget if it has room, and is asked
    last; a 429 needs none.
    """
    if isinstance(error, PermanentError):
        return "fall back" if concerns_deployment(error) else "give up"
    limited = not uses_attempt(error)
    pause = _pause(error, tries, retry, rng, limited=limited)
    if seconds_left is not None and pause >= seconds_left:
        return "fall back"
    if limited:
        longest = max(retry.max_wait, _LEAST_LIMITED_MAX)
        enough = patience <= 0 if last else tries.limited >= retry.attempts or pause > longest
        return "later" if enough else Again(pause)
    if tries.attempts >= retry.attempts:
        return "fall back"
    if error.kind == "timeout" and not _worth_more_time(error, tries, deployment, seconds_left, pause):
        return "fall back"
    return Again(pause) if may_retry() else "fall back"


def _pause(error: VendorError, tries: Tries, retry: Retry, rng: random.Random, *, limited: bool) -> float:
    wait, most = retry.wait, retry.max_wait
    if limited:
        wait, most = max(wait, _LEAST_LIMITED_WAIT), max(most, _LEAST_LIMITED_MAX)
    ceiling = min(most, wait * 2.0 ** min(tries.requests - 1, 30))
    return max(ceiling / 2 + rng.random() * ceiling / 2, error.retry_after or 0.0)


def _worth_more_time(
    error: VendorError, tries: Tries, deployment: Deployment, seconds_left: float | None, pause: float
) -> bool:
    """Whether to ask once more after a time-out.

    Asking with the same time-out would be charged again for the same outcome. A server's own 408 or 504 may have had
    any cause: it is asked once more.
    """
    if tries.timeouts >= _MOST_TIMEOUTS:
        return False
    if error.http_status is not None:
        return True
    left = deployment.longest_timeout if seconds_left is None else seconds_left - pause
    return min(left, deployment.longest_timeout) > deployment.timeout
