"""A parameter that could cost more than the hold is refused, or declared with a surcharge that is held and charged."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.pipeline import House, deployment, invoiced, nano, policy
from support.providers import ADAPTERS

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs.plan import plan_spend
from airflow_ai_provider.core.ledger.prices import litellm_rate
from airflow_ai_provider.core.ledger.reports.reprice import policy_book
from airflow_ai_provider.core.policy import Deployment, parse_policy
from airflow_ai_provider.core.prompts.messages import check_tools, shape_problem
from airflow_ai_provider.core.providers.vendors import check_endpoint
from airflow_ai_provider.core.settings import Endpoint
from airflow_ai_provider.errors import PolicyError, PromptError
from airflow_ai_provider.testing.vendor import VendorDouble

both = pytest.mark.parametrize("adapter", ADAPTERS)
COSTLY: dict[str, Any] = {
    "plugins": [{"id": "web"}],
    "search_parameters": {"mode": "on"},
    "enable_search": True,
    "search_options": {"forced_search": True},
    "web_search_options": {},
    "web_search_options ": {"search_context_size": "high"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "prediction": {"type": "content", "content": "long"},
    "provider": {"order": ["dear"]},
    "documents": ["text that nobody counted"],
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"context": "text that nobody counted, as long as it likes to be"},
    "guardrailConfig": {"guardrailIdentifier": "g"},
    "performanceConfig": {"latency": "optimized"},
    "additionalModelRequestFields": {"n": 4},
    "google_search": {},
    "web_search": True,
    "mcp_servers": [{"type": "url"}],
    "container": "c",
    "what_is_new": 1,
    "Enable_Search": True,
}
NEVER: dict[str, Any] = {
    "models": ["openai/gpt-4o"],
    "route": "fallback",
    "fallbacks": ["gpt-4o"],
    "n": 2,
    "best_of": 3,
    "service_tier": "priority",
    "speed": "fast",
    "tools": [{"type": "web_search"}],
    "tool_choice": "required",
    "functions": [],
    "extra_body": {"enable_search": True},
    "extra_headers": {"X": "y"},
    "extra_query": {"a": "b"},
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 9,
    "max_output_tokens": 9,
    "drop_params": True,
    "mock_response": "hi",
    "custom_llm_provider": "openai",
    "preset": "mine",
    "deployment_id": "another",
    "maxTokens": 0,
    "maxOutputTokens": 100_000,
    "max_new_tokens": 100_000,
    "Max-Tokens": 9,
    "num_predict": False,
    "candidateCount": 2,
    "serviceTier": "priority",
}
REMEDIES = {
    "max_tokens": "say max_tokens of the route",
    "maxTokens": "say max_tokens of the route",
    "response_format": "give the operator an output_schema",
    "tools": "give the operator tools and tool_choice",
    "timeout": "say timeout of the deployment",
    "max_retries": "say retry of the route",
    "extra_body": "write its fields into params, each by itself",
    "models": "name a deployment for each model",
    "service_tier": "take it out",
}
FREE: dict[str, Any] = {
    "temperature": 0,
    "top_p": 0.9,
    "top_k": 5,
    "stop": ["\n"],
    "seed": 7,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "user": "batch",
    "metadata": {"team": "a"},
    "store": False,
    "reasoning_effort": "low",
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "enable_thinking": False,
    "enable_search": False,
    "plugins": [],
    "modalities": ["text"],
    "n": 1,
    "service_tier": "default",
    "chat_template_kwargs": {"enable_thinking": False, "mode": "short"},
    "api_version": "2024-10-21",
    "aws_region_name": "eu-central-1",
    "inference_geo": "us",
}


def text(**changes: Any) -> str:
    """A policy as YAML, a key a line."""
    return yaml.safe_dump(policy(**changes), sort_keys=False)


def refusal(document: str) -> str:
    with pytest.raises(PolicyError) as caught:
        parse_policy(document, "p.yaml")
    return str(caught.value)


def line_of(document: str, key: str) -> int:
    return next(number for number, line in enumerate(document.splitlines(), 1) if line.strip().startswith(f"{key}:"))


@pytest.mark.parametrize("name", [name for name in COSTLY if not name.endswith(" ")])
def test_what_may_cost_more_is_refused_where_the_policy_is_read(name: str) -> None:
    document = text(deployments={"small": deployment(params={name: COSTLY[name]})})
    found = refusal(document)
    assert found.startswith(f"p.yaml:{line_of(document, name)}: deployments.small.params.{name}: {name} may cost more")
    assert f"surcharges: {{{name}: 0.01}}" in found
    for changes in ({"params": {name: COSTLY[name]}}, {"tier_options": {"simple": {"params": {name: COSTLY[name]}}}}):
        assert f"params.{name}: {name} may cost more than the hold" in refusal(text(**changes))
    declared = {"small": deployment(params={name: COSTLY[name]}, surcharges={name: 0.01})}
    parse_policy(text(deployments=declared, params={name: COSTLY[name]}))


@pytest.mark.parametrize("name", NEVER)
def test_what_sends_a_row_elsewhere_or_multiplies_it_is_refused_even_if_declared(name: str) -> None:
    params = {name: NEVER[name]}
    assert f"{name} cannot be set here" in refusal(text(deployments={"small": deployment(params=params)}))
    assert f"{name} cannot be set here" in refusal(text(params=params))
    assert f"{name} cannot be set in params" in refusal(text(deployments={"small": deployment(surcharges={name: 1})}))


@pytest.mark.parametrize("name", REMEDIES)
def test_a_refused_parameter_is_told_with_what_to_do_instead(name: str) -> None:
    found = refusal(text(params={name: 1}))
    assert f"{name} cannot be set here" in found
    assert f"{name}: {REMEDIES[name]}" in found
    with pytest.raises(PolicyError, match=f"{name}: {REMEDIES[name]}"):
        check_endpoint("small", Deployment(model="openai/x"), Endpoint(extra={name: 1}))


@pytest.mark.parametrize("name", FREE)
def test_what_is_known_to_be_free_passes(name: str) -> None:
    parse_policy(text(deployments={"small": deployment(params={name: FREE[name]})}, params={name: FREE[name]}))


@pytest.mark.parametrize("provider", ["dashscope", "volcengine"])
def test_thinking_that_the_limit_does_not_count_is_not_free(provider: str) -> None:
    for params in ({"enable_thinking": True}, {"thinking": {"type": "enabled"}}, {"thinking_budget": 9000}):
        found = refusal(text(deployments={"small": deployment(model=f"{provider}/x", params=params)}))
        assert "may cost more than the hold" in found
    proxy = {"model": "litellm_proxy/x", "params": {"metadata": {"tags": ["dear"]}}}
    assert "may cost more than the hold" in refusal(text(deployments={"small": deployment(**proxy)}))
    off = {"enable_thinking": False, "thinking": {"type": "disabled"}}
    parse_policy(text(deployments={"small": deployment(model=f"{provider}/x", params=off)}))


def test_every_deployment_that_a_routes_param_reaches_must_declare_it() -> None:
    deployments = {
        "small": deployment(surcharges={"enable_search": "0.01"}),
        "large": deployment(model="openai/gpt-4o"),
        "other": deployment(model="openai/gpt-4.1"),
    }
    tiers = {"simple": ["small"], "complex": ["small", "large"]}
    found = refusal(text(deployments=deployments, tiers=tiers, params={"enable_search": True}))
    assert len(found.splitlines()) == 1
    assert "deployments.large" in found
    options = {"simple": {"params": {"enable_search": True}}}
    parse_policy(text(deployments=deployments, tiers=tiers, tier_options=options))


@pytest.mark.parametrize("name", [*COSTLY, *NEVER])
def test_a_connection_cannot_bring_it_either(name: str) -> None:
    value = {**COSTLY, **NEVER}[name]
    with pytest.raises(PolicyError, match=rf"deployments\.small: its connection's extra.*{re.escape(name.strip())}"):
        check_endpoint("small", Deployment(model="openai/x"), Endpoint(extra={name: value}))
    if name in COSTLY:
        declared = Deployment(model="openai/x", surcharges={name: Decimal(0)})
        check_endpoint("small", declared, Endpoint(extra={name: value}))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "document", "source": {}},
    ],
)
def test_messages_hold_text_images_and_files_only(part: dict[str, Any]) -> None:
    assert shape_problem([{"role": "user", "content": [part]}])


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search"},
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "web_search_20250305", "name": "web_search"},
        {"type": "function", "function": {"name": "f"}, "cache_control": {"type": "ephemeral"}},
        {"type": "function", "function": {"name": "f", "max_uses": 5}},
        {"googleSearch": {}},
    ],
)
def test_tools_that_a_vendor_runs_are_refused(tool: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"tools\[0\]"):
        check_tools([tool], None)


@pytest.mark.parametrize("model", ["openai/gpt-4o-search-preview", "perplexity/sonar", "openai/gpt-5-search-api"])
def test_a_model_that_always_searches_has_no_price_of_tokens_alone(model: str) -> None:
    with pytest.raises(PolicyError, match="no price is known"):
        litellm_rate(Deployment(model=model), "deployments.small")


def test_openrouters_online_models_need_a_price_of_each_request() -> None:
    online = {"model": "openrouter/openai/gpt-4o:online", "connection": "vendor"}
    prices = {"input_per_mtok": 1, "output_per_mtok": 1}
    for price in ({}, {"price": prices}):
        assert "`:online` searches the web for a fee" in refusal(text(deployments={"small": {**online, **price}}))
    parse_policy(text(deployments={"small": {**online, "price": {**prices, "per_request": 0.02}}}))


SEARCH = {"enable_search": True}


def searching(adapter: str = "openai_compatible", usd: str = "0.0123", **changes: Any) -> dict[str, Any]:
    return deployment(adapter=adapter, surcharges={"enable_search": usd}, **changes)


@both
def test_the_surcharge_is_held_and_charged_to_the_nano_dollar(
    tmp_path: Path, vendor: VendorDouble, adapter: str
) -> None:
    vendor.configure(charged_params={"enable_search": "0.0123"})
    house = House(tmp_path, vendor)
    house.write(policy(deployments={"small": searching(adapter)}, params=SEARCH))
    assert set(house.run(["a", "b", "c"]).column("status")) == {"ok"}
    assert house.spent() == invoiced(vendor) > 3 * nano("0.0123")
    assert all(row["price_version"].endswith("+0.0123") for row in house.requests())
    assert vendor.requests()[0].body["enable_search"] is True


def test_only_requests_with_the_parameter_are_charged_for_it(tmp_path: Path, vendor: VendorDouble) -> None:
    vendor.configure(charged_params={"enable_search": "0.0123"})
    house = House(tmp_path, vendor)
    options = {"complex": {"params": SEARCH}}
    tiers = {"simple": ["small"], "complex": ["small"]}
    document = policy(deployments={"small": searching()}, tiers=tiers, tier_options=options)
    document["routes"]["support"]["complexity"] = {"from": "column", "column": "level"}
    house.write(document)
    house.run([{"text": "a", "level": "simple"}, {"text": "b", "level": "complex"}])
    assert house.spent() == invoiced(vendor)
    fees = {row["tier"]: row["cost_nano"] > nano("0.0123") for row in house.requests()}
    assert fees == {"simple": False, "complex": True}


def test_a_budget_that_has_no_room_for_the_surcharge_lets_nothing_out(tmp_path: Path, vendor: VendorDouble) -> None:
    house = House(tmp_path, vendor)
    house.write(policy(deployments={"small": searching()}, params=SEARCH, limit_usd="0.0122"))
    assert house.run(["a"]).column("status") == ["over_budget"]
    assert vendor.requests() == []


def test_a_plan_counts_the_surcharge_and_an_attempt_without_an_answer_costs_it(
    tmp_path: Path, vendor: VendorDouble
) -> None:
    house = House(tmp_path, vendor)
    house.write(policy(deployments={"small": searching()}, params=SEARCH, retry={"attempts": 1}))
    plan = plan_spend(house.job(["a [[double:drop_after]]"]), Caller("dag", "r", "t"), house.settings)
    assert plan.expected_nano > nano("0.0123")
    house.run(["a [[double:drop_after]]"])
    (row,) = house.requests()
    assert (row["status"], row["cost_nano"] > nano("0.0123")) == ("unknown", True)
    assert row["cost_nano"] <= plan.worst_nano


def test_the_connections_parameter_is_charged_too(tmp_path: Path, vendor: VendorDouble) -> None:
    vendor.configure(charged_params={"enable_search": "0.0123"})
    house = House(tmp_path, vendor)
    house.settings = replace(
        house.settings, endpoint=lambda _: Endpoint(vendor.base_url, "sk-0123456789", extra=dict(SEARCH))
    )
    house.write(policy(deployments={"small": deployment()}))
    with pytest.raises(PolicyError, match="its connection's extra: enable_search may cost more"):
        house.run(["a"])
    assert vendor.requests() == []
    house.write(policy(deployments={"small": searching()}))
    assert house.run(["a"], run_id="run-2").column("status") == ["ok"]
    assert house.spent() == invoiced(vendor) > nano("0.0123")


def test_a_price_list_of_the_policy_has_the_deployments_surcharges() -> None:
    one = Deployment(model="openai/gpt-4o-mini", params=SEARCH, surcharges={"enable_search": Decimal("0.01")})
    rate = policy_book({"small": one}.get, "digest")("small", "openai/gpt-4o-mini")
    assert rate is not None
    assert rate.per_request_nano == nano("0.01")


def test_no_prompt_function_can_bring_parameters(tmp_path: Path, vendor: VendorDouble) -> None:
    house = House(tmp_path, vendor)
    extra = [{"role": "user", "content": "{{ text }}", "cache_control": {"type": "ephemeral"}}]
    with pytest.raises(PromptError, match="expected role and content, and nothing else"):
        house.run(["a"], prompt=extra)
