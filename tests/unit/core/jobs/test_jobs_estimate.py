"""Arithmetic of a plan: rules of thumb, what history changes in them, and what budgets have left."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.jobs.estimate import (
    ESCALATED,
    LEAST_CALLS,
    PRIOR_CALLS,
    Ask,
    Forecast,
    _Even,
    budget_line,
    expectation,
    slow_answers,
)
from airflow_ai_provider.core.ledger.budgets.availability import Room
from airflow_ai_provider.core.ledger.reports.call_history import CallHistory
from airflow_ai_provider.core.pipeline.deployments import PricedDeployment, price_deployments
from airflow_ai_provider.core.policy import Policy, Route, Tier, parse_policy
from airflow_ai_provider.core.prompts.text import tokens_of
from airflow_ai_provider.core.routing.router import Needs, Router, terms_of
from airflow_ai_provider.core.settings import Settings
from airflow_ai_provider.errors import RoutingError

MODEL = "openai/gpt-4o-mini"
POLICY = """\
version: 1
deployments:
  small: {model: openai/gpt-4o-mini, rpm: 60, concurrency: 2, price: {input_per_mtok: 1, output_per_mtok: 2}}
  spare: {model: openai/spare, tpm: 600, price: {input_per_mtok: 3, output_per_mtok: 4}}
  short: {model: openai/short, context_tokens: 10, price: {input_per_mtok: 1, output_per_mtok: 1}}
  large: {model: openai/large, price: {input_per_mtok: 10, output_per_mtok: 20}}
routes:
  r:
    tiers: {simple: [small, spare], medium: [short, spare], complex: [large]}
    masking: "off"
    escalate: {on: [empty], to: complex}
    retry: {attempts: 3}
