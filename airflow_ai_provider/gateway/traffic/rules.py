"""The desk's rules as a whole: state and an ask in, a grant out, time passed in. ``rules.lua`` is the same for Redis.

Two invariants: slots granted never add up to more than the limit while all who hold some are heard of; and a desk that
lost its memory, which it learns from the first worker that remembers another one, gives nothing away before all permits
of that earlier life are used up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from airflow_ai_provider.gateway.traffic.adapt import Adaptive, adapt
from airflow_ai_provider.gateway.traffic.breaker import Circuit, judge, probe
from airflow_ai_provider.gateway.traffic.caution import Caution, adjust
from airflow_ai_provider.gateway.traffic.desk import Ask, Grant, Permits
from airflow_ai_provider.gateway.traffic.rates import Line, Schedule, give_back, reserve
from airflow_ai_provider.gateway.traffic.slots import Worker, forget_dead, split
from airflow_ai_provider.gateway.traffic.terms import Limit, Terms

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
