"""The limiter's rules as pure functions: slots, adaptive concurrency, and all of them together.

How many at once: slots divided among workers by what they want and their team's share (weighted max-min fairness).

Workers hold slots on a lease that each of their visits renews; those of a worker that is not seen again come free.

How many at once where no limit is known: additive increase, multiplicative decrease, below the policy's ceiling.

It starts at the ceiling. A 429 takes it down, as does latency that has doubled against its long average (the gradient
of Netflix' concurrency-limits, with its tolerance of 2); every round of good answers adds one.

The desk's rules as a whole: state and an ask in, a grant out, time passed in. ``rules.lua`` is the same for Redis.

Two invariants: slots granted never add up to more than the limit while all who hold some are heard of; and a desk that
lost its memory, which it learns from the first worker that remembers another one, gives nothing away before all permits
of that earlier life are used up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from airflow_ai_provider.core.ratelimit.feedback import Caution, Circuit, adjust, judge, probe
from airflow_ai_provider.core.ratelimit.limits import Ask, Grant, Limit, Permits, Terms
from airflow_ai_provider.core.ratelimit.permits import Line, Schedule, give_back, reserve

LEASE = 10.0
"""Seconds without a sign of life after which a worker counts as dead."""
TURN = 5.0
"""Seconds after which slots that cannot be divided go to others."""
_NO_SHARE = 1e-6
"""Weight of a team that only another version of the policy knows."""


@dataclass(slots=True)
class Worker:
    team: str
    seen: float
    want: int = 0
    slots: int = 0
    """What it may have under way, or has."""


def forget_dead(workers: dict[str, Worker], now: float) -> None:
    for name in [name for name, worker in workers.items() if worker.seen < now - LEASE]:
        del workers[name]


def split(limit: int, workers: Mapping[str, Worker], shares: Mapping[str, float], now: float) -> dict[str, int]:
    """How many slots each worker should have; together as many as there are, or are wanted."""
    wanting = {name: worker for name, worker in workers.items() if worker.want > 0}
    if not wanting:
        return {}
    sizes: dict[str, int] = {}
    for worker in wanting.values():
        sizes[worker.team] = sizes.get(worker.team, 0) + 1
    weights = {name: shares.get(worker.team, _NO_SHARE) / sizes[worker.team] for name, worker in wanting.items()}
    return _whole(_fair(float(limit), wanting, weights), now)


def _fair(left: float, wanting: Mapping[str, Worker], weights: Mapping[str, float]) -> dict[str, float]:
    """No worker gets more than it wants; the rest is divided by weight."""
    weight = sum(weights.values())
    fair = {}
    for name in sorted(wanting, key=lambda name: (wanting[name].want / weights[name], name)):
        fair[name] = min(float(wanting[name].want), left * weights[name] / weight)
        left -= fair[name]
        weight -= weights[name]
    return fair


def _whole(fair: Mapping[str, float], now: float) -> dict[str, int]:
    """Whole numbers that add up; whom rounding favours changes every ``TURN``."""
    names = sorted(fair)
    first = int(now / TURN) % len(names)
    whole, total, given = {}, 0.0, 0
    for name in names[first:] + names[:first]:
        total += fair[name]
        whole[name] = math.floor(total + 1e-6) - given
        given += whole[name]
    return whole


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


SETTLE = 0.5
"""Seconds in which a desk without memory gives nothing: by then permits of before are used up, and all are back."""

LONG_COOL = 10.0
"""Seconds of a cool-down after which a single call finds out whether it is over, before all go on."""


@dataclass(slots=True)
class State:
    """All that a desk remembers of one deployment."""

    epoch: str
    """Names this memory."""
    adaptive: Adaptive
    hold_until: float = 0.0
    cool_until: float = 0.0
    testing: bool = False
    """Whether one call at a time is let out, until one is answered: the last cool-down was a long one."""
    schedules: dict[Limit, Schedule] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    circuit: Circuit = field(default_factory=Circuit)
    caution: Caution = field(default_factory=Caution)


def new_state(terms: Terms, epoch: str) -> State:
    return State(epoch, Adaptive(float(terms.concurrency)))


def serve(state: State, terms: Terms, ask: Ask, now: float) -> Grant:
    """Take in what a worker says, and grant what it wants as far as may be."""
    if ask.epoch and ask.epoch != state.epoch:
        state.hold_until = max(state.hold_until, now + SETTLE)
        ask = replace(ask, back=debts(ask.back))
    if ask.cool:
        state.cool_until = max(state.cool_until, now + ask.cool)
        state.testing = state.testing or ask.cool >= LONG_COOL
    elif ask.ok and now >= state.cool_until:
        state.testing = False
    if terms.adaptive:
        adapt(
            state.adaptive,
            ceiling=terms.concurrency,
            ok=ask.ok,
            seconds=ask.seconds,
            limited=ask.limited,
            now=now,
        )
    else:
        adjust(state.caution, ok=ask.ok, limited=ask.limited, late=ask.late, now=now)
    circuit, before = state.circuit, state.circuit.state
    judge(circuit, terms.breaker, ok=ask.ok, failed=ask.failed, streak=ask.streak, now=now)
    may_probe = probe(circuit, terms.breaker, worker=ask.worker, word=ask.probe, cool_until=state.cool_until, now=now)
    _take_back(state, terms, ask)
    slots = _slots(state, terms, ask, now)
    return Grant(
        epoch=state.epoch,
        # No permit before there are slots: those whose moments pass until then would all be used at once.
        permits=_permits(state, terms, ask, now) if circuit.state == "closed" and now >= state.hold_until else {},
        slots=slots,
        cool_until=state.cool_until,
        circuit=circuit.state,
        changed=circuit.state != before,
        reason=circuit.reason,
        probe=may_probe,
        probe_at=circuit.probe_at,
        catch_up=state.caution.catch_up,
        fraction=_fraction(state, terms, ask),
    )


def debts(back: Mapping[Limit, float]) -> dict[Limit, float]:
    """Of what is given back, what was used beyond what was permitted. Unused permits are worth something only to the
    memory that gave them: to another one they would be permits on top."""
    return {limit: units for limit, units in back.items() if units < 0}


def _take_back(state: State, terms: Terms, ask: Ask) -> None:
    for limit, units in ask.back.items():
        schedule = state.schedules.setdefault(limit, Schedule())
        line = schedule.lines.setdefault(ask.team, Line())
        give_back(line, units, terms.rates[limit] * terms.shares[ask.team])


def _slots(state: State, terms: Terms, ask: Ask, now: float) -> int:
    forget_dead(state.workers, now)
    if ask.leaving:
        state.workers.pop(ask.worker, None)
        return 0
    me = state.workers.setdefault(ask.worker, Worker(ask.team, now))
    me.seen, me.want = now, ask.want
    limit = 1 if state.testing else math.floor(state.adaptive.limit) if terms.adaptive else terms.concurrency
    of_others = sum(worker.slots for worker in state.workers.values()) - me.slots
    fair = split(limit, state.workers, terms.shares, now).get(ask.worker, 0)
    granted = 0 if now < state.hold_until else max(0, min(fair, limit - of_others))
    me.slots = max(granted, ask.in_use)
    return granted


def _permits(state: State, terms: Terms, ask: Ask, now: float) -> dict[Limit, Permits]:
    mates = sum(worker.want > 0 and worker.team == ask.team for worker in state.workers.values())
    return {
        limit: reserve(
            state.schedules.setdefault(limit, Schedule()),
            wanted,
            rate=terms.rates[limit] * state.caution.share,
            shares=terms.shares,
            team=ask.team,
            workers=max(1, mates),
            earliest=state.cool_until,
            now=now,
            catch_up=state.caution.catch_up,
        )
        for limit, wanted in ask.units.items()
        if wanted.units > 0
    }


def _fraction(state: State, terms: Terms, ask: Ask) -> float:
    teams = {worker.team for worker in state.workers.values()} | {ask.team}
    mates = sum(worker.team == ask.team for worker in state.workers.values())
    return terms.shares[ask.team] / sum(terms.shares.get(team, 0.0) for team in teams) / max(1, mates)
