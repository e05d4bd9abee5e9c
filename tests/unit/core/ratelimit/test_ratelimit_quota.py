"""How much of a vendor's limit is used, and how much refused, by processes that are held up; on a clock that jumps."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ratelimit_simulation import PER_SECOND, Circumstances, StrictVendor, random_stalls, simulate

from airflow_ai_provider.core.ratelimit.feedback import CATCH_UP, LEAST, STEP, Caution, adjust
from airflow_ai_provider.core.ratelimit.permits import WINDOW, Departures
from airflow_ai_provider.testing.limits import FixedWindow, SlidingWindow, TokenBucket, Window

USED, REFUSED = 0.96, 0.002
WINDOWS: dict[str, Callable[[], Window]] = {
    "sliding window": lambda: SlidingWindow(PER_SECOND, 1.0),
    "fixed window": lambda: FixedWindow(PER_SECOND, 1.0),
    "token bucket of a second": lambda: TokenBucket(PER_SECOND, 1.0, PER_SECOND),
}
LEAKY: dict[str, Callable[[], Window]] = {
    f"leaky bucket of {burst}": lambda burst=burst: TokenBucket(PER_SECOND, 1.0, burst)  # type: ignore[misc]
    for burst in (5, 10)
}


def held_up(seed: int, seconds: float, *, every: float = 6.0, longest: float = 0.3) -> list[tuple[float, float]]:
    return random_stalls(random.Random(seed), every=every, longest=longest, until=seconds)


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("window", WINDOWS | LEAKY)
def test_a_limit_is_used_by_processes_that_prepare_their_calls_unequally_long(window: str, processes: int) -> None:
    vendor = StrictVendor((WINDOWS | LEAKY)[window]())
    result = simulate(vendor, Circumstances(processes))
    assert result.used >= (0.95 if window in LEAKY else USED)
    assert result.refused <= REFUSED


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("window", WINDOWS)
def test_what_a_stall_held_up_is_neither_lost_nor_refused(window: str, seed: int) -> None:
    vendor, seconds = StrictVendor(WINDOWS[window]()), 40.0
    result = simulate(vendor, Circumstances(seconds=seconds, stalls=held_up(seed, seconds), seed=seed))
    assert result.used >= USED
    assert result.refused <= REFUSED


@pytest.mark.parametrize("window", WINDOWS)
def test_a_stall_of_several_processes_costs_little(window: str) -> None:
    vendor = StrictVendor(WINDOWS[window]())
    result = simulate(vendor, Circumstances(4, stalls=[(1010.0, 0.15), (1030.0, 0.1), (1045.0, 0.1)]))
    assert result.used >= USED
    assert result.refused <= REFUSED


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_stalls_of_several_processes_are_refused_a_little(window: str, at_once: bool) -> None:
    """Each process makes up for its own late calls only, so their sum may pass the limit for a moment."""
    vendor, seconds = StrictVendor(WINDOWS[window]()), 40.0
    together = held_up(1, seconds, every=5.0) if at_once else []
    apart = [] if at_once else [held_up(10 + process, seconds, every=5.0) for process in range(4)]
    result = simulate(vendor, Circumstances(4, seconds=seconds, stalls=together, own_stalls=apart))
    assert result.used >= 0.94
    assert result.refused <= 0.006


@pytest.mark.parametrize("window", LEAKY)
def test_a_vendor_that_allows_no_burst_is_found_out_and_loses_no_more_than_the_stalls(window: str) -> None:
    vendor, seconds = StrictVendor(LEAKY[window]()), 300.0
    stalls = held_up(1, seconds)
    result = simulate(vendor, Circumstances(seconds=seconds, stalls=stalls))
    assert result.used >= USED - sum(length for _, length in stalls) / seconds - 0.02
    assert result.refused <= REFUSED


def test_calls_that_a_vendor_reaches_late_widen_the_margin_and_are_refused_no_more() -> None:
    lag = [(1000.0 + at / 2, 1000.0 + at / 2 + 0.02) for at in range(2, 240)]
    vendor = StrictVendor(SlidingWindow(PER_SECOND, 1.0), lag=lag)
    result = simulate(vendor, Circumstances(seconds=120.0))
    assert result.used >= 0.95
    assert result.refused <= 2 * REFUSED
    assert sum(at >= 1090.0 for at in vendor.refused) <= REFUSED * 30 * PER_SECOND


@pytest.mark.parametrize("tells_when", [False, True])
@pytest.mark.parametrize("real", [50, 80])
def test_a_limit_lower_than_the_policy_says_is_found(real: int, tells_when: bool) -> None:
    vendor = StrictVendor(SlidingWindow(real, 1.0), tells_when=tells_when)
    simulate(vendor, Circumstances(seconds=80.0))
    taken, refused = (sum(at >= 1030.0 for at in some) for some in (vendor.taken, vendor.refused))
    assert taken >= 0.8 * real * 50
    assert refused <= 0.08 * taken


def test_a_429_stops_nobody_where_the_limit_is_known() -> None:
    vendor = StrictVendor(SlidingWindow(PER_SECOND, 1.0), refuses=frozenset({500}))
    so = Circumstances(seconds=20.0)
    undisturbed = simulate(StrictVendor(SlidingWindow(PER_SECOND, 1.0)), so)
    result = simulate(vendor, so)
    assert result.used >= undisturbed.used - 0.02


# -- the controller


def refuse(caution: Caution, now: float, *, ok: int = 100, limited: int = 1, late: int = 0) -> None:
    adjust(caution, ok=ok, limited=limited, late=late, now=now)


def test_a_single_429_takes_a_little_and_only_once_a_round() -> None:
    caution = Caution()
    refuse(caution, 100.0)
    once = caution.share
    assert once == pytest.approx(Caution().share * (1 - max(STEP, 1 / 111)))
    for part in range(1, 10):
        refuse(caution, 100.0 + part / 10, ok=0)
    assert caution.share <= once + 0.001
    assert caution.share >= once - 0.001


def test_it_comes_down_to_what_the_vendor_takes() -> None:
    caution, now = Caution(), 100.0
    for _ in range(30):
        sent = 1000 * caution.share / 10
        refuse(caution, now, ok=min(20, int(sent)), limited=max(0, int(sent) - 20))
        now += 0.1
    assert 0.15 <= caution.share <= 0.3
    for _ in range(1000):
        refuse(caution, now, ok=0, limited=100)
        now += 1.0
    assert caution.share >= LEAST


def test_without_429s_it_comes_back_to_all_of_it() -> None:
    caution, now = Caution(share=0.1), 100.0
    for _ in range(600):
        before = caution.share
        adjust(caution, ok=10, limited=0, late=0, now=now)
        assert before <= caution.share <= min(1.0, before * 1.05)
        now += 1.0
    assert caution.share == pytest.approx(1.0, abs=0.001)


def test_several_refused_late_calls_end_catching_up_and_one_does_not() -> None:
    caution = Caution()
    refuse(caution, 100.0, late=1)
    assert caution.catch_up == CATCH_UP
    refuse(caution, 100.1, limited=2, late=2)
    assert caution.catch_up <= CATCH_UP / 9
    share = caution.share
    for second in range(600):
        adjust(caution, ok=100, limited=0, late=0, now=101.0 + second)
    assert caution.catch_up == CATCH_UP
    assert caution.share >= share


def test_a_clock_set_back_and_a_long_silence_are_no_news() -> None:
    caution = Caution()
    refuse(caution, 100.0)
    before = replace(caution)
    adjust(caution, ok=0, limited=0, late=0, now=50.0)
    assert caution.share == before.share
    adjust(caution, ok=0, limited=0, late=0, now=1e9)
    assert before.share <= caution.share <= 1.0


# -- departures


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 400), st.floats(0.0, 0.3)), max_size=6))
def test_no_window_sees_more_departures_than_places(stalls: list[tuple[int, float]]) -> None:
    departures, left, now, held = Departures(), [], 0.0, dict(stalls)
    for number in range(500):
        place = number * 0.01
        departure = departures.proposed(place, 0.005, now, bound=True)
        departures.plan(departure)
        now = max(now, departures.next()) + held.get(number, 0.0)
        assert departures.leave(now) == pytest.approx(now - place)
        left.append(now)
    for number, moment in enumerate(left):
        assert sum(moment <= other < moment + WINDOW - 0.01 for other in left[number : number + 120]) <= 101
        if number:
            assert moment >= left[number - 1] + 0.005 - 1e-9


def test_whichever_is_ready_first_has_the_first_place_and_a_cancelled_one_frees_its_own() -> None:
    departures = Departures()
    planned = [departures.proposed(place, 0.005, 0.0, bound=True) for place in (1.0, 2.0, 3.0)]
    for departure in planned:
        departures.plan(departure)
    departures.cancel(planned[1])
    assert departures.next() == 1.0
    assert departures.leave(1.5) == 0.5
    assert departures.next() == 3.0
    departures.cancel(planned[0])  # somebody left at its place; so this one is free
    departures.plan(departures.proposed(4.0, 0.005, 0.0, bound=True))
    assert departures.next() == 4.0
