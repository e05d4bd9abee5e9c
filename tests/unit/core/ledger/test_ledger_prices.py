"""Where prices come from: the policy's own, litellm's map, and nothing in between."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from airflow_ai_provider.core.ledger import prices
from airflow_ai_provider.core.ledger.call_costs import Rate, Usage
from airflow_ai_provider.core.ledger.prices import litellm_map, litellm_rate, model_facts, policy_rate
from airflow_ai_provider.core.policy import Deployment, Price, PriceAbove
from airflow_ai_provider.errors import PolicyError

MILLION = 1_000_000
KINDS = {
    "input": Usage(MILLION, 0),
    "output": Usage(0, MILLION),
    "cached": Usage(MILLION, 0, cached_input=MILLION),
    "write": Usage(MILLION, 0, cache_write=MILLION),
    "hour": Usage(MILLION, 0, cache_write=MILLION, cache_write_1h=MILLION),
}


def usd(rate: Rate, usage: Usage) -> Decimal:
    return Decimal(rate.cost(usage)) / 10**9


def by_kind(rate: Rate) -> dict[str, str]:
    """USD per million tokens of each kind."""
    return {kind: f"{usd(rate, usage).normalize():f}" for kind, usage in KINDS.items()}


def rate_of(model: str, **changes: Any) -> Rate:
    return model_facts("small", Deployment(model=model, **changes), "digest").rate


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A price list of one model, ``openai/m``, in place of the installed one; changes to it are seen."""
    found: dict[str, Any] = {"m": {"litellm_provider": "openai", "input_cost_per_token": 1e-6}}
    found["m"]["output_cost_per_token"] = 4e-6

    def read() -> prices.LitellmMap:
        (tmp_path / "map.json").write_text(json.dumps(found))
        return prices._read_map(tmp_path / "map.json")

    monkeypatch.setattr(prices, "litellm_map", read)
    return found


def test_known_models_are_priced_from_litellms_map_without_importing_it() -> None:
    facts = model_facts("small", Deployment(model="openai/gpt-4o-mini"), "digest")
    assert facts.rate.version.startswith(f"litellm-{litellm_map().version}-")
    assert facts.context_tokens is not None
    assert by_kind(facts.rate) == {"input": "0.15", "output": "0.6", "cached": "0.075", "write": "0.15", "hour": "0.15"}


def test_cache_writes_and_the_hour_have_the_maps_prices() -> None:
    small = rate_of("anthropic/claude-haiku-4-5")
    large = rate_of("vertex_ai/claude-sonnet-4-5", params={"vertex_location": "global"})
    assert by_kind(small) == {"input": "1", "output": "5", "cached": "0.1", "write": "1.25", "hour": "2"}
    assert usd(large, Usage(200_000, 0, cache_write=200_000, cache_write_1h=200_000)) == Decimal("1.2")
    assert usd(large, Usage(200_001, 0, cache_write=200_001, cache_write_1h=200_001)) == Decimal("2.400012")


def test_the_bound_takes_the_dearest_kind_of_input() -> None:
    rate = rate_of("anthropic/claude-haiku-4-5")
    assert rate.bound(input_bytes=MILLION, messages=0, max_tokens=0) == 2000 * (MILLION + 64)


def test_a_model_without_a_price_is_refused_with_the_remedy() -> None:
    with pytest.raises(PolicyError, match=r"deployments\.house: no price is known .* add price"):
        model_facts("house", Deployment(model="openai/our-own-model"), "digest")


@pytest.mark.parametrize("model", ["azure/model-router", "perplexity/sonar"])
def test_a_price_that_leaves_something_out_is_refused(model: str) -> None:
    """The map gives one no output price, and charges the other for each search besides."""
    with pytest.raises(PolicyError, match="no price is known"):
        rate_of(model)


def test_reasoning_is_priced_at_the_dearer_of_both_prices() -> None:
    assert usd(rate_of("dashscope/qwen-turbo"), Usage(0, MILLION)) == Decimal("0.5")


