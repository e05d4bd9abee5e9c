"""The gate of one process: calls wait here until they may leave, and are told when it makes no sense to wait.

``ProcessGate`` is what a process does with the permits and slots that it holds; where they come from is the limiter's
business (``LocalLimiter``, ``RedisLimiter``). Calls wait in one line, first come first served; a call costs no task and
no round trip. One coroutine, the messenger, fetches for all of them, a tenth of a second's worth at a time, and tells
the limiter how the last calls went. For one event loop.

A call waits twice. ``enter`` lets it in a little before its place, for as long as its preparation took lately;
``GatePass.depart`` lets it go at its place, so that how long the preparation takes changes nothing of when it leaves.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import deque
from collections.abc import Callable

from airflow_ai_provider.core.errors import DeploymentGivenUp, DeploymentResting, VendorError
from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.providers.base import LONGEST_WAIT, RateLimits
from airflow_ai_provider.core.ratelimit.feedback import (
    CATCH_UP,
    COOL,
    Feedback,
    RetryBudget,
    cool_down,
    said_by,
    shows_model,
)
from airflow_ai_provider.core.ratelimit.limits import (
    Ask,
    CircuitChanged,
    CircuitState,
    Grant,
    Limit,
    Limiter,
    ProbeWord,
    Terms,
    Wanted,
)
from airflow_ai_provider.core.ratelimit.permits import BURST, Departure, Departures, PermitSupply

_BEAT = 0.25
"""Seconds between two visits of a busy gate to its desk, where nothing else makes it go."""
_PATIENCE = 0.05
"""Seconds before it asks again for what it was just refused."""
_PROBE_KEPT = 2.0
"""Seconds for which the right to send a probe waits for a call."""
_MEASURABLE = 0.02
"""Seconds over which a pace can be told."""
_TICK = 0.002
"""Seconds between two looks at the line: those whose moments are closer together go together, none of them early."""
_EARLY = 0.0005
"""Timers are no finer than a millisecond."""
_LATE = 0.01
"""Seconds after its place from which a departure counts as late."""
_LONGEST_LEAD = 0.1
"""Seconds before its place that a call is let in at most, to be prepared."""
_LEAD_FADES = 0.02
"""How much of the way to a shorter preparation the lead goes with each call."""
_LONGEST_DEPARTURE = 10.0
"""Seconds that a prepared call waits at most. What the vendor says meanwhile for longer holds for those still in line:
an attempt that is open in the ledger must not wait for minutes."""


class GatePass:
    """See ``gate.Pass``."""

    __slots__ = ("_admitted", "_departure", "_gate", "_input", "_late", "_output", "_probe")

    def __init__(
        self,
        gate: ProcessGate,
        input_tokens: int,
        output_tokens: int,
        *,
        probe: bool,
        departure: Departure | None = None,
    ) -> None:
        self._gate = gate
        self._departure = departure
        """``None`` once it has left, and where no limit says when to."""
        self._admitted = gate._clock()
        self._late = False
        """Whether it left well after its place."""
        self._input = input_tokens
        self._output = output_tokens
        self._probe = probe
        """Whether this is a probe that nothing was said of yet."""

    async def depart(self) -> None:
        """See ``gate.Pass.depart``."""
        if self._departure is None:
            return
        gone = self._gate._depart(self._gate._clock() - self._admitted)
        try:
            self._late = await gone > _LATE
        finally:  # a call that is cancelled just then has used its place all the same
            if gone.done() and not gone.cancelled() and gone.exception() is None:
                self._departure = None

    def answered(self, *, usage: Usage | None, limits: RateLimits | None, seconds: float) -> None:
        """See ``gate.Pass.answered``."""
        self._gate._news.good(seconds, self._gate._clock())
        self._gate._proven()
        self._tell_probe("ok")
        if usage is not None:
            self._gate._give_back(0, self._input - usage.input, self._output - usage.output)
        if limits is not None and (wait := cool_down(limits, self._input + self._output)):
            self._gate._cool(wait)

    def failed(self, error: VendorError, seconds: float) -> None:
        """See ``gate.Pass.failed``."""
        gate, word = self._gate, said_by(error)
        if shows_model(error):
            gate._proven()
        match word:
            case "up":
                gate._news.good(seconds, gate._clock())
            case "limited":
                gate._news.refused(gate._clock(), late=self._late)
                gate._refused(error.retry_after)
            case "down":
                gate._news.bad(gate._clock() - seconds)
        if not error.billed:
            gate._give_back(0, self._input, self._output)
        self._tell_probe("failed" if word == "down" else "ok")
        if word != "up" and gate._circuit == "closed":
            gate._visit_in(0.0)

    def unused(self) -> None:
        """See ``gate.Pass.unused``."""
        self._gate._give_back(1, self._input, self._output)
        self._tell_probe("free")

    def leave(self) -> None:
        """See ``gate.Pass.leave``."""
        if self._departure is not None:  # it never left
            self._gate._departures.cancel(self._departure)
            self._departure = None
        self._tell_probe("free")
        self._gate._left()

    def _tell_probe(self, word: ProbeWord) -> None:
        if self._probe:
            self._probe = False
            self._gate._news.probe = word
            self._gate._visit_in(0.0)


class _Waiting:
    """A call in line."""

    __slots__ = ("admitted", "costs", "departure", "input", "output")

    def __init__(self, admitted: asyncio.Future[None], costs: list[int], tokens: tuple[int, int]) -> None:
        self.admitted = admitted
        self.costs = costs
        """Units of each of the gate's limits."""
        self.input, self.output = tokens
        self.departure: Departure | None = None


