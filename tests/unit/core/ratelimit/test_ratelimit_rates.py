"""Permits as values: no window ever holds more than the rate allows, whoever asks, in whatever portions."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.ratelimit.feedback import CEILING, FLOOR, SHARE, RetryBudget
from airflow_ai_provider.core.ratelimit.limits import Permits, Wanted
from airflow_ai_provider.core.ratelimit.permits import BURST, HORIZON, HeldPermits, Line, Schedule, give_back, reserve

ALONE = {"": 1.0}


@dataclass
class Sent:
    """What left under permits: pairs of moment and units."""

    units: list[tuple[float, float]] = field(default_factory=list)

    def spend(self, permits: Permits, size: float) -> None:
        """Use permits up in calls of ``size``, each at the very moment from which it may go."""
        left, moment = permits.units, permits.start
        while left > 1e-9:
            taken = min(size, left)
            moment += taken * permits.interval
            self.units.append((moment, taken))
            left -= taken

    def most_in(self, window: float) -> float:
        events = sorted(self.units)
        return max(sum(n for at, n in events if start <= at < start + window) for start, _ in events)


asks = st.lists(
    st.tuples(st.floats(0, 0.5), st.integers(1, 200), st.integers(1, 20), st.integers(1, 4)), min_size=1, max_size=60
)


@given(st.sampled_from([1.0, 10.0, 100.0]), asks, st.sampled_from([0.5, 1.0, 5.0]))
def test_no_window_has_more_than_the_rate_allows_and_one_burst(
    rate: float, asked: list[tuple[float, int, int, int]], window: float
) -> None:
    schedule, now, sent, largest = Schedule(), 1000.0, Sent(), 0
    for gap, units, first, workers in asked:
        now += gap
        size = min(first, units)
        largest = max(largest, size)
        wanted = Wanted(units, size)
        permits = reserve(schedule, wanted, rate=rate, shares=ALONE, team="", workers=workers, earliest=0, now=now)
        assert size <= permits.units <= units
        sent.spend(permits, size)
    assert sent.most_in(window) <= rate * window + rate * BURST + 2 * largest + 1e-6


@given(asks, st.sampled_from([0.1, 0.5, 0.9]))
def test_teams_together_do_not_exceed_it_either(asked: list[tuple[float, int, int, int]], share: float) -> None:
    rate, shares = 100.0, {"a": share, "b": 1 - share}
    schedule, now, sent = Schedule(), 1000.0, Sent()
    for number, (gap, units, _, workers) in enumerate(asked):
        now += gap / 10
        team = "ab"[number % 2 if units % 3 else 0]
        permits = reserve(
            schedule, Wanted(units, 1), rate=rate, shares=shares, team=team, workers=workers, earliest=0, now=now
        )
        sent.spend(permits, 1)
    assert sent.most_in(1.0) <= rate * (1.0 + BURST + 2 * HORIZON) + 4


@given(asks)
def test_who_keeps_to_the_limit_never_waits(asked: list[tuple[float, int, int, int]]) -> None:
    rate, schedule, now = 10.0, Schedule(), 1000.0
    for gap, _, size, _ in asked:
        now += gap + size / rate
        wanted = Wanted(size, size)
        permits = reserve(schedule, wanted, rate=rate, shares=ALONE, team="", workers=1, earliest=0, now=now)
        assert permits.start + permits.interval * size <= now + 1e-6


def test_one_worker_takes_no_more_than_a_tenth_of_a_second_ahead() -> None:
    for workers, units in ((1, 100), (4, 25), (1000, 1)):
        permits = reserve(
            Schedule(), Wanted(10_000, 1), rate=1000, shares=ALONE, team="", workers=workers, earliest=0, now=50.0
        )
        assert permits.units == units


def test_permits_are_consecutive_places_whoever_gets_them() -> None:
    schedule = Schedule()
    got = [
        reserve(schedule, Wanted(5, 1), rate=100, shares=ALONE, team="", workers=1, earliest=0, now=50.0)
        for _ in range(3)
    ]
    for before, after in itertools.pairwise(got):
        assert after.start == pytest.approx(before.start + before.units * before.interval)


def test_a_team_that_was_held_up_has_the_places_of_that_time_and_an_idle_one_has_not() -> None:
    for units, start in ((500, 50.1), (5, 50.48)):
        schedule = Schedule()
        said: dict[str, Any] = {"rate": 100, "shares": ALONE, "team": "", "workers": 1, "earliest": 0, "catch_up": 0.5}
        reserve(schedule, Wanted(units, 1), now=50.02, **said)
        permits = reserve(schedule, Wanted(5, 1), now=50.5, **said)
        assert permits.start == pytest.approx(start, abs=0.011)


def test_units_given_back_need_not_be_waited_for_and_debts_are() -> None:
    for units, seconds in ((6, 0.04), (-10, 0.2)):
        schedule = Schedule(lines={"": Line()})
        give_back(schedule.lines[""], units, 100)
        reserve(schedule, Wanted(10, 1), rate=100, shares=ALONE, team="", workers=1, earliest=60, now=50.0)
        assert schedule.lines[""].until == pytest.approx(60 + seconds)


def test_only_a_seconds_worth_is_kept_of_what_is_given_back() -> None:
    line = Line()
    give_back(line, 1e9, 100)
    assert line.credit == 100


# -- permits in hand


def test_permits_in_hand_are_used_in_order_and_across_portions() -> None:
    purse = HeldPermits()
    purse.add(Permits(10.0, 1.0, 2))
    purse.add(Permits(20.0, 0.5, 4))
    assert purse.moment(1) == 11
    assert purse.moment(3) == 20.5
    assert purse.moment(7) is None
    purse.take(3)
    assert purse.left == 3
    assert purse.moment(1) == 21
    purse.take(3)
    assert purse.left == 0
    assert purse.moment(1) is None
    assert purse.moment(0) == -math.inf


def test_a_cool_down_takes_what_would_have_been_used_in_it() -> None:
    purse = HeldPermits()
    purse.add(Permits(10.0, 0.1, 10))
    purse.drop_before(10.45)
    assert purse.left == 6
    assert purse.moment(1) == pytest.approx(10.5)


def test_only_what_is_still_to_come_goes_back() -> None:
    purse = HeldPermits()
    purse.add(Permits(10.0, 0.1, 10))
    assert purse.empty_after(10.45) == 6
    assert purse.left == 0


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1), st.integers(1, 20)), max_size=20), st.floats(0, 40))
def test_nothing_is_counted_twice_or_lost_in_the_purse(parts: list[tuple[int, float, int]], moment: float) -> None:
    purse, start = HeldPermits(), 0.0
    for units, interval, size in parts:
        purse.add(Permits(start, interval, units))
        start += units * interval
        if purse.moment(size) is not None:
            before = purse.left
            purse.take(size)
            assert purse.left == pytest.approx(before - size)
    before = purse.left
    purse.drop_before(moment)
    assert -1e-9 <= purse.left <= before
    if purse.left >= 1:
        assert (purse.moment(1) or 0) >= moment - 1e-6 or purse.left == before


# -- the retry budget


@given(st.integers(0, 2000))
def test_retries_are_a_share_of_what_is_sent_and_a_few(calls: int) -> None:
    budget, retries = RetryBudget(0.0), 0
    for _ in range(calls):
        budget.sent()
    while budget.take(0.0):
        budget.sent()  # the retry itself
        retries += 1
    assert retries <= FLOOR + SHARE * calls
    assert retries >= min(CEILING, FLOOR + SHARE * calls) - 1.5


def test_a_quiet_minute_fills_the_floor_up_again() -> None:
    budget = RetryBudget(0.0)
    while budget.take(0.0):
        budget.sent()
    assert budget.take(30.0)
    for _ in range(3):
        budget.take(30.0)
    again = 0
    while budget.take(90.0):
        again += 1
    assert 7 <= again <= FLOOR