def test_another_providers_model_of_the_same_name_lends_no_price() -> None:
    with pytest.raises(PolicyError, match="no price is known"):
        rate_of("anthropic/gpt-4o-mini")


def test_a_table_of_tiers_is_read_as_steps() -> None:
    """Each tier stands for itself: without a cached price of its own, cached input costs what its input costs."""
    rate = rate_of("dashscope/qwen3-coder-plus")
    assert [step.above_input_tokens for step in rate.steps] == [0, 32_000, 128_000, 256_000]
    assert usd(rate, Usage(32_000, 0)) == Decimal("0.032")
    assert usd(rate, Usage(32_001, 0)) == Decimal("0.0576018")
    assert usd(rate_of("dashscope/qwen-plus-latest"), Usage(1, MILLION)) > 4, "reasoning is the dearer there"


def test_a_step_from_the_threshold_on_begins_there() -> None:
    rate = rate_of("xai/grok-4.20-0309-reasoning")
    assert rate.steps[1].above_input_tokens == 199_999
    assert rate.cost(Usage(200_000, 0)) == 2 * rate.cost(Usage(199_999, 0)) + rate.cost(Usage(1, 0)) * 2


def test_a_threshold_of_one_kind_alone_is_a_step(entries: dict[str, Any]) -> None:
    entries["m"] |= {"output_cost_per_token_above_128k_tokens": 8e-6, "output_cost_per_token_above_500_tokens": 5e-6}
    rate = rate_of("openai/m")
    assert [usd(rate, Usage(n, MILLION)) - usd(rate, Usage(n, 0)) for n in (500, 501, 128_001)] == [4, 5, 8]


def test_batch_prices_are_taken_where_the_deployment_is_billed_so() -> None:
    rate = rate_of("anthropic/claude-haiku-4-5", billing="batch")
    assert by_kind(rate) == {"input": "0.5", "output": "2.5", "cached": "0.05", "write": "0.625", "hour": "2"}
    assert rate.version != rate_of("anthropic/claude-haiku-4-5").version


def test_a_model_without_batch_prices_cannot_be_billed_so() -> None:
    with pytest.raises(PolicyError, match=r"deployments\.small: no batch price is known for model 'xai/grok-3'"):
        rate_of("xai/grok-3", billing="batch")


def test_what_has_no_batch_price_has_no_discount(entries: dict[str, Any]) -> None:
    entries["m"] |= {
        "cache_creation_input_token_cost": 1.25e-6,
        "input_cost_per_token_batches": 5e-7,
        "output_cost_per_token_batches": 2e-6,
        "input_cost_per_token_above_200k_tokens": 2e-6,
    }
    rate = rate_of("openai/m", billing="batch")
    assert (rate.steps[0].input, rate.steps[0].cached_input, rate.steps[0].cache_write) == (500, 500, 1250)
    assert (rate.steps[1].above_input_tokens, rate.steps[1].input, rate.steps[1].output) == (200_000, 2000, 2000)


def test_reasoning_keeps_a_batchs_discount_where_it_costs_what_output_costs() -> None:
    standard, batch = (rate_of("gemini/gemini-2.5-flash", billing=kind) for kind in ("standard", "batch"))
    assert standard.cost(Usage(0, MILLION)) == 2 * batch.cost(Usage(0, MILLION))


def test_the_policys_own_price_is_what_a_batch_costs() -> None:
    own = Price(input_per_mtok=Decimal(3), output_per_mtok=Decimal(6))
    assert usd(rate_of("openai/m", billing="batch", price=own), Usage(MILLION, MILLION)) == 9


