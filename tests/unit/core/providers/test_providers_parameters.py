"""What a vendor does not take is learned from its refusal: once, by the name it says, and never what bounds a call."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pipeline import House, deployment, invoiced, policy
from support.providers import ADAPTERS, PERMANENT, answering, ask, failure, provider

from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.providers.parameters import NOT_STRICT, STRICT, Dialect, dialect_of
from airflow_ai_provider.errors import ParameterRefused
from airflow_ai_provider.testing.vendor import VendorDouble

both = pytest.mark.parametrize("adapter", ADAPTERS)
SENT = (
    "model messages temperature top_p presence_penalty stop seed logit_bias parallel_tool_calls user logprobs".split()
)
OPENAI_LIMIT = {
    "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
    "instead.",
    "type": "invalid_request_error",
    "param": "max_tokens",
    "code": "unsupported_parameter",
}
FORBIDDEN_EXTRA = "[{'type': 'extra_forbidden', 'loc': ('body', '%s'), 'msg': 'Extra inputs are not permitted'}]"


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


REFUSALS: dict[str, tuple[Any, set[str]]] = {
    "OpenAI's limit": ({"error": OPENAI_LIMIT}, {"max_tokens"}),
    "without fields": (error(OPENAI_LIMIT["message"], code=None, param=None), {"max_tokens"}),
    "OpenRouter's": (
        error("Provider returned error", code=400, metadata={"raw": json.dumps({"error": OPENAI_LIMIT})}),
        {"max_tokens"},
    ),
    "litellm's proxy": (
        error(f"litellm.BadRequestError: OpenAIException - {OPENAI_LIMIT['message']}", code="400"),
        {"max_tokens"},
    ),
    "vLLM's": ({"object": "error", "message": FORBIDDEN_EXTRA % "max_tokens", "code": 400}, {"max_tokens"}),
    "OpenAI's value": (
        error(
            "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) value is "
            "supported.",
            param="temperature",
            code="unsupported_value",
        ),
        {"temperature"},
    ),
    "several at once": (
        error("litellm.UnsupportedParamsError: openai does not support parameters: ['presence_penalty', 'stop']"),
        {"presence_penalty", "stop"},
    ),
    "xAI's": (error("Argument not supported on this model: presencePenalty"), {"presence_penalty"}),
    "xAI's code": (
        {
            "code": "Client specified an invalid argument",
            "error": "Argument not supported on this model: stop",
        },
        {"stop"},
    ),
    "an invalid parameter": (error("Invalid parameter: seed is not supported."), {"seed"}),
    "Groq's guess": (error("property 'logprobs' is unsupported, did you mean 'top_p'?"), {"logprobs"}),
    "litellm's for o models": (
        error(
            "litellm.UnsupportedParamsError: O-series models don't support temperature=0.2. Only temperature=1 is "
            "supported. To drop unsupported openai params from the call, set `litellm.drop_params = True`"
        ),
        {"temperature"},
    ),
    "Moonshot's": (error("invalid temperature: only 1 is allowed for this model"), {"temperature"}),
    "Anthropic's thinking": (
        error("`temperature` may only be set to 1 when thinking is enabled."),
        {"temperature"},
    ),
    "Anthropic's thinking, top_p": (
        error("`top_p` must be greater than or equal to 0.95 or unset when thinking is enabled."),
        {"top_p"},
    ),
    "without tools": (
        error(
            "Invalid value for 'parallel_tool_calls': 'parallel_tool_calls' is only allowed when 'tools' are specified."
        ),
        {"parallel_tool_calls"},
    ),
    "xAI's text": ({"error": "Model grok-4 does not support parameter stop."}, {"stop"}),
    "Anthropic's pair": (error("`temperature` and `top_p` cannot both be specified for this model."), {"top_p"}),
    "deprecated": (error("`temperature` is deprecated for this model."), {"temperature"}),
    "Gemini's": (error('Invalid JSON payload received. Unknown name "seed": Cannot find field.'), {"seed"}),
    "Groq's": (error("property 'logit_bias' is unsupported"), {"logit_bias"}),
    "old OpenAI's": (error("Unrecognized request argument supplied: parallel_tool_calls"), {"parallel_tool_calls"}),
    "Bedrock's": (error("extraneous key [stop] is not permitted, please reformat your input"), {"stop"}),
    "FastAPI's": (
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "user"], "msg": "Extra inputs are not permitted"}]},
        {"user"},
    ),
}
OTHER: dict[str, Any] = {
    "too large a limit": error(
        "max_tokens is too large: 200000. This model supports at most 16384 completion tokens", param="max_tokens"
    ),
    "a limit of one value": error("max_tokens: only 4096 is supported", param="max_tokens"),
    "a limit that depends": error("max_tokens may only be set to 1 when logging is on"),
    "a value out of range": error("Invalid 'temperature': expected a value <= 2", param="temperature", code="invalid"),
    "a role": error(
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        param="messages[0].role",
        code="unsupported_value",
    ),
    "tools": error("Unsupported parameter: 'tools' is not supported.", param="tools", code="unsupported_parameter"),
    "a schema": error("'response_format' of type 'json_schema' is not supported with this model."),
    "what was not sent": error("Unknown parameter: 'top_k'.", param="top_k", code="unknown_parameter"),
    "a list of what it takes": error("Unknown parameter: 'top_k'. Supported parameters: temperature, top_p, stop."),
    "anything": error("Bad request."),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_the_refused_parameter_is_read_as_vendors_word_it(case: str) -> None:
    body, refused = REFUSALS[case]
    adapted = Dialect().adapted(400, json.dumps(body).encode(), SENT)
    assert adapted == Dialect("max_completion_tokens" if "max_tokens" in refused else "max_tokens", frozenset(refused))
    assert adapted.adapted(400, json.dumps(body).encode(), {*SENT} - refused) is None, "learned once"
    assert Dialect().adapted(500, json.dumps(body).encode(), SENT) is None


@pytest.mark.parametrize("case", OTHER)
def test_what_bounds_a_call_is_never_dropped_and_other_errors_teach_nothing(case: str) -> None:
    assert Dialect().adapted(400, json.dumps(OTHER[case]).encode(), [*SENT, "tools", "response_format"]) is None


def test_a_limit_has_two_names_and_no_third_try() -> None:
    old = json.dumps({"message": FORBIDDEN_EXTRA % "max_completion_tokens"}).encode()
    first = Dialect("max_completion_tokens").adapted(422, old, SENT)
    assert first == Dialect("max_tokens", frozenset({"max_completion_tokens"}))
    assert first.adapted(400, json.dumps({"error": OPENAI_LIMIT}).encode(), SENT) is None


LIMITS = ("max_tokens", "max_completion_tokens")


@given(
    refused=st.sets(st.sampled_from([*SENT[2:], *LIMITS, "tools", "response_format"])), first=st.sampled_from(LIMITS)
)
def test_no_server_makes_anything_be_asked_for_ever(refused: set[str], first: str) -> None:
    dialect: Dialect | None = Dialect(first)
    params = dict.fromkeys([*SENT, "tools", "response_format"], 1)
    for tries in range(len(params) + 3):
        assert dialect is not None
        sent = [*dialect.kept(params), dialect.limit_name]
        wrong = next((name for name in sent if name in refused), None)
        if wrong is None:
            return
        body = {**OPENAI_LIMIT, "param": wrong, "message": f"Unsupported parameter: '{wrong}' is not supported."}
        dialect = dialect.adapted(400, json.dumps({"error": body}).encode(), sent)
        if dialect is None:
            assert wrong in ("tools", "response_format") or refused >= {*LIMITS}
            return
        assert tries <= len(refused)
    pytest.fail("it never ended")


def test_a_strict_schema_is_dropped_or_demanded_once() -> None:
    invalid = json.dumps(error("Invalid schema for response_format 'answer': …", param="response_format")).encode()
    without = Dialect().adapted(400, invalid, [*SENT, STRICT])
    assert without == Dialect(refused=frozenset({STRICT}))
    wanted = json.dumps(error("response_format.json_schema.strict must be true")).encode()
    assert Dialect().adapted(400, wanted, [*SENT, NOT_STRICT]) == Dialect(refused=frozenset({NOT_STRICT}))
    assert without.adapted(400, wanted, SENT) is None


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("openai/gpt-4o", "max_tokens"),
        ("openai/o3-mini", "max_completion_tokens"),
        ("openai/ft:o4-mini-2025-04-16:acme::abc", "max_completion_tokens"),
        ("openai/ft:gpt-4o-mini:acme::o3", "max_tokens"),
        ("openai/gpt-5.1-2025", "max_completion_tokens"),
        ("litellm_proxy/o3", "max_completion_tokens"),
        ("litellm_proxy/openai/gpt-5-mini", "max_completion_tokens"),
        ("azure/gpt5_series/chat", "max_completion_tokens"),
        ("azure/chat", "max_tokens"),
        ("openrouter/openai/gpt-5-mini", "max_tokens"),
        ("hosted_vllm/o3", "max_tokens"),
    ],
)
def test_the_first_request_uses_the_name_that_the_models_name_tells(model: str, name: str) -> None:
    assert dialect_of(Deployment(model=model)).limit_name == name


@both
@pytest.mark.parametrize("model", ["openrouter/openai/gpt-5-mini", "hosted_vllm/house", "openai/house"])
async def test_the_other_name_of_the_limit_is_used_after_one_refusal(
    vendor: VendorDouble, adapter: str, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    vendor.configure(refused_params=("max_tokens",))
    asked = provider(vendor.base_url, adapter=adapter, model=model)
    with caplog.at_level(logging.INFO):
        first = await failure(asked)
        kind = (type(first), first.kind, first.http_status, first.billed)
        assert kind == (ParameterRefused, "unsupported_params", 400, False)
        for _ in range(2):
            assert (await ask(asked)).text
    limits = [{key: seen.body[key] for key in seen.body if key.startswith("max_")} for seen in vendor.requests()]
    assert limits == [{"max_tokens": 50}, {"max_completion_tokens": 50}, {"max_completion_tokens": 50}]
    assert caplog.text.count("does not take max_tokens") == 1


@both
async def test_a_deployment_of_azure_whose_name_says_nothing_learns_it_too(adapter: str) -> None:
    async with answering(400, json.dumps({"error": OPENAI_LIMIT}).encode()) as url:
        asked = provider(url, adapter=adapter, model="azure/chat", params={"api_version": "2024-10-21"})
        errors = [await failure(asked), await failure(asked)]
    assert [(type(error), error.kind) for error in errors] == [
        (ParameterRefused, "unsupported_params"),
        (PERMANENT, "bad_request"),
    ]


@both
async def test_a_refusal_in_an_answer_of_200_is_learned_from_too(adapter: str) -> None:
    body = {"error": {"message": OPENAI_LIMIT["message"], "code": 400}}
    async with answering(200, json.dumps(body).encode()) as url:
        asked = provider(url, adapter=adapter, model="hosted_vllm/house")
        errors = [await failure(asked), await failure(asked)]
    assert [(type(error), error.kind, error.http_status, error.billed) for error in errors] == [
        (ParameterRefused, "unsupported_params", 400, False),
        (PERMANENT, "bad_request", 400, False),
    ]


@both
async def test_an_old_server_is_asked_by_the_old_name(vendor: VendorDouble, adapter: str) -> None:
    vendor.configure(refused_params=("max_completion_tokens",))
    asked = provider(vendor.base_url, adapter=adapter, model="openai/o3-mini")
    assert isinstance(await failure(asked), ParameterRefused)
    if adapter == "openai_compatible":  # litellm turns the name back for this model
        assert (await ask(asked)).text
        assert vendor.requests()[-1].body["max_tokens"] == 50


@both
async def test_a_server_that_takes_no_limit_at_all_is_not_asked_without(vendor: VendorDouble, adapter: str) -> None:
    vendor.configure(refused_params=("max_tokens", "max_completion_tokens"))
    asked = provider(vendor.base_url, adapter=adapter, model="hosted_vllm/house")
    kinds = [(type(error), error.kind) for error in [await failure(asked), await failure(asked), await failure(asked)]]
    assert kinds == [(ParameterRefused, "unsupported_params"), (PERMANENT, "bad_request"), (PERMANENT, "bad_request")]
    assert all(seen.body.keys() & {"max_tokens", "max_completion_tokens"} for seen in vendor.requests())


@both
async def test_optional_parameters_are_dropped_one_by_one_and_said_once(
    vendor: VendorDouble, adapter: str, caplog: pytest.LogCaptureFixture
) -> None:
    vendor.configure(refused_params=("temperature", "seed", "presence_penalty"))
    asked = provider(vendor.base_url, adapter=adapter, params={"temperature": 0, "seed": 1, "top_p": 0.5})
    more = {"params": {"presence_penalty": 0.5}}
    for _ in range(3):
        assert isinstance(await failure(asked, **more), ParameterRefused)
    assert (await ask(asked, **more)).text
    last = vendor.requests()[-1].body
    assert last.keys() == {"model", "messages", "max_tokens", "top_p"}
    said = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(record.getMessage().split(";")[0] for record in said) == [
        "small does not take presence_penalty",
        "small does not take seed",
        "small does not take temperature",
    ]


@both
async def test_a_param_that_is_not_optional_stays_a_permanent_error(vendor: VendorDouble, adapter: str) -> None:
    vendor.configure(refused_params=("tools",))
    tool = {"type": "function", "function": {"name": "refund", "parameters": {"type": "object", "properties": {}}}}
    error = await failure(provider(vendor.base_url, adapter=adapter), tools=(tool,))
    assert (type(error), error.kind) == (PERMANENT, "bad_request")


@both
async def test_an_error_that_only_speaks_of_a_limit_is_what_it_was(adapter: str) -> None:
    said = {"message": "This model's maximum context length is 8 tokens; 'max_tokens' of 50 is not supported."}
    async with answering(400, json.dumps({"error": said}).encode()) as url:
        error = await failure(provider(url, adapter=adapter))
    assert (type(error), error.kind) == (PERMANENT, "context_window")


ROWS = [f"row {number}" for number in range(200)]


@both
def test_a_job_learns_the_name_with_a_few_rows_and_no_row_loses_an_attempt(
    tmp_path: Path, vendor: VendorDouble, adapter: str
) -> None:
    vendor.configure(refused_params=("max_tokens", "temperature"))
    small = deployment(model="openai/house", price={"input_per_mtok": 0.15, "output_per_mtok": 0.6}, concurrency=4)
    house = House(tmp_path, vendor)
    small |= {"adapter": adapter, "params": {"temperature": 0}, "breaker": {"failures": 1}}
    house.write(policy(deployments={"small": small}, retry={"attempts": 1}, limit_usd="1"))
    outcome = house.run(ROWS)
    assert set(outcome.column("status")) == {"ok"}
    refused = house.requests(status="error")
    assert 2 <= len(refused) <= 8, "those that were under way, once for each parameter"
    assert {(row["error_type"], row["cost_nano"]) for row in refused} == {("unsupported_params", 0)}
    assert house.spent() == invoiced(vendor)
    assert len(vendor.invoice()) == len(ROWS)
    assert house.left_over() == (0, 0)
