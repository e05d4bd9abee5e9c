"""When to try again. Pure decisions: what happened goes in, what to do comes out; nothing here waits."""

from __future__ import annotations

import random
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
    error: VendorError, *, attempt: int, retry: Retry, rng: random.Random, left: float | None = None
) -> Decision:
    """What follows failed attempt number ``attempt`` (from 1) at one deployment.

    Waits grow twofold from ``retry.wait`` to ``retry.max_wait`` with full jitter on the upper half ("equal jitter"
    of the AWS Architecture Blog), never less than the vendor's ``retry-after``. ``left`` is how many seconds the row
    still has: a wait that would not end within them is not begun.
    """
    if isinstance(error, PermanentError):
        return "give up"
    if attempt >= retry.attempts:
        return "fall back"
    ceiling = min(retry.max_wait, retry.wait * 2 ** (attempt - 1))
    pause = ceiling / 2 + rng.random() * ceiling / 2
    pause = max(pause, error.retry_after or 0.0)
    return Again(pause) if left is None or pause < left else "fall back"