@pytest.mark.parametrize(
    ("model", "changes", "factor"),
    [
        ("openai/gpt-6-astra", {"api_base": "https://eu.api.openai.com/v1"}, "1.1"),
        ("openai/gpt-6-astra", {"api_base": "https://gateway.internal/v1"}, "1"),
        ("anthropic/claude-sonnet-5", {"params": {"inference_geo": "us"}}, "1.1"),
        ("anthropic/claude-sonnet-5", {"params": {"inference_geo": "global"}}, "1"),
        ("vertex_ai/gemini-3.5-flash", {}, "1.1"),
        ("vertex_ai/gemini-3.5-flash", {"params": {"vertex_location": "global"}}, "1"),
    ],
)
def test_regions_that_cost_more_are_priced_so(model: str, changes: dict[str, Any], factor: str) -> None:
    entry = litellm_map().entry(model)
    plain = Decimal(repr(entry["output_cost_per_token"])) * MILLION
    assert usd(rate_of(model, **changes), Usage(0, MILLION)) == plain * Decimal(factor)


def test_an_edited_map_is_told_apart(entries: dict[str, Any]) -> None:
    before = rate_of("openai/m").version
    entries["m"]["supports_vision"] = True
    assert rate_of("openai/m").version == before, "what charges nothing changes nothing"
    entries["m"]["cache_read_input_token_cost"] = 1e-7
    assert rate_of("openai/m").version != before
    assert len(before) <= 100


@pytest.mark.parametrize(
    ("text", "said"), [("{", "cannot be read: JSONDecodeError"), ("[1]", "is no price list"), (None, "FileNotFound")]
)
def test_a_map_that_cannot_be_read_is_said(
    text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "map.json").write_text(text)
    monkeypatch.setattr(prices, "litellm_map", lambda: prices._read_map(tmp_path / "map.json"))
    with pytest.raises(PolicyError, match=f"no price is known for model 'openai/m' .*{said}"):
        rate_of("openai/m")
    own = Price(input_per_mtok=Decimal(1), output_per_mtok=Decimal(1))
    assert rate_of("openai/m", price=own).cost(Usage(1, 1)) == 2000


def test_the_policys_price_comes_first() -> None:
    own = Price(input_per_mtok=Decimal(7), output_per_mtok=Decimal(0))
    facts = model_facts("small", Deployment(model="openai/gpt-4o-mini", price=own), "abcdef0123456789")
    assert facts.rate.cost(Usage(1_000_000, 0)) == 7 * 10**9
    assert facts.rate.version == "policy-abcdef012345"


def test_time_is_bounded_by_the_longest_timeout() -> None:
    """The request after a time-out may take ``timeout_max``, which is twice the time-out unless it is set."""
    price = Price(per_second=Decimal("0.0005"))
    longer = rate_of("hosted_vllm/qwen", price=price, timeout=30)
    assert longer.bound(input_bytes=5, messages=1, max_tokens=5) == 60 * 500_000
    rate = rate_of("hosted_vllm/qwen", price=price, timeout=30, timeout_max=30)
    assert rate.bound(input_bytes=5, messages=1, max_tokens=5) == 30 * 500_000
    assert rate.cost(Usage(5, 5), Decimal("0.1")) == 50_000


def test_a_policys_steps_name_only_what_changes() -> None:
    above = {
        1000: PriceAbove(input_per_mtok=Decimal(2)),
        10: PriceAbove(output_per_mtok=Decimal(9), cached_input_per_mtok=Decimal("0.5")),
    }
    own = Price(input_per_mtok=Decimal(1), output_per_mtok=Decimal(4), above=above)
    found = [
        (step.above_input_tokens, step.input, step.output, step.cached_input, step.cache_write_1h)
        for step in policy_rate(own, "test").steps
    ]
    assert found == [(0, 1000, 4000, 1000, 1000), (10, 1000, 9000, 500, 1000), (1000, 2000, 9000, 500, 2000)]


