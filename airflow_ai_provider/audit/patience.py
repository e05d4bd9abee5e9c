"""How long a sink is asked again before the rest waits for the next delivery."""

from __future__ import annotations

import random
from typing import Final

TRIES: Final = 8
_FIRST_S: Final = 0.05
_LONGEST_S: Final = 5.0


def pause(attempt: int) -> float:
    """Seconds before the try after ``attempt``: doubling, with jitter, so that clients do not come back together."""
    longest: float = min(_LONGEST_S, _FIRST_S * 2 ** (attempt - 1))
    return random.uniform(longest / 2, longest)  # noqa: S311