class ProcessGate:
    """See ``gate.Gate``."""

    def __init__(
        self,
        name: str,
        terms: Terms,
        team: str,
        desk: Limiter,
        *,
        worker: str | None = None,
        first_calls: int | None = None,
        on_change: Callable[[CircuitChanged], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``first_calls`` are the most under way until one shows that a model answers there; ``None`` is any number."""
        self._name = name
        self._terms = terms
        self._team = terms.team(team)
        self._desk = desk
        self._on_change = on_change
        self._clock = clock
        self._worker = worker or uuid.uuid4().hex[:16]
        self._retries = RetryBudget(clock())

        self._line: deque[_Waiting] = deque()
        self._pausing: set[asyncio.Future[None]] = set()
        self._supplies = [PermitSupply(limit) for limit in terms.rates]
        self._lead = 0.0
        """Seconds that the preparation of a call takes, lately and at the longer end."""
        self._catch_up = CATCH_UP
        self._ready: deque[tuple[asyncio.Future[float], float]] = deque()
        """Prepared calls, and when each of them leaves at the latest."""
        self._departures = Departures()
        self._departure_timer: asyncio.TimerHandle | None = None
        self._in_use = 0
        self._slots: int | None = None
        """``None``: not asked yet."""
        self._cool_until = 0.0
        self._circuit: CircuitState = "closed"
        self._probe_until = 0.0
        """Until then the next call may go as a probe."""
        self._interest = False
        """A call would have been sent if the circuit had been closed."""

        self._news = Feedback()
        self._visited = clock()
        self._not_before = 0.0
        """Asking again for what was just refused makes no sense before."""
        self._timer: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._wake: asyncio.Event | None = None
        self._messenger: asyncio.Task[None] | None = None
        self._given_up: DeploymentGivenUp | None = None
        self._first_calls = first_calls
        self._closed = False

    # -- what callers do

    @property
    def resting(self) -> bool:
        """See ``gate.Gate.resting``."""
        if self._circuit == "closed" or self._probe_until > self._clock():
            return False
        self._interested()
        return True

    async def enter(self, *, input_tokens: int, output_tokens: int) -> GatePass:
        """See ``gate.Gate.enter``."""
        if self._given_up is not None:
            raise self._rests()
        if self._circuit != "closed":
            if self._take_probe():
                self._admit()
                return GatePass(self, input_tokens, output_tokens, probe=True)
            self._interested()
            raise self._rests()
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        costs = [supply.cost(1, input_tokens, output_tokens) for supply in self._supplies]
        waiting = _Waiting(admitted, costs, (input_tokens, output_tokens))
        self._line_up(waiting)
        try:
            await admitted
        except asyncio.CancelledError:
            self._gave_up(waiting)
            raise
        return GatePass(self, input_tokens, output_tokens, probe=False, departure=waiting.departure)

    async def pause(self, seconds: float) -> None:
        """See ``gate.Gate.pause``."""
        if self._circuit != "closed" or self._given_up is not None:
            return
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        handle = loop.call_later(seconds, _finish, over)
        self._pausing.add(over)
        try:
            await over
        finally:
            handle.cancel()
            self._pausing.discard(over)

    def give_up(self, reason: DeploymentGivenUp) -> None:
        """See ``gate.Gate.give_up``."""
        self._given_up = reason
        self._turn_away()

    def may_retry(self) -> bool:
        """See ``gate.Gate.may_retry``."""
        return self._retries.take(self._clock())

    async def close(self) -> None:
        """See ``gate.Gate.close``."""
        self._closed = True
        for handle in (self._timer, self._alarm, self._departure_timer):
            if handle is not None:
                handle.cancel()
        self._turn_away()
        if self._messenger is not None and self._wake is not None:
            self._wake.set()
            await self._messenger
        await self._desk.close()

    # -- the line

    def _line_up(self, waiting: _Waiting) -> None:
        self._line.append(waiting)
        for supply, units in zip(self._supplies, waiting.costs, strict=True):
            supply.queued += units
        if len(self._line) == 1:
            self._let_in()

    def _let_in(self) -> None:
        """Let everybody in who may go now, and see to it that this is called again when the next one may."""
        line, now = self._line, self._clock()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while line:
            first = line[0]
            if first.admitted.done():  # it has given up
                line.popleft()
            elif not self._has_slot or (departure := self._departure(first, now)) is None:
                return self._visit_in(self._not_before - now)
            elif (wait := departure.moment - self._lead - now) > _EARLY:
                self._timer = asyncio.get_running_loop().call_later(max(wait, _TICK), self._let_in)
                break
            else:
                self._pop(departure)
        for supply in self._supplies:
            if supply.runs_low:
                return self._visit_in(self._not_before - now)
        return None

    @property
    def _has_slot(self) -> bool:
        return self._slots is not None and self._in_use < self._slots

    def _departure(self, waiting: _Waiting, now: float) -> Departure | None:
        """When a call may leave; ``None`` where there are too few permits. Those of places too late are given up."""
        if not self._supplies:
            return Departure(self._cool_until, self._cool_until, 0.0)
        while (place := self._place(waiting, now)) is not None:
            interval = max(n * s.purse.interval for s, n in zip(self._supplies, waiting.costs, strict=True))
            gap, allowed = interval / (1.0 + self._catch_up / CATCH_UP), max(BURST, self._catch_up, interval)
            # A vendor that minds late calls counts over less than a second: no matter to it what left a second ago.
            bound = self._catch_up > CATCH_UP / 4
            departure = self._departures.proposed(max(place, self._cool_until), gap, now, bound=bound)
            if departure.moment - departure.place <= allowed or not any(waiting.costs):
                return departure
            for supply, units in zip(self._supplies, waiting.costs, strict=True):
                supply.purse.take(units)
        return None

    def _place(self, waiting: _Waiting, now: float) -> float | None:
        """The moment of a call's permits, ``now`` where it needs none; ``None`` where there are too few."""
        latest = -math.inf
        for supply, units in zip(self._supplies, waiting.costs, strict=True):
            moment = supply.purse.moment(units)
            if moment is None:
                return None
            latest = max(latest, moment)
        return latest if latest > -math.inf else now

    def _pop(self, departure: Departure) -> None:
        waiting = self._line.popleft()
        if self._supplies:
            waiting.departure = departure
            self._departures.plan(departure)
        for supply, units in zip(self._supplies, waiting.costs, strict=True):
            supply.use(units)
        self._admit()
        waiting.admitted.set_result(None)

    def _admit(self) -> None:
        self._in_use += 1
        self._retries.sent()

    def _left(self) -> None:
        self._in_use -= 1
        if self._line and self._timer is None:  # otherwise the line waits for its moment, not for a slot
            self._let_in()

    # -- departures

    def _depart(self, preparation: float) -> asyncio.Future[float]:
        """Line up a prepared call; the result, once it may leave, is by how many seconds it is late."""
        fades = 1.0 if preparation > self._lead else _LEAD_FADES
        self._lead = min(_LONGEST_LEAD, self._lead + fades * (preparation - self._lead))
        gone: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._ready.append((gone, self._clock() + _LONGEST_DEPARTURE))
        if len(self._ready) == 1:
            self._let_go()
        return gone

    def _let_go(self) -> None:
        """Let those leave whose moment has come, and see to it that this is called again for the next one."""
        ready, now = self._ready, self._clock()
        if self._departure_timer is not None:
            self._departure_timer.cancel()
        while ready:
            gone, latest = ready[0]
            if not gone.done():
                moment = min(max(self._departures.next(), self._cool_until), latest)
                if moment > now + _EARLY:
                    self._departure_timer = asyncio.get_running_loop().call_later(moment - now, self._let_go)
                    return
                gone.set_result(self._departures.leave(now))
            ready.popleft()

    def _gave_up(self, waiting: _Waiting) -> None:
        """A call was cancelled while it waited, or in the moment it was let in."""
        admitted = waiting.admitted
        if admitted.done() and not admitted.cancelled() and admitted.exception() is None:
            unused = GatePass(self, waiting.input, waiting.output, probe=False, departure=waiting.departure)
            unused.unused()
            unused.leave()
            return
        if not admitted.done() or admitted.cancelled():
            admitted.cancel()
            self._leave_line(waiting)
            self._let_in()

    def _leave_line(self, waiting: _Waiting) -> None:
        for supply, units in zip(self._supplies, waiting.costs, strict=True):
            supply.queued -= units

    def _turn_away(self) -> None:
        """Reject all queued calls: no more are admitted."""
        for waiting in self._line:
            if not waiting.admitted.done():
                self._leave_line(waiting)
                waiting.admitted.set_exception(self._rests())
        self._line.clear()
        for gone, _ in self._ready:
            if not gone.done():
                gone.set_exception(self._rests())
        self._ready.clear()
        for over in self._pausing:
            _finish(over)

    def _rests(self) -> DeploymentResting:
        if self._given_up is not None:
            return DeploymentGivenUp(str(self._given_up))
        return DeploymentResting(f"deployment {self._name} rests: it failed too often; it is probed until it answers")

    # -- what passes say

    def _give_back(self, requests: int, input_tokens: int, output_tokens: int) -> None:
        for supply in self._supplies:
            self._news.unused(supply.limit, supply.cost(requests, input_tokens, output_tokens))

    def _refused(self, retry_after: float | None) -> None:
        """The vendor answered 429. It is obeyed where it says for how long; otherwise a known limit is used more
        carefully from the next visit on, and an unknown one is left alone for a while."""
        if retry_after is not None or not self._supplies:
            self._cool(COOL if retry_after is None else retry_after)

    def _cool(self, seconds: float) -> None:
        """Admit no call for so many seconds."""
        now, seconds = self._clock(), min(seconds, LONGEST_WAIT)
        if now + seconds > self._cool_until:
            self._news.cool = max(self._news.cool, seconds)
            self._cool_to(now + seconds)
            self._visit_in(0.0)

    def _cool_to(self, moment: float) -> None:
        if moment > self._cool_until:
            self._cool_until = moment
            for supply in self._supplies:
                supply.purse.drop_before(moment)

    def _proven(self) -> None:
        """A model answers there: any number may be under way from now on."""
        if self._first_calls is not None:
            self._first_calls = None
            self._visit_in(0.0)

    def _interested(self) -> None:
        """A call would be sent if the circuit were closed: this process may probe."""
        self._interest = True
        self._visit_in(_BEAT)

    def _take_probe(self) -> bool:
        may = self._probe_until > self._clock()
        self._probe_until = 0.0 if may else self._probe_until
        return may

    # -- the messenger

    def _visit_in(self, seconds: float) -> None:
        """Have the messenger go within so many seconds."""
        if self._closed:
            return
        if self._messenger is None or self._wake is None:
            self._wake = asyncio.Event()
            self._messenger = asyncio.get_running_loop().create_task(self._run(self._wake))
        if seconds <= 0:
            self._wake.set()
            return
        at = self._clock() + seconds
        if self._alarm is not None:
            if self._alarm_at <= at:
                return
            self._alarm.cancel()
        self._alarm_at = at
        self._alarm = asyncio.get_running_loop().call_later(seconds, self._wake.set)

    async def _run(self, wake: asyncio.Event) -> None:
        """Go to the desk whenever there is reason to, and a last time when the gate closes."""
        while True:
            await wake.wait()
            wake.clear()
            if self._closed:
                await self._desk.ask(self._ask(leaving=True))
                return
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None
            ask = self._ask()
            self._take(ask, await self._desk.ask(ask))
            self._let_in()
            if ask.want or self._in_use or self._line or self._interest:
                self._visit_in(_BEAT)

    def _ask(self, *, leaving: bool = False) -> Ask:
        now = self._clock()
        news, self._news = self._news, Feedback(self._news.alive_at)
        self._measure(now)
        self._return_permits(now, news, all_of_them=leaving)
        return Ask(
            worker=self._worker,
            team=self._team,
            in_use=self._in_use,
            want=0 if leaving else self._slots_wanted(),
            units={} if leaving else self._units_wanted(),
            back=news.back,
            ok=news.ok,
            seconds=news.mean_seconds,
            failed=news.failed,
            streak=news.streak,
            limited=news.limited,
            late=news.late,
            cool=news.cool,
            probe=news.probe or self._probe_word(now),
            leaving=leaving,
        )

    def _slots_wanted(self) -> int:
        """For all who run and wait, and a few to come, so that they need not wait for a visit."""
        busy = self._in_use + len(self._line)
        return min(busy + max(4, self._in_use // 2), self._terms.concurrency) if busy else 0

    def _measure(self, now: float) -> None:
        passed = now - self._visited
        if passed >= _MEASURABLE:
            self._visited = now
            for supply in self._supplies:
                supply.measure(passed, min(1.0, passed / _BEAT))

    def _return_permits(self, now: float, news: Feedback, *, all_of_them: bool) -> None:
        """Without anybody in line, what will not be used soon goes back."""
        for supply in self._supplies:
            if all_of_them or (supply.idle and not self._line):
                news.unused(supply.limit, supply.purse.empty_after(now))

    def _units_wanted(self) -> dict[Limit, Wanted]:
        """Permits for those who have slots to go with them."""
        if self._circuit != "closed":
            return {}
        free = max(0, (self._terms.concurrency if self._slots is None else self._slots) - self._in_use)
        first = next((waiting for waiting in self._line if not waiting.admitted.done()), None)
        costs = first.costs if first and free else [0] * len(self._supplies)
        share = min(1.0, free / len(self._line)) if self._line else 0.0
        return {
            supply.limit: wanted
            for supply, cost in zip(self._supplies, costs, strict=True)
            if (wanted := supply.wanted(first=cost, share=share)) is not None
        }

    def _probe_word(self, now: float) -> ProbeWord:
        if self._circuit == "closed":
            return ""
        if self._probe_until > now:
            return ""
        if self._probe_until:
            self._probe_until = 0.0
            return "free"
        return "want" if self._interest else ""

    def _take(self, ask: Ask, grant: Grant) -> None:
        now = self._clock()
        helped = bool(grant.permits) or grant.slots > (self._slots or 0)
        self._not_before = 0.0 if helped else now + _PATIENCE
        self._slots = grant.slots if self._first_calls is None else min(grant.slots, self._first_calls)
        self._cool_to(grant.cool_until)
        self._catch_up = grant.catch_up
        for supply in self._supplies:
            if supply.limit in grant.permits:
                supply.purse.add(grant.permits[supply.limit])
        if ask.probe == "want":
            self._interest = False
        if grant.probe:
            self._probe_until = now + _PROBE_KEPT
        if grant.circuit != self._circuit:
            self._switch(grant, now)

    def _switch(self, grant: Grant, now: float) -> None:
        was, self._circuit = self._circuit, grant.circuit
        if was == "closed":
            for supply in self._supplies:
                supply.purse.empty_after(now)
            self._turn_away()
        if grant.circuit == "closed":
            self._probe_until, self._interest = 0.0, False
        # Whatever a listener raises is the loop's to report: calls wait for this coroutine.
        changed = CircuitChanged(self._name, grant.circuit, grant.reason, grant.changed)
        asyncio.get_running_loop().call_soon(self._on_change, changed)


def _finish(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
