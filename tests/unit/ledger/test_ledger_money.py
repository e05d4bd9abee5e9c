"""Costs, bounds, prices and periods."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.errors import PolicyError
from airflow_ai_provider.ledger.money import Rate, Step, Usage, flat_rate, nano_from_usd, usd_from_nano
from airflow_ai_provider.ledger.periods import budget_period
from airflow_ai_provider.ledger.prices import model_facts
from airflow_ai_provider.policy import Budget, Deployment, Price

prices = st.decimals(min_value=0, max_value=100, places=4)
tokens = st.integers(min_value=0, max_value=200_000)


def rate(low: str = "0.15", high: str = "0.60") -> Rate:
    return flat_rate(
        input_per_mtok=Decimal(low),
        output_per_mtok=Decimal(high),
        cached_per_mtok=Decimal(low),
        per_request=Decimal(0),
        version="test",
    )


def test_cost_is_exact_in_nano_dollars() -> None:
    assert rate().cost(Usage(1000, 200)) == 1000 * 150 + 200 * 600


def test_a_part_of_a_nano_dollar_rounds_up() -> None:
    assert rate("0.0001", "0").cost(Usage(1, 0)) == 1


def test_cached_input_has_its_own_price() -> None:
    cheap = flat_rate(
        input_per_mtok=Decimal(1),
        output_per_mtok=Decimal(0),
        cached_per_mtok=Decimal("0.1"),
        per_request=Decimal("0.000001"),
        version="test",
    )
    assert cheap.cost(Usage(100, 0, cached_input=60)) == 40 * 1000 + 60 * 100 + 1000


def test_the_step_above_a_threshold_applies_to_the_whole_request() -> None:
    steps = tuple(
        Step(above, Decimal(price), Decimal(price), Decimal(price), Decimal(price))
        for above, price in ((0, 1), (100, 2), (200, 4))
    )
    stepped = Rate(steps, Decimal(0), "test")
    assert [stepped.cost(Usage(n, 0)) for n in (100, 101, 200, 201)] == [100, 202, 400, 804]


@given(low=prices, high=prices, used=tokens, made=tokens, cached=tokens)
def test_a_hold_is_never_below_the_cost(low: Decimal, high: Decimal, used: int, made: int, cached: int) -> None:
    """For any price and any usage within the bytes sent and the output limit."""
    price = rate(str(low), str(high))
    bound = price.bound(input_bytes=used, messages=1, max_tokens=made)
    assert price.cost(Usage(used, made, min(cached, used))) <= bound


@given(st.integers(min_value=0, max_value=10**18))
def test_nano_dollars_survive_the_way_to_usd_and_back(nano: int) -> None:
    assert nano_from_usd(usd_from_nano(nano)) == nano


def test_known_models_are_priced_from_litellms_map_without_importing_it() -> None:
    facts = model_facts("small", Deployment(model="openai/gpt-4o-mini"), "digest")
    assert facts.rate.version.startswith("litellm-")
    assert facts.rate.cost(Usage(1_000_000, 0)) > 0
    assert facts.context_tokens is not None


def test_a_model_without_a_price_is_refused_with_the_remedy() -> None:
    with pytest.raises(PolicyError, match=r"deployments\.house: no price is known .* add price"):
        model_facts("house", Deployment(model="openai/our-own-model"), "digest")


@pytest.mark.parametrize("model", ["azure/model-router", "perplexity/sonar"])
def test_a_price_that_leaves_something_out_is_refused(model: str) -> None:
    """The map gives one no output price, and charges the other for each search besides."""
    with pytest.raises(PolicyError, match="no price is known"):
        model_facts("half", Deployment(model=model), "digest")


def test_reasoning_is_priced_at_the_dearer_of_both_prices() -> None:
    facts = model_facts("thinks", Deployment(model="dashscope/qwen-turbo"), "digest")
    assert facts.rate.cost(Usage(0, 1_000_000)) == 500_000_000


def test_another_providers_model_of_the_same_name_lends_no_price() -> None:
    with pytest.raises(PolicyError, match="no price is known"):
        model_facts("odd", Deployment(model="anthropic/gpt-4o-mini"), "digest")


def test_the_policys_price_comes_first() -> None:
    deployment = Deployment(model="openai/gpt-4o-mini", price=Price(input_per_mtok=Decimal(7)))
    facts = model_facts("small", deployment, "abcdef0123456789")
    assert facts.rate.cost(Usage(1_000_000, 0)) == 7 * 10**9
    assert facts.rate.version == "policy-abcdef012345"


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
