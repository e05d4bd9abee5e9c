"""How much of a known limit is scheduled: less after 429s, more again while none come.

A vendor counts requests when it reaches them, not when they leave. Places for the full rate would be refused for a few
milliseconds of that difference, so a margin is left. A 429 widens it, by the share of the last requests that was
refused and at least by ``STEP``: a policy that says twice the vendor's limit comes down to it within seconds.
The margin narrows slowly again.

A call that left after its place, because its process was held up, and is refused says something else: what is late
cannot be caught up on here. Most vendors count over a second and allow for it; one whose bucket holds only a few
requests does not. Then late places are given up instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

START = 0.998
"""Share of the scheduled rate (``terms.AIM``) to begin with."""
LEAST = 0.01
STEP = 0.005
"""Least cut of the share for a round in which 429s came."""
MOST_CUT = 0.5
"""Answers come later than refusals, which therefore seem to be more than they are."""
ROUND = 1.0
"""Seconds from one cut to the next: the effect must show first."""
MEMORY = 2.0
"""Time constant, in seconds, of the count that says which share is refused."""
FEW = 10.0
"""Calls that the count begins with, none of them refused: one refusal among none says little."""
NARROW = 30.0
"""Time constant, in seconds, in which the margin narrows …"""
GROWTH = 0.02
"""… but the share grows by no more than this part of itself in a second."""
CATCH_UP = 0.5
"""Seconds for which a late place may still be used, where the vendor minds no short burst."""
SEVERAL = 2.5
"""Late calls refused within ``MEMORY`` that show that the vendor minds: one may be chance."""
CATCH_UP_CUT = 0.1
"""What then is left of ``catch_up``."""
CATCH_UP_BACK = 300.0
"""Seconds in which all of ``catch_up`` comes back."""


@dataclass(slots=True)
class Caution:
    """What 429s taught of one deployment."""

    share: float = START
    """Of the scheduled rate."""
    catch_up: float = CATCH_UP
    """Seconds for which a late place may still be used."""
    ok: float = 0.0
    limited: float = 0.0
    late: float = 0.0
    """Calls answered, refused by 429, and refused after they had left late; older ones fade with ``MEMORY``."""
    seen: float = 0.0
    """When they were last counted."""
    next_cut: float = 0.0
    """The last cut has to show first."""


def adjust(caution: Caution, *, ok: int, limited: int, late: int, now: float) -> None:
    """Take in how many calls were answered and ``limited`` since the last time; ``late`` of these had left late."""
    passed = min(max(0.0, now - caution.seen), 60.0) if caution.seen else 0.0
    fade = math.exp(-passed / MEMORY)
    caution.ok, caution.limited = caution.ok * fade + ok, caution.limited * fade + limited
    caution.late, caution.seen = caution.late * fade + late, now
    caution.share += min((1.0 - caution.share) * passed / NARROW, caution.share * GROWTH * passed, 1.0 - caution.share)
    caution.catch_up = min(CATCH_UP, caution.catch_up + passed * CATCH_UP / CATCH_UP_BACK)
    if caution.late >= SEVERAL:
        caution.catch_up *= CATCH_UP_CUT
        caution.limited, caution.late = caution.limited - caution.late, 0.0
    elif limited and now >= caution.next_cut:
        refused = caution.limited / (FEW + caution.ok + caution.limited)
        caution.share = max(LEAST, caution.share * (1.0 - min(MOST_CUT, max(STEP, refused))))
        caution.ok, caution.limited, caution.next_cut = 0.0, 0.0, now + ROUND
