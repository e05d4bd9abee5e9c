"""What vendors say of tokens and of themselves: every token once, and never too few."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.providers import ADAPTERS, answering, anthropic_body, ask, completion, gemini_body, provider

from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.providers.base import ModelReply
from airflow_ai_provider.testing.vendor import VendorDouble


def openai_body(**usage: Any) -> dict[str, Any]:
    return completion(usage=usage)


async def replies(model: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> list[ModelReply]:
    """The answer through every adapter that speaks the model's protocol."""
    adapters = ADAPTERS if model.startswith(("openai/", "hosted_vllm/", "xai/")) else ("litellm",)
    async with answering(200, json.dumps(body).encode(), headers) as url:
        return [await ask(provider(url, adapter=adapter, model=model)) for adapter in adapters]


WRITES = {"cache_creation_input_tokens": 60, "cache_read_input_tokens": 30}
SPLIT = {"cache_creation": {"ephemeral_5m_input_tokens": 40, "ephemeral_1h_input_tokens": 20}}


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        ("openai/x", openai_body(), Usage(100, 7)),
        ("openai/x", openai_body(prompt_tokens_details={"cached_tokens": 64}), Usage(100, 7, 64)),
        (
            "openai/x",
            openai_body(prompt_tokens_details={"cached_tokens": 40, "cache_write_tokens": 50}),
            Usage(100, 7, 40, 50, 50),
        ),
        ("hosted_vllm/x", openai_body(prompt_cache_hit_tokens=64), Usage(100, 7, 64)),
        ("anthropic/claude-sonnet-4-5", anthropic_body(), Usage(10, 7)),
        ("anthropic/claude-sonnet-4-5", anthropic_body(**WRITES, **SPLIT), Usage(100, 7, 30, 60, 20)),
        ("anthropic/claude-sonnet-4-5", anthropic_body(**WRITES), Usage(100, 7, 30, 60, 60)),
        ("gemini/gemini-2.0-flash", gemini_body(cachedContentTokenCount=64), Usage(100, 7, 64)),
        ("gemini/gemini-2.0-flash", gemini_body(thoughtsTokenCount=5, totalTokenCount=112), Usage(100, 12)),
    ],
)
async def test_no_token_is_counted_twice(model: str, body: dict[str, Any], expected: Usage) -> None:
    """Anthropic counts its input without what was read from and written to the cache, the others with it."""
    for reply in await replies(model, body):
        assert reply.usage == expected


async def test_parts_that_are_more_than_the_whole_are_added_to_it() -> None:
    """As behind a proxy that passes on Anthropic's figures under OpenAI's names."""
    for reply in await replies("openai/x", openai_body(prompt_tokens=10, **WRITES)):
        assert reply.usage == Usage(100, 7, 30, 60, 60)


async def test_what_a_model_thought_is_counted_where_its_vendor_leaves_it_out() -> None:
    """xAI's total holds it and its completion does not; OpenAI's completion does."""
    thought = {"completion_tokens_details": {"reasoning_tokens": 50}}
    for model in ("openai/x", "xai/grok-4"):
        for reply in await replies(model, openai_body(**thought, total_tokens=157)):
            assert reply.usage == Usage(100, 57)
    for reply in await replies("openai/x", openai_body(**thought, completion_tokens=57, total_tokens=157)):
        assert reply.usage == Usage(100, 57)


@pytest.mark.parametrize("count", [10**30, 2 * 10**9])
async def test_a_figure_that_cannot_be_meant_is_none(count: int) -> None:
    for reply in await replies("openai/x", openai_body(prompt_tokens=count)):
        assert reply.usage is None


@pytest.mark.parametrize(
    ("model", "body", "headers", "expected"),
    [
        ("openai/x", openai_body(), {"x-request-id": "req_1"}, "chatcmpl-9"),
        ("anthropic/claude-sonnet-4-5", anthropic_body(), {"request-id": "req_011"}, "req_011"),
        ("anthropic/claude-sonnet-4-5", anthropic_body(), {}, None),
        ("gemini/gemini-2.0-flash", gemini_body(), {}, "gem-1"),
        ("openai/x", {**openai_body(), "id": "x" * 101}, {}, None),
        ("openai/x", {**openai_body(), "id": "a\0b"}, {}, None),
    ],
)
async def test_the_vendors_name_of_an_answer_is_its_own(
    model: str, body: dict[str, Any], headers: dict[str, str], expected: str | None
) -> None:
    """litellm makes one up where it finds none; that is nobody's."""
    for reply in await replies(model, body, headers):
        assert reply.vendor_id == expected


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_the_double_is_understood(vendor: VendorDouble, adapter: str) -> None:
    vendor.configure(cached_share=0.5, cache_write_share=0.5)
    reply = await ask(provider(vendor.base_url, adapter=adapter), "one two three four")
    (line,) = vendor.invoice()
    written = line.cache_write_tokens
    assert reply.usage == Usage(line.prompt_tokens, line.completion_tokens, line.cached_tokens, written, written)
    assert (line.prompt_tokens, line.cached_tokens, written) == (4, 2, 1)
    assert reply.vendor_id == f"chatcmpl-{line.request_id.removeprefix('req_')}"
