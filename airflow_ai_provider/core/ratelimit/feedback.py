"""What outcomes of calls change: circuits, retry budgets, cool-downs and the share of a limit that is used.

Whether to send at all: a circuit opens when a deployment fails, and lets single probes find out when it is back.

closed ── failures in a row, or too many of the last calls ──▶ open ── time for a probe ──▶ half open
  ▲                                                              ▲                            │
  └────────────────────────── the probe was answered ────────────┼────────────────────────────┤
                                                                 └── it failed, or was lost ──┘

How many retries a deployment gets: a share of its first attempts, so that an outage is not multiplied.

A token bucket as in Finagle's RetryBudget: every call puts a fifth of a retry in, every retry takes one out, and a few
may be had even when there is little traffic.

What happened to a process' calls since its last visit to the desk.

What an answer or an error says about the deployment it came from.

How much of a known limit is scheduled: less after 429s, more again while none come.

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
from typing import Literal

from airflow_ai_provider.core.errors import TransientError, VendorError
from airflow_ai_provider.core.providers.base import RateLimits
from airflow_ai_provider.core.ratelimit.limits import BreakerTerms, CircuitState, Limit, ProbeWord

FIRST_PROBE = 1.0
"""Seconds after it opened; doubles up to ``probe_every``."""


@dataclass(slots=True)
class Circuit:
    state: CircuitState = "closed"
    streak: int = 0
    good: float = 0.0
    bad: float = 0.0
    """Calls of the last window: older ones fade (exponentially, the window being the time constant)."""
    counted: float = 0.0
    """When they were last counted."""
    probes: int = 0
    probe_at: float = 0.0
    prober: str = ""
    reason: str = ""


def judge(circuit: Circuit, terms: BreakerTerms, *, ok: int, failed: int, streak: int, now: float) -> None:
    """Open a closed circuit if it is time. Answers to what was sent before it opened change nothing any more."""
    if circuit.state != "closed" or not (ok or failed):
        return
    circuit.streak = streak if ok else circuit.streak + streak
    fade = math.exp(-(now - circuit.counted) / terms.window)
    circuit.good, circuit.bad, circuit.counted = circuit.good * fade + ok, circuit.bad * fade + failed, now
    calls = circuit.good + circuit.bad
    if circuit.streak >= terms.failures:
        _open(circuit, terms, f"{circuit.streak} failures in a row", now)
    elif failed and calls >= terms.calls and circuit.bad / calls >= terms.failure_rate:
        _open(circuit, terms, f"{100 * circuit.bad / calls:.0f}% of {calls:.0f} calls failed", now)


def probe(
    circuit: Circuit, terms: BreakerTerms, *, worker: str, word: ProbeWord, cool_until: float, now: float
) -> bool:
    """Hear of a probe, and say whether ``worker`` may send one now."""
    if circuit.state == "closed":
        return False
    if word == "ok":
        _close(circuit)
    elif word == "failed" and circuit.prober == worker:
        _open(circuit, terms, "the probe failed", now)
    elif word == "free" and circuit.prober == worker:
        circuit.state, circuit.prober, circuit.probe_at, circuit.reason = "open", "", now, "the probe was not sent"
    elif word == "want" and now >= max(circuit.probe_at, cool_until):
        circuit.state, circuit.prober, circuit.reason = "half_open", worker, "time for a probe"
        circuit.probe_at = now + terms.probe_every  # by then this one counts as lost
        return True
    return False


def _open(circuit: Circuit, terms: BreakerTerms, reason: str, now: float) -> None:
    circuit.probes = circuit.probes + 1 if circuit.state == "half_open" else 0
    circuit.state, circuit.reason, circuit.prober = "open", reason, ""
    circuit.probe_at = now + min(FIRST_PROBE * 2.0**circuit.probes, terms.probe_every)


def _close(circuit: Circuit) -> None:
    circuit.state, circuit.reason, circuit.prober = "closed", "the probe was answered", ""
    circuit.streak, circuit.good, circuit.bad = 0, 0.0, 0.0


SHARE = 0.2
"""Retries per first attempt."""
FLOOR = 10.0
"""Retries at the start, and those that a quiet minute fills up to."""
CEILING = 100.0
_PER_SECOND = FLOOR / 60


class RetryBudget:
    """For one deployment in one process. Time is passed in."""

    __slots__ = ("_filled", "_left")

    def __init__(self, now: float) -> None:
        self._left = FLOOR
        self._filled = now

    def sent(self) -> None:
        """A call was sent; that of a retry as well, for which ``take`` pays."""
        self._left = min(CEILING, self._left + SHARE)

    def take(self, now: float) -> bool:
        """Whether there is room for one retry, which is then taken."""
        if self._left < FLOOR:
            self._left = min(FLOOR, self._left + (now - self._filled) * _PER_SECOND)
        self._filled = now
        if self._left < 1:
            return False
        self._left -= 1 + SHARE
        return True


class Feedback:
    """Counts, as the fields of ``Ask`` of the same names have them; ``seconds`` is a sum here."""

    __slots__ = ("alive_at", "back", "cool", "failed", "late", "limited", "ok", "probe", "seconds", "streak")

    def __init__(self, alive_at: float = -math.inf) -> None:
        """``alive_at`` is when a call was answered last."""
        self.alive_at = alive_at
        self.ok = 0
        self.seconds = 0.0
        self.failed = 0
        self.streak = 0
        self.limited = 0
        self.late = 0
        self.cool = 0.0
        self.probe: ProbeWord = ""
        self.back: dict[Limit, float] = {}

    def good(self, seconds: float, now: float) -> None:
        """A call was answered."""
        self.ok += 1
        self.seconds += seconds
        self._alive(now)

    def refused(self, now: float, *, late: bool) -> None:
        """A call was answered by 429; ``late`` if it had left after its place."""
        self.limited += 1
        self.late += late
        self._alive(now)

    def bad(self, sent: float) -> None:
        """A call failed as in an outage. Calls that were sent together time out together: what was answered after this
        one was sent ends no streak that it could be part of."""
        self.failed += 1
        if sent >= self.alive_at:
            self.streak += 1

    def _alive(self, now: float) -> None:
        self.alive_at = now
        self.streak = 0

    def unused(self, limit: Limit, units: float) -> None:
        """Units that were permitted and not used; negative for more than were permitted."""
        if units:
            self.back[limit] = self.back.get(limit, 0.0) + units

    @property
    def mean_seconds(self) -> float:
        return self.seconds / self.ok if self.ok else 0.0


Word = Literal["up", "limited", "down"]

COOL = 1.0
"""Seconds to hold back after a 429 that does not say how long."""
_SHORT = 0.1
"""Waits that pacing evens out by itself."""
_DOWN_STATUSES = frozenset({408, 424})


def said_by(error: VendorError) -> Word:
    """``down`` is what a circuit counts: 5xx, time-outs, lost connections. A refused request was at least answered.

    A row that is larger than a quota says nothing of the others.
    """
    if error.http_status == 429 and error.kind != "too_large":
        return "limited"
    if not isinstance(error, TransientError):
        return "up"
    status = error.http_status
    return "down" if status is None or status >= 500 or status in _DOWN_STATUSES else "up"


def shows_model(error: VendorError) -> bool:
    """Whether a refusal shows that the vendor's API is there: it was charged nothing, in a status of such an API."""
    return error.http_status is not None and not error.billed and error.kind not in ("redirected", "wrong_address")


def cool_down(limits: RateLimits, tokens: int) -> float:
    """Seconds until a call of ``tokens`` fits again, as the headers have it; 0 where it does now.

    OpenAI's and Anthropic's resets are the time until all of the quota is back, at an even pace.
    """
    waits = (
        _wait(limits.requests, limits.requests_remaining, limits.requests_reset, 1, at_once=limits.at_once),
        _wait(limits.tokens, limits.tokens_remaining, limits.tokens_reset, tokens, at_once=limits.at_once),
    )
    wait = max(waits)
    return wait if wait >= _SHORT else 0.0


def _wait(limit: int | None, remaining: int | None, reset: float | None, need: int, *, at_once: bool) -> float:
    if remaining is None or reset is None or remaining >= need:
        return 0.0
    if limit is None:
        return 0.0 if remaining else reset
    if remaining >= limit:  # all of the quota would not be enough
        return 0.0
    return reset if at_once else reset * min(1.0, (need - remaining) / (limit - remaining))


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
