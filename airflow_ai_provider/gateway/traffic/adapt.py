"""How many at once where nobody said: additive increase, multiplicative decrease, below the policy's ceiling.

It starts at the ceiling. A 429 takes it down, as does latency that has doubled against its long average (the gradient
of Netflix' concurrency-limits, with its tolerance of 2); every round of good answers adds one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DOWN_ON_LIMIT = 0.7
DOWN_ON_LATENCY = 0.9
TOLERANCE = 2.0
_SHORT, _LONG = 20, 500
"""Answers that the two averages of latency look back on."""
_WARM = 50
"""Answers before latency is judged."""


@dataclass(slots=True)
class Adaptive:
    limit: float
    short: float = 0.0
    """Seconds, over the last answers."""
    long: float = 0.0
    answers: int = 0
    next_cut: float = 0.0
    """The last cut has to show first."""


def adapt(state: Adaptive, *, ceiling: int, ok: int, seconds: float, limited: int, now: float) -> None:
    if ok:
        state.answers += ok
        state.short = _average(state.short, seconds, ok, _SHORT)
        state.long = _average(state.long, seconds, ok, _LONG)
    slow = ok > 0 and state.answers > _WARM and state.short > TOLERANCE * state.long
    if limited or slow:
        if now >= state.next_cut:
            state.limit = max(1.0, state.limit * (DOWN_ON_LIMIT if limited else DOWN_ON_LATENCY))
            state.next_cut = now + max(state.short, 0.5)
    elif ok:
        state.limit = min(float(ceiling), state.limit + ok / state.limit)


def _average(old: float, seconds: float, answers: int, span: int) -> float:
    return seconds if old == 0.0 else seconds + (old - seconds) * math.exp(-answers / span)
