"""litellm, a client that others wrote, takes the double for an OpenAI-compatible vendor."""

from __future__ import annotations

import asyncio
import math
import os
import types
from typing import Any

import pytest

from airflow_ai_provider.testing.behaviour import Faults
from airflow_ai_provider.testing.vendor import VendorDouble


@pytest.fixture(scope="module")
def litellm() -> types.ModuleType:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    return litellm


async def ask(litellm: types.ModuleType, double: VendorDouble, user: str, **more: Any) -> Any:
    return await litellm.acompletion(
        model="openai/gpt-4o-mini",
        messages=[{"role": "user", "content": user}],
        api_base=double.base_url,
        api_key="k",
        max_retries=0,
        **{"timeout": 20} | more,
    )


async def test_an_answer_and_its_usage_arrive_and_are_charged_once(
    litellm: types.ModuleType, vendor: VendorDouble
) -> None:
    answer = await ask(litellm, vendor, "Where is [ORDER_AAAAA]?")
    assert answer.choices[0].message.content == 'Answer about "Where is [ORDER_AAAAA]?…": [ORDER_AAAAA]'
    assert answer.choices[0].finish_reason == "stop"
    (line,) = vendor.invoice()
    assert (line.prompt_tokens, line.completion_tokens) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert vendor.stats().requests == 1


async def test_a_client_with_the_same_prices_computes_the_same_cost(
    litellm: types.ModuleType, vendor: VendorDouble
) -> None:
    """The default price of the double is that of gpt-4o-mini in litellm's own list."""
    answer = await ask(litellm, vendor, "hi")
    assert round(litellm.completion_cost(answer) * 1e9) == vendor.invoice()[0].cost_nanodollars


async def test_a_stream_arrives(litellm: types.ModuleType, vendor: VendorDouble) -> None:
    stream = await ask(litellm, vendor, "Hello", stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == 'Answer about "Hello…"'
    usages = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert usages[-1].completion_tokens == vendor.invoice()[0].completion_tokens


async def test_an_answer_to_a_schema_arrives(litellm: types.ModuleType, vendor: VendorDouble) -> None:
    schema = {"type": "object", "properties": {"kind": {"enum": ["a"]}}, "required": ["kind"]}
    asked = {"type": "json_schema", "json_schema": {"name": "kind", "schema": schema, "strict": True}}
    answer = await ask(litellm, vendor, "hi", response_format=asked)
    assert answer.choices[0].message.content == '{"kind":"a"}'


async def test_embeddings_arrive(litellm: types.ModuleType, vendor: VendorDouble) -> None:
    found = await litellm.aembedding(
        model="openai/text-embedding-3-small",
        input=["one", "two"],
        dimensions=8,
        api_base=vendor.base_url,
        api_key="k",
        max_retries=0,
    )
    assert [len(item["embedding"]) for item in found.data] == [8, 8]
    assert math.isclose(sum(v * v for v in found.data[0]["embedding"]), 1.0, rel_tol=1e-5)
    assert found.usage.prompt_tokens == 2


ERRORS = {
    "401": ("AuthenticationError", 401),
    "403": ("APIError", 403),
    "404": ("NotFoundError", 404),
    "408": ("Timeout", 408),
    "409": ("APIError", 409),
    "422": ("BadRequestError", 422),
    "429": ("RateLimitError", 429),
    "500": ("InternalServerError", 500),
    "502": ("BadGatewayError", 502),
    "503": ("ServiceUnavailableError", 503),
    "504": ("Timeout", 504),
    "insufficient_quota": ("RateLimitError", 429),
    "content_policy": ("ContentPolicyViolationError", 400),
    "context_length": ("ContextWindowExceededError", 400),
    # Not told from a 500 by class or status, although the last three were charged for:
    "drop_before": ("InternalServerError", 500),
    "drop_after": ("InternalServerError", 500),
    "drop_midway": ("InternalServerError", 500),
    "malformed": ("InternalServerError", 500),
}


@pytest.mark.parametrize(("fault", "error"), ERRORS.items())
async def test_each_fault_is_the_error_that_litellm_names_so(
    litellm: types.ModuleType, vendor: VendorDouble, fault: str, error: tuple[str, int]
) -> None:
    with pytest.raises(litellm.exceptions.openai.OpenAIError) as raised:
        await ask(litellm, vendor, f"hi [[double:{fault}]]")
    assert (type(raised.value).__name__, raised.value.status_code) == error
    assert vendor.stats().requests == 1


async def test_hanging_and_slow_answers_are_timeouts(litellm: types.ModuleType, vendor: VendorDouble) -> None:
    vendor.configure(slow_seconds=60)
    for fault in ("hang", "hang_billed", "slow"):
        with pytest.raises(litellm.Timeout):
            await ask(litellm, vendor, f"hi [[double:{fault}]]", timeout=1)
    assert [line.outcome for line in vendor.invoice()] == ["hang_billed", "slow"]


async def test_answers_that_are_less_than_they_should_be_are_no_errors(
    litellm: types.ModuleType, vendor: VendorDouble
) -> None:
    empty = await ask(litellm, vendor, "hi [[double:empty]]")
    assert not empty.choices[0].message.content
    truncated = await ask(litellm, vendor, "hi [[double:truncated]]")
    assert truncated.choices[0].finish_reason == "length"
    silent = await ask(litellm, vendor, "hi [[double:no_usage]]")
    assert silent.choices[0].message.content
    assert silent.usage.total_tokens == 0  # litellm's own filling, not the vendor's word: the answer was charged for
    assert vendor.invoice()[-1].cost_nanodollars > 0


async def test_one_call_is_one_request_under_faults(litellm: types.ModuleType, vendor: VendorDouble) -> None:
    vendor.configure(faults=Faults(rate_429=0.3, rate_500=0.2, rate_drop_after=0.2), seed=1)
    found = await asyncio.gather(*(ask(litellm, vendor, f"row {n}") for n in range(30)), return_exceptions=True)
    stats = vendor.stats()
    assert stats.requests == 30
    assert sum(stats.outcomes.values()) == 30
    assert stats.outcomes["ok"] == sum(not isinstance(answer, BaseException) for answer in found)
    assert stats.billed == stats.outcomes["ok"] + stats.outcomes["drop_after"]
