"""When to try again. Pure decisions: what happened goes in, what to do comes out; nothing here waits."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from airflow_ai_provider.errors import PermanentError, VendorError
from airflow_ai_provider.policy import Retry


@dataclass(frozen=True, slots=True)
class Again:
    """Try the same deployment again after ``seconds``."""

    seconds: float


Decision = Again | Literal["fall back", "give up"]


def decide(
    error: VendorError,
    *,
    attempt: int,
    retry: Retry,
    rng: random.Random,
    seconds_left: float | None = None,
    may_retry: Callable[[], bool] = lambda: True,
) -> Decision:
    """What follows failed attempt number ``attempt`` (from 1) at one deployment.

    Waits grow twofold from ``retry.wait`` to ``retry.max_wait`` with full jitter on the upper half ("equal jitter"
    of the AWS Architecture Blog), never less than the vendor's ``retry-after``. No wait ends after the row's deadline,
    in ``seconds_left``. ``may_retry`` takes one retry out of the deployment's budget if it has room, and is asked last;
    a 429 needs none: it says itself when to come back.
    """
    if isinstance(error, PermanentError):
        return "give up"
    if attempt >= retry.attempts:
        return "fall back"
    ceiling = min(retry.max_wait, retry.wait * 2 ** (attempt - 1))
    pause = max(ceiling / 2 + rng.random() * ceiling / 2, error.retry_after or 0.0)
    if seconds_left is not None and pause >= seconds_left:
        return "fall back"
    return Again(pause) if error.http_status == 429 or may_retry() else "fall back"
