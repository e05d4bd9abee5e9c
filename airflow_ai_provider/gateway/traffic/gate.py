"""The gate before one deployment: calls wait here until they may leave, and are told when it makes no sense to wait.

``TrafficGate`` is what a process does with permits and slots that it has in hand; where they come from is the desk's
business (``LocalDesk``, ``RedisDesk``). Calls wait in one line, first come first served; a call costs no task and no
round trip. One coroutine fetches for all of them, a tenth of a second's worth at a time, and tells the desk how the
last calls went. For one event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from airflow_ai_provider.errors import DeploymentResting, VendorError
from airflow_ai_provider.gateway.traffic.desk import Ask, CircuitState, Desk, Grant, ProbeWord, Wanted
from airflow_ai_provider.gateway.traffic.purse import Purse
from airflow_ai_provider.gateway.traffic.rates import HORIZON
from airflow_ai_provider.gateway.traffic.retry_budget import RetryBudget
from airflow_ai_provider.gateway.traffic.signals import COOL, RateLimits, cool_down, said_by
from airflow_ai_provider.gateway.traffic.terms import Limit, Terms
from airflow_ai_provider.ledger.money import Usage

_BEAT = 0.25
"""Seconds between two visits of a busy gate to its desk, where nothing else makes it go."""
_PATIENCE = 0.05
"""Seconds before it asks again for what it was just refused."""
_PROBE_KEPT = 2.0
"""Seconds for which the right to send a probe waits for a call."""
_LONGEST_COOL = 3600.0
"""Whatever a vendor says."""
_EARLY = 0.0005
"""Timers are no finer than a millisecond."""


@dataclass(frozen=True, slots=True)
class CircuitChanged:
    """A deployment's circuit changed. Every process hears of it; ``here`` is true for the one whose calls did it."""

    deployment: str
    state: CircuitState
    reason: str
    here: bool


class Gate(Protocol):
    """One deployment's limits, shared by all workers."""

    @property
    def resting(self) -> bool:
        """Whether the circuit is open: fall back at once."""
        ...

    async def enter(self, *, input_tokens: int, output_tokens: int, patient: bool = False) -> Pass:
        """Wait until a call of about so many tokens may leave. Never refuses for a limit.

        Raises ``DeploymentResting`` while the circuit is open, also to who is waiting when it opens; who is ``patient``
        waits for that as well.
        """
        ...

    async def pause(self, seconds: float) -> None:
        """A retry's back-off. Ends early when the circuit opens."""
        ...

    def may_retry(self) -> bool:
        """Whether the retry budget has room; it is then taken."""
        ...

    async def close(self) -> None: ...


class Pass:
    """The right to send one call. One of ``answered``, ``failed`` and ``unused``, and then always ``leave``."""

    __slots__ = ("_gate", "_input", "_output", "_probe")

    def __init__(self, gate: TrafficGate, input_tokens: int, output_tokens: int, *, probe: bool) -> None:
        self._gate = gate
        self._input = input_tokens
        self._output = output_tokens
        self._probe = probe

    def answered(self, *, usage: Usage | None, limits: RateLimits | None, seconds: float) -> None:
        """The vendor answered, and said what it charged and what its limits are, if it did."""
        self._gate._went_well(seconds, self._told())
        if usage is not None:
            self._gate._used(self._input - usage.input, self._output - usage.output)
        if limits is not None and (wait := cool_down(limits, self._input + self._output)):
            self._gate._cool(wait)

    def failed(self, error: VendorError, seconds: float) -> None:
        """The attempt failed. Tokens that were surely not charged go back; the request itself counts."""
        word = said_by(error)
        if word == "down":
            self._gate._went_down(self._told())
        else:
            self._gate._went_well(seconds, self._told(), limited=word == "limited")
        if not error.billed:
            self._gate._used(self._input, self._output)
        if wait := error.retry_after or (COOL if word == "limited" else 0.0):
            self._gate._cool(wait)

    def unused(self) -> None:
        """Nothing was sent: everything goes back."""
        self._gate._used(self._input, self._output, requests=1)
        self._gate._probed("free", self._told())

    def leave(self) -> None:
        """The slot is free again."""
        self._gate._probed("free", self._told())
        self._gate._left()

    def _told(self) -> bool:
        """Whether this is a probe nothing was said of yet."""
        probe, self._probe = self._probe, False
        return probe


