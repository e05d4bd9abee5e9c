"""Costs, bounds and periods: exact, rounded up, and never above what was held."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal, Inexact
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.ledger.budgets.limits import budget_period
from airflow_ai_provider.core.ledger.call_costs import Rate, Step, Usage, nano_from_usd, usd_from_nano
from airflow_ai_provider.core.ledger.prices import policy_rate
from airflow_ai_provider.core.policy import Budget, Price

USD = Decimal
amounts = st.decimals(min_value=0, max_value=10**6, places=9)
"""Prices: from nothing to a million USD per million tokens, with all the digits a policy takes."""
tokens = st.integers(min_value=0, max_value=200_000)
seconds = st.decimals(min_value=0, max_value=5000, places=3)


@st.composite
def rates(draw: st.DrawFn) -> Rate:
    """Any list of prices, dearer or cheaper above its thresholds."""
    thresholds = [0, *sorted(draw(st.sets(st.integers(min_value=1, max_value=100_000), max_size=3)))]
    steps = tuple(Step(above, *(draw(amounts) for _ in range(5))) for above in thresholds)
    return Rate(steps, draw(amounts), "test", per_second_nano=draw(amounts), most_seconds=draw(st.integers(1, 3600)))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    cached, minutes, hour, fresh = (draw(tokens) for _ in range(4))
    return Usage(cached + minutes + hour + fresh, draw(tokens), cached, minutes + hour, hour)


def price(**named: Decimal) -> Rate:
    return policy_rate(Price(**{"input_per_mtok": USD(0), "output_per_mtok": USD(0), **named}), "test")


def test_cost_is_exact_in_nano_dollars() -> None:
    assert price(input_per_mtok=USD("0.15"), output_per_mtok=USD("0.60")).cost(Usage(1000, 200)) == 150_000 + 120_000


def test_a_part_of_a_nano_dollar_rounds_up() -> None:
    assert price(input_per_mtok=USD("0.0001")).cost(Usage(1, 0)) == 1


def test_every_kind_of_input_is_charged_once_at_its_own_price() -> None:
    rate = price(
        input_per_mtok=USD(1),
        cached_input_per_mtok=USD("0.1"),
        cache_write_per_mtok=USD("1.25"),
        cache_write_1h_per_mtok=USD(2),
        per_request=USD("0.000001"),
    )
    usage = Usage(100, 0, cached_input=60, cache_write=30, cache_write_1h=20)
    assert rate.cost(usage) == 10 * 1000 + 60 * 100 + 10 * 1250 + 20 * 2000 + 1000


def test_the_step_above_a_threshold_applies_to_the_whole_request() -> None:
    steps = tuple(Step(above, *[Decimal(nano)] * 5) for above, nano in ((0, 1), (100, 2), (200, 4)))
    stepped = Rate(steps, Decimal(0), "test")
    assert [stepped.cost(Usage(n, 0)) for n in (0, 100, 101, 200, 201)] == [0, 100, 202, 400, 804]


def test_time_is_charged_by_the_second_and_rounds_up() -> None:
    rate = price(per_second=USD("0.0005"))
    assert rate.cost(Usage(1000, 1000), Decimal("1.501")) == 750_500
    assert price(per_second=USD("0.000000001")).cost(Usage(1, 1), Decimal("0.001")) == 1


def test_time_that_nobody_measured_counts_to_the_end() -> None:
    rate = Rate(price().steps, Decimal(0), "test", per_second_nano=Decimal(10), most_seconds=60)
    assert rate.cost(Usage(1, 1)) == rate.cost(Usage(1, 1), Decimal(75)) == 600
    with pytest.raises(ValueError, match="price per second"):
        price(per_second=USD(1)).cost(Usage(1, 1))
    with pytest.raises(ValueError, match="price per second"):
        price(per_second=USD(1)).bound(input_bytes=1, messages=1, max_tokens=1)


@given(rate=rates(), used=usages(), lasted=seconds)
def test_a_hold_is_never_below_the_cost(rate: Rate, used: Usage, lasted: Decimal) -> None:
    """For any price and any usage within the bytes sent and the output limit, however long it took."""
    bound = rate.bound(input_bytes=used.input, messages=1, max_tokens=used.output)
    assert rate.cost(used, lasted) <= bound


@given(rate=rates(), used=usages(), lasted=seconds)
def test_the_cost_is_the_exact_sum_rounded_up(rate: Rate, used: Usage, lasted: Decimal) -> None:
    """The same sum in fractions, which know no precision."""
    step = [step for step in rate.steps if used.input > step.above_input_tokens or step is rate.steps[0]][-1]
    assert rate.most_seconds is not None
    kinds = ("input", "output", "cached_input", "cache_write", "cache_write_1h")
    counts = [
        used.input - used.cached_input - used.cache_write,
        used.output,
        used.cached_input,
        used.cache_write - used.cache_write_1h,
        used.cache_write_1h,
    ]
    total = sum(Fraction(getattr(step, kind)) * count for kind, count in zip(kinds, counts, strict=True))
    total += Fraction(rate.per_request_nano)
    total += Fraction(rate.per_second_nano) * Fraction(min(lasted, Decimal(rate.most_seconds)))
    assert rate.cost(used, lasted) == ceil(total)


@given(rate=rates(), used=usages(), lasted=seconds, more=tokens)
def test_more_output_and_more_time_never_cost_less(rate: Rate, used: Usage, lasted: Decimal, more: int) -> None:
    cost = rate.cost(used, lasted)
    longer = Usage(used.input, used.output + more, used.cached_input, used.cache_write, used.cache_write_1h)
    assert rate.cost(longer, lasted) >= cost
    assert rate.cost(used, lasted + more) >= cost


@given(rate=rates(), used=usages(), more=tokens)
def test_more_input_never_costs_less_where_no_step_is_cheaper(rate: Rate, used: Usage, more: int) -> None:
    cheapest = Rate(rate.steps[:1], rate.per_request_nano, "test")
    larger = [
        Usage(used.input + more, used.output, used.cached_input, used.cache_write, used.cache_write_1h),
        Usage(used.input + more, used.output, used.cached_input + more, used.cache_write, used.cache_write_1h),
        Usage(used.input + more, used.output, used.cached_input, used.cache_write + more, used.cache_write_1h),
        Usage(used.input + more, used.output, used.cached_input, used.cache_write + more, used.cache_write_1h + more),
    ]
    assert all(cheapest.cost(usage) >= cheapest.cost(used) for usage in larger)


def test_a_sum_that_would_be_rounded_is_refused() -> None:
    finest = Step(0, *[Decimal("1e-70")] * 5)
    with pytest.raises(Inexact):
        Rate((finest,), Decimal(10**15), "test").cost(Usage(1, 0))


@given(st.integers(min_value=0, max_value=10**18))
def test_nano_dollars_survive_the_way_to_usd_and_back(nano: int) -> None:
    assert nano_from_usd(usd_from_nano(nano)) == nano


@pytest.mark.parametrize(
    ("period", "zone", "start"),
    [
        ("day", "UTC", "2026-03-01"),
        ("day", "Asia/Shanghai", "2026-03-02"),
        ("week", "UTC", "2026-02-23"),
        ("month", "America/New_York", "2026-03-01"),
        ("run", "UTC", "dag/run-1"),
        ("total", "UTC", "total"),
    ],
)
def test_a_moment_belongs_to_the_period_of_its_time_zone(period: str, zone: str, start: str) -> None:
    budget = Budget.model_validate({"team": "t", "period": period, "limit_usd": 1, "timezone": zone})
    now = datetime(2026, 3, 1, 20, 0, tzinfo=UTC)
    found = budget_period(budget, now=now, dag_id="dag", run_id="run-1")
    assert found.period_start == start
    assert found.limit_nano == 10**9