budgets: [{period: total, limit_usd: 1}]
"""
ASK = Ask(needs=Needs(400), schema=0, tokens=100, messages=1)
MAX_TOKENS = 50
SETTINGS = Settings(home=Path(), policy_path=Path("policy.yaml"))


def past(deployment: str = "small", **changes: Any) -> CallHistory:
    values: dict[str, Any] = {
        "tier": "simple",
        "deployment": deployment,
        "model": MODEL if deployment == "small" else f"openai/{deployment}",
        "answered": 100,
        "unknown": 0,
        "prompt_bytes": 40_000,
        "prompt_tokens": 8_000,
        "input_tokens": 8_000,
        "output_tokens": 1_000,
        "cached_tokens": 0,
        "cache_write_tokens": 0,
        "latency_ms": 50_000,
        "went_up": 0,
    }
    return CallHistory(**{**values, **changes})


def forecast(history: list[CallHistory] | None = None, policy: str = POLICY) -> tuple[Forecast, dict[Tier, Any], Route]:
    parsed: Policy = parse_policy(policy)
    route = parsed.routes["r"]
    terms = {tier: terms_of(route, tier, max_tokens=MAX_TOKENS) for tier in route.tiers}
    tiers = price_deployments(parsed, route, SETTINGS, terms=terms, output_schema=None, prompt_version="1")
    return Forecast(route, tiers, history or [], Router("r", route, tiers)), tiers, route


def row(tier: Tier) -> Ask:
    """A row that every tier asks in the same way."""
    return ASK


def bound(offer: PricedDeployment, ask: Ask = ASK) -> int:
    return offer.bound(ask.needs, schema=ask.schema, messages=ask.messages)


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a" * 400, 100), ("abc", 1), ("银行卡", 3), ("ab 银行", 1 + 2), ("é", 1)]
)
def test_the_rule_of_thumb_knows_scripts(text: str, tokens: int) -> None:
    assert tokens_of(text, len(text.encode())) == tokens


@given(st.text())
def test_the_rule_of_thumb_never_exceeds_the_bound_of_a_byte_a_token(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert 0 <= tokens_of(text, len(text.encode())) <= max(len(text.encode()), 2)


def test_without_history_half_of_max_tokens_is_expected() -> None:
    expected = expectation([], "small", MODEL, 400)
    assert (expected.calls, expected.output_tokens, expected.tokens_per_byte) == (0, 200, None)
    assert expected.basis == "no history: 4 bytes a token (3 outside ASCII), half of max_tokens"


def test_few_calls_and_calls_of_another_model_are_no_history() -> None:
    assert expectation([past(answered=LEAST_CALLS - 1)], "small", MODEL, 400).calls == 0
    assert expectation([past(model="openai/older")], "small", MODEL, 400).calls == 0
    assert expectation([past(answered=LEAST_CALLS)], "small", MODEL, 400).calls == LEAST_CALLS


def test_history_is_drawn_a_little_towards_the_rule_of_thumb() -> None:
    expected = expectation([past(unknown=3, cached_tokens=2_000, cache_write_tokens=800)], "small", MODEL, 400)
    assert expected.basis == "history of 100 calls"
    assert expected.tokens_per_byte == (8_000 + PRIOR_CALLS * Fraction(400, 4)) / (40_000 + PRIOR_CALLS * 400)
    assert expected.output_tokens == Fraction(1_000 + PRIOR_CALLS * 200, 100 + PRIOR_CALLS)
    assert (expected.cached, expected.cache_write) == (Fraction(1, 4), Fraction(1, 10))
    assert (expected.lost, expected.latency_ms) == (Fraction(3, 100 + PRIOR_CALLS), 500)


def test_history_of_several_tiers_is_one_deployments() -> None:
    assert expectation([past(), past(tier="complex")], "small", MODEL, 400).calls == 200


def test_no_more_than_max_tokens_is_expected() -> None:
    assert expectation([past(output_tokens=10**6)], "small", MODEL, 40).output_tokens == 40


def test_history_from_before_prompts_were_measured_says_so() -> None:
    expected = expectation([past(prompt_bytes=0, prompt_tokens=0)], "small", MODEL, 400)
    assert expected.tokens_per_byte is None
    assert "history of 100 calls, 4 bytes a token" in expected.basis


@given(st.fractions(0, 10), st.lists(st.integers(0, 10_000)))
def test_rounding_loses_nothing_over_many_rows(ratio: Fraction, amounts: list[int]) -> None:
    shared = _Even(ratio)
    given_out = [shared.next(amount) for amount in amounts]
    assert all(amount >= 0 for amount in given_out)
    assert sum(given_out) == int(sum(amounts) * ratio)


def test_the_worst_is_every_attempt_at_every_deployment_and_tier() -> None:
    made, tiers, route = forecast()
    small, spare = tiers["simple"]
    (large,) = tiers["complex"]
    share = max(bound(small), bound(spare))
    assert made.call("simple", row) == max(share, bound(large))
    assert made.worst_nano == route.retry.attempts * (2 * share + bound(large))


def test_an_equal_row_is_in_the_worst_only() -> None:
    made, _, _ = forecast()
    made.call("simple", row)
    expected, worst = sum(line.expected_nano for line in made.figures()), made.worst_nano
    made.call("simple", row, equal=True)
    assert sum(line.expected_nano for line in made.figures()) == expected
    assert made.worst_nano == 2 * worst


def test_the_highest_tier_does_not_escalate() -> None:
    made, tiers, route = forecast()
    assert made.call("complex", row) == bound(tiers["complex"][0])
    assert made.worst_nano == route.retry.attempts * bound(tiers["complex"][0])
    assert [line.calls for line in made.figures()] == [1]


def test_what_fits_no_context_is_not_asked() -> None:
    made, _, _ = forecast(policy=POLICY.replace("[short, spare]", "[short]"))
    with pytest.raises(RoutingError, match="no deployment of tier medium can take the row: short"):
        made.call("medium", row)
    assert made.worst_nano == 0
    assert made.figures() == []


def test_a_deployment_with_too_small_a_context_is_passed_over() -> None:
    made, _, _ = forecast()
    made.call("medium", row)
    lines = {(line.tier, line.deployment): line for line in made.figures()}
    assert ("medium", "short") not in lines
    assert lines["medium", "spare"].calls == 1


def test_without_history_one_row_in_ten_escalates() -> None:
    made, tiers, _ = forecast()
    for _ in range(100):
        made.call("simple", row)
    lines = {line.deployment: line for line in made.figures()}
    assert (lines["small"].calls, lines["large"].calls) == (100, 100 * ESCALATED)
    assert lines["spare"].calls == 0
    rate = tiers["complex"][0].facts.rate.steps[0]
    assert lines["large"].expected_nano == 10 * (100 * rate.input + 25 * rate.output)


def test_shares_of_deployments_and_of_escalation_are_learnt() -> None:
    history = [past(answered=298, went_up=59), past("spare", answered=100)]
    made, _, _ = forecast(history)
    for _ in range(1000):
        made.call("simple", row)
    calls = {line.deployment: line.calls for line in made.figures()}
    assert (calls["small"], calls["spare"]) == (750, 250)
    assert calls["large"] == pytest.approx(1000 * (59 + PRIOR_CALLS * 0.1) / 400, abs=1)


def test_charged_attempts_without_an_answer_are_expected_at_their_hold() -> None:
    lossless, _, _ = forecast([past()])
    lossy, tiers, _ = forecast([past(unknown=51)])
    for made in (lossless, lossy):
        for _ in range(10):
            made.call("simple", row)
    share = max(map(bound, tiers["simple"]))
    extra = [sum(line.expected_nano for line in made.figures()) for made in (lossy, lossless)]
    assert extra[0] - extra[1] == pytest.approx(10 * share * Fraction(51, 102), abs=2)


def test_time_is_that_of_the_tightest_limit() -> None:
    made, _, _ = forecast([past(latency_ms=100_000), past("spare", answered=0)])
    for _ in range(120):
        made.call("simple", row)
    (small,) = [line for line in made.figures() if line.deployment == "small"]
    assert small.seconds == pytest.approx(120), "60 requests a minute; a second each at two at once takes half of that"
    made, _, _ = forecast()
    for _ in range(10):
        made.call("medium", row)
    (spare,) = [line for line in made.figures() if line.deployment == "spare"]
    assert spare.seconds == pytest.approx(10 * (100 + 25) / 10), "600 tokens a minute"


def room(free: int) -> Room:
    return Room("team=t/day", "2026-01-01", free + 30, 20, 10)


def test_a_budget_with_room_for_the_worst_always_fits() -> None:
    line = budget_line(room(1000), calls=10, holds_nano=1000, expected_nano=100, worst_nano=1000)
    assert (line.rows_over, line.left_nano, line.after_expected_nano, line.after_worst_nano) == (0, 1000, 900, 0)


def test_rows_go_through_while_their_hold_fits_beside_what_was_spent() -> None:
    # Each row holds 100 and costs 10: the first 41 go through a room of 500.
    line = budget_line(room(500), calls=100, holds_nano=10_000, expected_nano=1_000, worst_nano=60_000)
    assert line.rows_over == 59
    assert budget_line(room(99), calls=100, holds_nano=10_000, expected_nano=1_000, worst_nano=1).rows_over == 0
    assert budget_line(room(99), calls=100, holds_nano=10_000, expected_nano=1_000, worst_nano=100).rows_over == 100


@given(st.integers(-50, 5000), st.integers(1, 50), st.integers(0, 100), st.integers(0, 100))
def test_rows_over_are_those_a_budget_really_refuses(free: int, calls: int, hold: int, cost: int) -> None:
    """Against a ledger of one row after the other, each of which holds and costs the same."""
    cost = min(cost, hold)
    spent, refused = 0, 0
    for _ in range(calls):
        if spent + hold <= free:
            spent += cost
        else:
            refused += 1
    line = budget_line(
        room(free), calls=calls, holds_nano=calls * hold, expected_nano=calls * cost, worst_nano=max(calls * hold, 1)
    )
    assert line.rows_over == refused


# Answers that take longer than the time-out


def may_write(max_tokens: int, **deployment: Any) -> PricedDeployment:
    place = {"model": MODEL, "price": {"input_per_mtok": 1, "output_per_mtok": 2}, **deployment}
    budgets = [{"period": "total", "limit_usd": 1}]
    routes = {"r": {"tiers": {"simple": ["small"]}, "masking": "off"}}
    parsed = Policy.model_validate(
        {"version": 1, "deployments": {"small": place}, "routes": routes, "budgets": budgets, "masking": {}}
    )
    terms = {"simple": terms_of(parsed.routes["r"], "simple", max_tokens=max_tokens)}
    found = price_deployments(parsed, parsed.routes["r"], SETTINGS, terms=terms, output_schema=None, prompt_version="1")  # type: ignore[arg-type]
    return found["simple"][0]


SLOW = {"output_tokens": 20_000, "latency_ms": 2_000_000}
"""A hundred answers of 200 tokens and 20 s: ten tokens a second."""


@pytest.mark.parametrize(
    ("max_tokens", "history", "seconds"),
    [
        (600, [past(**SLOW)], None),
        (601, [past(**SLOW)], "61 s at 10 a second (as in 100 earlier calls)"),
        (1800, [], None),
        (1801, [], "61 s at 30 a second (as most models do)"),
        (1801, [past(**SLOW, model="openai/older")], "30 a second"),
        (1801, [past(**{**SLOW, "answered": LEAST_CALLS - 1})], "30 a second"),
        (1801, [past(output_tokens=9_900, latency_ms=2_000_000)], "30 a second"),
        (1900, [past(**SLOW), past(tier="medium", output_tokens=180_000, latency_ms=3_000_000)], "48 s"),
    ],
)
def test_a_plan_warns_of_answers_that_take_longer_than_the_time_out(
    max_tokens: int, history: list[CallHistory], seconds: str | None
) -> None:
    """By the speed of the same model's calls, in whatever tier, or by a stated one where they say little."""
    timeout = 40 if seconds == "48 s" else 60
    warning = slow_answers(may_write(max_tokens, timeout=timeout), "simple", history)
    assert (warning is None) is (seconds is None)
    if warning is not None and seconds is not None:
        assert seconds in warning
        assert warning.endswith("raise deployments.small.timeout or lower max_tokens")


def test_a_model_without_a_vendor_is_not_warned_of() -> None:
    assert slow_answers(may_write(100_000, model="offline/extractive"), "simple", []) is None