class _Waiting:
    """A call in line."""

    __slots__ = ("admitted", "input", "output", "patient")

    def __init__(self, admitted: asyncio.Future[bool], input_tokens: int, output_tokens: int, patient: bool) -> None:
        self.admitted = admitted
        """Its result says whether it goes as a probe."""
        self.input = input_tokens
        self.output = output_tokens
        self.patient = patient


class TrafficGate:
    """The gate of one process; see ``Gate``."""

    def __init__(
        self,
        name: str,
        terms: Terms,
        team: str,
        desk: Desk,
        *,
        on_change: Callable[[CircuitChanged], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._terms = terms
        self._team = terms.team(team)
        self._desk = desk
        self._on_change = on_change
        self._clock = clock
        self._worker = uuid.uuid4().hex[:16]
        self._retries = RetryBudget(clock())

        self._line: deque[_Waiting] = deque()
        self._pausing: set[asyncio.Future[None]] = set()
        self._purses: dict[Limit, Purse] = {limit: Purse() for limit in terms.rates}
        self._queued: dict[Limit, float] = dict.fromkeys(terms.rates, 0.0)
        self._in_use = 0
        self._slots: int | None = None
        self._cool_until = 0.0
        self._circuit: CircuitState = "closed"
        self._probe_until = 0.0
        """Until then the next call may go as a probe."""
        self._interest = False
        """Somebody would have sent something since the last visit."""

        self._news = _News()
        self._entered: dict[Limit, float] = dict.fromkeys(terms.rates, 0.0)
        """Units that were taken since the last visit …"""
        self._pace: dict[Limit, float] = dict.fromkeys(terms.rates, 0.0)
        """… and per second, lately."""
        self._visited = clock()
        self._not_before = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._wake: asyncio.Event | None = None
        self._messenger: asyncio.Task[None] | None = None
        self._closed = False

    # -- what callers do

    @property
    def resting(self) -> bool:
        """Whether a call would be turned away. Asking counts as interest: who asks may be given a probe to send."""
        if self._circuit == "closed" or self._probe_until > self._clock():
            return False
        self._interested()
        return True

    async def enter(self, *, input_tokens: int, output_tokens: int, patient: bool = False) -> Pass:
        """See ``Gate.enter``."""
        if self._circuit != "closed" and self._take_probe():
            self._admit()
            return Pass(self, input_tokens, output_tokens, probe=True)
        if self._circuit != "closed" and not patient:
            self._interested()
            raise self._rests()
        admitted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(admitted, input_tokens, output_tokens, patient)
        self._line.append(waiting)
        for limit in self._queued:
            self._queued[limit] += _units(limit, waiting)
        if len(self._line) == 1:
            self._let_in()
        try:
            probe = admitted.result() if admitted.done() else await admitted
        except asyncio.CancelledError:
            self._gave_up(waiting)
            raise
        return Pass(self, input_tokens, output_tokens, probe=probe)

    async def pause(self, seconds: float) -> None:
        """See ``Gate.pause``."""
        if self._circuit != "closed":
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

    def may_retry(self) -> bool:
        """See ``Gate.may_retry``."""
        return self._retries.take(self._clock())

    async def close(self) -> None:
        """Give everything back, and end. Who still waits is turned away."""
        self._closed = True
        for handle in (self._timer, self._alarm):
            if handle is not None:
                handle.cancel()
        self._turn_away(everybody=True)
        if self._messenger is not None and self._wake is not None:
            self._wake.set()
            await self._messenger
        await self._desk.close()

    # -- the line

    def _let_in(self) -> None:
        """Let everybody in who may go now; see to it that this is called again when the next one may."""
        line, now = self._line, self._clock()
        for purse in self._purses.values():
            purse.drop_stale(now)
        while line:
            first = line[0]
            if first.admitted.done():  # it has given up
                line.popleft()
                continue
            if self._circuit != "closed":
                if not self._take_probe():
                    return self._interested()
                self._pop(probe=True)
                continue
            if self._slots is None or self._in_use >= self._slots:
                return self._visit_in(self._not_before - now)
            moment = self._moment(first)
            if moment is None:
                return self._visit_in(self._not_before - now)
            if moment > now + _EARLY:
                self._look_again(moment - now)
                break
            self._pop(probe=False)
        if any(self._runs_low(limit, purse) for limit, purse in self._purses.items()):
            self._visit_in(self._not_before - now)
        return None

    def _runs_low(self, limit: Limit, purse: Purse) -> bool:
        """Whether to fetch more permits before the last ones are used."""
        return purse.left < purse.batch / 2 and (self._queued[limit] > 0 or self._pace[limit] * HORIZON >= 1)

    def _moment(self, waiting: _Waiting) -> float | None:
        """When a call may leave; ``None`` where there are too few permits."""
        latest = self._cool_until
        for limit, purse in self._purses.items():
            moment = purse.moment(_units(limit, waiting))
            if moment is None:
                return None
            latest = max(latest, moment)
        return latest

    def _pop(self, *, probe: bool) -> None:
        waiting = self._line.popleft()
        for limit, purse in self._purses.items():
            units = _units(limit, waiting)
            self._queued[limit] -= units
            self._entered[limit] += units
            if not probe:
                purse.take(units)
        self._admit()
        waiting.admitted.set_result(probe)

    def _admit(self) -> None:
        self._in_use += 1
        self._retries.sent()

    def _gave_up(self, waiting: _Waiting) -> None:
        """A call was cancelled while it waited, or in the moment it was let in."""
        if waiting.admitted.done() and not waiting.admitted.cancelled() and not waiting.admitted.exception():
            unused = Pass(self, waiting.input, waiting.output, probe=waiting.admitted.result())
            unused.unused()
            unused.leave()
            return
        waiting.admitted.cancel()
        for limit in self._queued:
            self._queued[limit] -= _units(limit, waiting)
        self._let_in()

    def _look_again(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._let_in)

    def _turn_away(self, *, everybody: bool = False) -> None:
        """Tell those in line that the circuit is open; the patient stay."""
        staying: deque[_Waiting] = deque()
        for waiting in self._line:
            if waiting.admitted.done():
                continue
            if waiting.patient and not everybody:
                staying.append(waiting)
                continue
            for limit in self._queued:
                self._queued[limit] -= _units(limit, waiting)
            waiting.admitted.set_exception(self._rests())
        self._line = staying
        for over in self._pausing:
            _finish(over)

    def _rests(self) -> DeploymentResting:
        return DeploymentResting(f"deployment {self._name} rests: it failed too often; it is probed until it answers")

    # -- what passes tell

    def _went_well(self, seconds: float, probe: bool, *, limited: bool = False) -> None:
        news = self._news
        news.ok += 0 if limited else 1
        news.limited += limited
        news.seconds += 0.0 if limited else seconds
        news.streak = 0
        self._probed("ok", probe)
        if limited and self._terms.adaptive:
            self._visit_in(0.0)

    def _went_down(self, probe: bool) -> None:
        self._news.failed += 1
        self._news.streak += 1
        self._probed("failed", probe)
        if self._circuit == "closed":
            self._visit_in(0.0)

    def _used(self, input_tokens: int, output_tokens: int, requests: int = 0) -> None:
        """Units of a pass that were not used; negative where it used more."""
        back = self._news.back
        for limit in self._purses:
            units = _of(limit, input_tokens, output_tokens, requests)
            if units:
                back[limit] = back.get(limit, 0.0) + units

    def _cool(self, seconds: float) -> None:
        """Nobody may send for so long."""
        now, seconds = self._clock(), min(seconds, _LONGEST_COOL)
        if now + seconds <= self._cool_until:
            return
        self._news.cool = max(self._news.cool, seconds)
        self._cool_to(now + seconds)
        if seconds > _PATIENCE:
            self._visit_in(0.0)

    def _cool_to(self, moment: float) -> None:
        if moment > self._cool_until:
            self._cool_until = moment
            for purse in self._purses.values():
                purse.drop_before(moment)

    def _probed(self, word: ProbeWord, probe: bool) -> None:
        if probe:
            self._news.probe = word
            self._visit_in(0.0)

    def _interested(self) -> None:
        """Somebody would send if the deployment did not rest: worth a probe from here."""
        self._interest = True
        self._visit_in(_BEAT)

    def _take_probe(self) -> bool:
        may = self._probe_until > self._clock()
        self._probe_until = 0.0
        return may

    def _left(self) -> None:
        self._in_use -= 1
        if self._line:
            self._let_in()

    # -- the messenger

    def _visit_in(self, seconds: float) -> None:
        """Have the messenger go within so many seconds."""
        if self._closed:
            return
        if self._messenger is None:
            self._wake = asyncio.Event()
            self._messenger = asyncio.get_running_loop().create_task(self._run(self._wake))
        assert self._wake is not None
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
        self._measure(now)
        news, self._news = self._news, _News()
        self._give_up_permits(now, news, all_of_them=leaving)
        open_ = self._circuit == "closed"
        want = 0 if leaving else self._in_use + len(self._line) + (self._headroom() if self._busy() else 0)
        return Ask(
            worker=self._worker,
            team=self._team,
            in_use=self._in_use,
            want=min(want, self._terms.concurrency),
            units=self._wanted() if open_ and not leaving else {},
            back=news.back,
            ok=news.ok,
            seconds=news.seconds / news.ok if news.ok else 0.0,
            failed=news.failed,
            streak=news.streak,
            limited=news.limited,
            cool=news.cool,
            probe=self._probe_word(news, now),
            leaving=leaving,
        )

    def _busy(self) -> bool:
        return bool(self._in_use or self._line)

    def _headroom(self) -> int:
        """Slots for calls to come, so that they need not wait for a visit."""
        return max(4, self._in_use // 2)

    def _measure(self, now: float) -> None:
        """How many units a second are used."""
        passed = now - self._visited
        if passed < 0.02:
            return
        self._visited = now
        weight = min(1.0, passed / _BEAT)
        for limit, units in self._entered.items():
            self._pace[limit] += weight * (units / passed - self._pace[limit])
            self._entered[limit] = 0.0

    def _give_up_permits(self, now: float, news: _News, *, all_of_them: bool) -> None:
        """Without anybody in line, what will not be used soon goes back."""
        for limit, purse in self._purses.items():
            purse.drop_stale(now)
            if purse.left and not self._line and (all_of_them or self._pace[limit] * HORIZON < purse.left / 4):
                news.back[limit] = news.back.get(limit, 0.0) + purse.empty_after(now)

    def _wanted(self) -> dict[Limit, Wanted]:
        """For those who could leave if they had permits, and for those who will come before the next visit."""
        free = (self._terms.concurrency if self._slots is None else self._slots) - self._in_use
        share = min(1.0, max(0, free) / len(self._line)) if self._line else 0.0
        first = next((waiting for waiting in self._line if not waiting.admitted.done()), None)
        wanted = {}
        for limit, purse in self._purses.items():
            soon = int(self._pace[limit] * HORIZON)
            least = max(0.0, _units(limit, first) - purse.left) if first and free > 0 else 0.0
            units = max(least, math.ceil(self._queued[limit] * share) + soon - purse.left)
            if units > 0:
                wanted[limit] = Wanted(units, least or min(units, 1.0))
        return wanted

    def _probe_word(self, news: _News, now: float) -> ProbeWord:
        if news.probe:
            return news.probe
        if self._circuit == "closed":
            return ""
        if self._probe_until:
            if self._probe_until > now:
                return ""
            self._probe_until = 0.0
            return "free"
        return "want" if self._interest else ""

    def _take(self, ask: Ask, grant: Grant) -> None:
        now = self._clock()
        more = bool(grant.permits) or grant.slots > (self._slots or 0)
        self._not_before = 0.0 if more else now + _PATIENCE
        self._slots = grant.slots
        self._cool_to(grant.cool_until)
        for limit, permits in grant.permits.items():
            self._purses[limit].add(permits)
        if ask.probe == "want":
            self._interest = False
        if grant.probe:
            self._probe_until = now + _PROBE_KEPT
        if grant.circuit != self._circuit:
            self._switch(grant)

    def _switch(self, grant: Grant) -> None:
        was, self._circuit = self._circuit, grant.circuit
        if was == "closed":
            for purse in self._purses.values():
                purse.empty_after(self._clock())
            self._turn_away()
        if grant.circuit == "closed":
            self._probe_until, self._interest = 0.0, False
        self._on_change(CircuitChanged(self._name, grant.circuit, grant.reason, grant.changed))


class _News:
    """What happened since the last visit."""

    __slots__ = ("back", "cool", "failed", "limited", "ok", "probe", "seconds", "streak")

    def __init__(self) -> None:
        self.ok = 0
        self.seconds = 0.0
        self.failed = 0
        self.streak = 0
        self.limited = 0
        self.cool = 0.0
        self.probe: ProbeWord = ""
        self.back: dict[Limit, float] = {}


def _units(limit: Limit, waiting: _Waiting) -> float:
    return _of(limit, waiting.input, waiting.output, 1)


def _of(limit: Limit, input_tokens: int, output_tokens: int, requests: int) -> float:
    match limit:
        case "requests":
            return requests
        case "tokens":
            return input_tokens + output_tokens
        case "input":
            return input_tokens
        case "output":
            return output_tokens


def _finish(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