def test_every_price_of_the_map_is_what_litellm_computes_or_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chat model of the map by litellm's own calculation, below and above every threshold."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from litellm.litellm_core_utils.llm_cost_calc.utils import generic_cost_per_token
    from litellm.types.utils import PromptTokensDetailsWrapper
    from litellm.types.utils import Usage as Billed

    compared = 0
    for model, entry in litellm_map().entries.items():
        provider = entry.get("litellm_provider")
        if entry.get("mode") not in {"chat", "responses"} or not provider:
            continue
        name = model if model.startswith(f"{provider}/") else f"{provider}/{model}"
        try:
            rate = litellm_rate(Deployment(model=name), name)
        except PolicyError:
            continue
        for size in (1000, *(step.above_input_tokens + 10 for step in rate.steps[1:])):
            cached, written = size // 4, size // 8
            details = PromptTokensDetailsWrapper(cached_tokens=cached, cache_creation_tokens=written)
            billed = Billed(prompt_tokens=size, completion_tokens=500, prompt_tokens_details=details)
            theirs = sum(generic_cost_per_token(name, billed, provider, model_info=entry)) * 1e9
            ours = rate.cost(Usage(size, 500, cached, written))
            assert ours > theirs * (1 - 1e-12), (name, size)
            assert ours < theirs * (1 + 1e-12) + 1 or may_be_dearer(entry), (name, size)
            compared += 1
    assert compared > 3000


def test_every_batch_price_of_the_map_is_litellms_or_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from litellm.litellm_core_utils.llm_cost_calc.utils import get_batch_cost_rates
    from litellm.types.utils import Usage as Billed

    compared = 0
    for model, entry in litellm_map().entries.items():
        provider = entry.get("litellm_provider")
        if model == "sample_spec" or not provider:
            continue
        name = model if model.startswith(f"{provider}/") else f"{provider}/{model}"
        try:
            rate = litellm_rate(Deployment(model=name, billing="batch", params={"vertex_location": "global"}), name)
        except PolicyError:
            continue
        for step in rate.steps:
            size = step.above_input_tokens + 10
            theirs = get_batch_cost_rates(dict(entry), Billed(prompt_tokens=size), provider)  # type: ignore[arg-type]
            ours = (step.input, step.output, step.cached_input, step.cache_write)
            known = (theirs.input, theirs.output, theirs.cache_read, theirs.cache_creation)
            pairs = [(float(one), other * 1e9) for one, other in zip(ours, known, strict=True) if other]
            assert all(one >= other * (1 - 1e-12) for one, other in pairs), (name, size)
            compared += len(pairs)
    assert compared > 1000


def may_be_dearer(entry: Any) -> bool:
    """Off-peak hours, regions of Vertex AI, reasoning, a cache said to be free, a discount that the map has not."""
    tiers = entry.get("tiered_pricing", [])
    free = any(entry.get(f"cache_{kind}_input_token_cost", 1) == 0 for kind in ("read", "creation"))
    dearer = {"off_peak_pricing", "regional_endpoint_uplift_multiplier", "output_cost_per_reasoning_token"}
    reasoning = any("output_cost_per_reasoning_token" in tier for tier in tiers)
    return bool(free or reasoning or dearer & set(entry) or entry["litellm_provider"] == "fireworks_ai")


@pytest.mark.parametrize(
    ("model", "said", "able"),
    [
        ("openai/gpt-4o-mini", {}, (True, True)),
        ("openai/gpt-4o-mini", {"json": False, "tools": False}, (False, False)),
        ("openai/of-which-nobody-knows", {}, (True, True)),
        ("azure/gpt-audio", {}, (False, True)),
        ("azure/gpt-audio", {"json": True}, (True, True)),
        ("deepseek/deepseek-reasoner", {}, (True, False)),
    ],
)
def test_what_a_model_can_do_is_the_policys_word_then_the_maps_and_else_yes(
    model: str, said: dict[str, Any], able: tuple[bool, bool]
) -> None:
    price = {"input_per_mtok": 1, "output_per_mtok": 1}
    facts = model_facts("d", Deployment.model_validate({"model": model, "price": price, **said}), "digest")
    assert (facts.json, facts.tools) == able
