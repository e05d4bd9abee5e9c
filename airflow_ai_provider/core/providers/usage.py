"""What an answer says it cost: tokens by kind, service tier, model and the vendor's own price.

Figures are taken under every vendor's names, as integers, as floats without a fraction and as digits. A figure that is
there and is no such number (negative, ``NaN``, ``true``) makes the whole usage unknown: nothing is guessed downwards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.providers.base import Claims

_MOST_TOKENS = 10**9
_MOST_USD = Decimal(10_000)
"""No answer costs more: what says so is not in USD."""
_INPUT = (
    "prompt_tokens input_tokens inputTokens promptTokenCount prompt_token_count prompt_eval_count inputTokenCount"
    " promptTokens prompt_n"
).split()
_OUTPUT = (
    "completion_tokens output_tokens outputTokens candidatesTokenCount candidates_token_count eval_count"
    " outputTokenCount completionTokens generated_tokens predicted_n"
).split()
_TOTAL = "total_tokens totalTokens totalTokenCount total_token_count".split()
_CACHED = "cached_tokens prompt_cache_hit_tokens cachedContentTokenCount cached_content_token_count".split()
"""Parts of the input."""
_READ = "cache_read_input_tokens cacheReadInputTokens cacheReadInputTokenCount".split()
_WRITTEN = "cache_creation_input_tokens cacheWriteInputTokens cacheWriteInputTokenCount".split()
"""Anthropic's and Bedrock's, whose input leaves both out; under OpenAI's names it holds them."""
_EXCLUSIVE = frozenset({"input_tokens", "inputTokens", "inputTokenCount"})
_INPUT_DETAILS = "prompt_tokens_details input_tokens_details inputTokensDetails".split()
_OUTPUT_DETAILS = "completion_tokens_details output_tokens_details outputTokensDetails".split()
_ORDINARY = frozenset(
    "text_tokens cached_tokens cache_write_tokens cache_creation_tokens reasoning_tokens thinking_tokens"
    " accepted_prediction_tokens rejected_prediction_tokens cached_read_tokens".split()
)
"""Details whose tokens have the price of input or output, or a price of the cache."""
_MODALITIES = {"input": "promptTokensDetails", "output": "candidatesTokensDetails"}
_PER_CALL = frozenset(
    "num_sources_used num_search_queries web_search_requests prompt_audio_seconds citation_tokens".split()
)
"""What is charged beside tokens, and has no price here."""
_USAGES = "usage usageMetadata usage_metadata".split()
_COSTS = "cost total_cost estimated_cost".split()
_COST_FIELDS = frozenset({*_COSTS, "cost_in_usd_ticks", "cost_details"})
_TICKS_PER_USD = Decimal(10**10)
"""xAI's unit of cost."""
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
"""What is written to log and trail: a vendor must not get other text there."""
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")


class _Unreadable(Exception):
    """A figure is there and cannot be meant."""


def usage_of(body: Any) -> Any:
    """The part of an answer's JSON that has its token figures; ``None`` where there is none."""
    for name in _USAGES:
        if (found := _field(body, name)) is not None:
            return found
    if isinstance(body, Mapping):
        meta = body.get("meta")
        for holder in (meta.get("billed_units"), meta.get("tokens")) if isinstance(meta, Mapping) else ():
            if isinstance(holder, Mapping):
                return holder
        if any(name in body for name in ("prompt_eval_count", "eval_count")):
            return body
    return None


def read_usage(reported: Any) -> Usage | None:
    """The vendor's figures; ``None`` where there are none (litellm then fills in zeros) or none that can be meant.

    Input holds what was read from the prompt cache and what was written to it: OpenAI's and Gemini's own figures do,
    and for Anthropic and Bedrock litellm adds both. Where the two parts are more than the whole, or stand beside a
    figure that leaves them out by its vendor's definition, they are added here. Output holds what a model thought;
    where the parts or the total show that it does not (xAI, Gemini), that is added.
    """
    try:
        return _usage(reported)
    except _Unreadable:
        return None


def _usage(reported: Any) -> Usage | None:
    prompt, prompt_name = _first(reported, _INPUT)
    output, output_name = _first(reported, _OUTPUT)
    if not prompt or output_name is None:
        return None
    details = next((found for name in _INPUT_DETAILS if (found := _field(reported, name)) is not None), None)
    said = next((found for name in _OUTPUT_DETAILS if (found := _field(reported, name)) is not None), None)
    if any(isinstance(part, list | str | int | float) for part in (details, said)):
        raise _Unreadable
    cached = _first(details, _CACHED)[0] or _first(reported, [*_READ, *_CACHED])[0]
    write = _first(details, ["cache_write_tokens", "cache_creation_tokens"])[0] or _first(reported, _WRITTEN)[0]
    apart = prompt_name in _EXCLUSIVE and (_first(reported, _READ)[0] or _first(reported, _WRITTEN)[0])
    if cached + write > prompt or apart:
        prompt += cached + write
    prompt += _count(reported, "toolUsePromptTokenCount")
    thought = _first(said, ["reasoning_tokens", "thinking_tokens"])[0]
    if thought > output:
        output += thought
    output += _count(reported, "thoughtsTokenCount")
    output = max(output, _first(reported, _TOTAL)[0] - prompt)
    other = tuple(_other_kinds(reported, details, said))
    if max(prompt, output) > _MOST_TOKENS:
        return None
    return Usage(prompt, output, cached, write, _kept_an_hour(details, write), other)


def _other_kinds(reported: Any, details: Any, said: Any) -> Iterator[tuple[str, int]]:
    """Tokens that have prices of their own, by names such as ``audio_input``; and what is charged beside tokens."""
    for side, figures in (("input", details), ("output", said)):
        if figures is not None:
            yield from _other_details(side, figures)
        modalities = _field(reported, _MODALITIES[side])
        for part in modalities if isinstance(modalities, list) else ():
            kind, count = str(_field(part, "modality")).lower(), _count(part, "tokenCount")
            if kind not in ("text", "modality_unspecified") and count:
                yield f"{kind}_{side}", count
    for holder in (reported, _field(reported, "server_tool_use")):
        if isinstance(holder, dict):
            yield from ((name, count) for name in _PER_CALL & holder.keys() if (count := _count(holder, name)))


def _other_details(side: str, figures: Any) -> Iterator[tuple[str, int]]:
    for name in figures if isinstance(figures, dict) else ("audio_tokens", "image_tokens", "video_tokens"):
        if name not in _ORDINARY and name.endswith("_tokens") and (count := _count(figures, name)):
            yield f"{name.removesuffix('_tokens')}_{side}", count


def _kept_an_hour(details: Any, write: int) -> int:
    """Of the tokens written to the cache, those that may be charged as kept for an hour: all but what was said to be
    kept for five minutes. A vendor with only one kind has one price for both."""
    split = _field(details, "cache_creation_token_details")
    return max(0, write - _count(split, "ephemeral_5m_input_tokens"))


def _first(figures: Any, names: list[str]) -> tuple[int, str | None]:
    """The first figure that is not 0, with its name; else 0 and the first name that is there at all."""
    there = None
    for name in names:
        if _field(figures, name) is not None:
            there = there or name
            if count := _count(figures, name):
                return count, name
    return 0, there


def _count(figures: Any, name: str) -> int:
    """A number of tokens, 0 where there is none. Raises ``_Unreadable`` where it is there and cannot be meant."""
    value = _field(figures, name)
    if value is None:
        return 0
    if type(value) is not int:
        value = _whole(value)
    if not 0 <= value <= _MOST_TOKENS:
        raise _Unreadable
    return value


def _whole(value: Any) -> int:
    if isinstance(value, str) and len(value) <= 20:
        try:
            value = float(value)
        except ValueError:
            raise _Unreadable from None
    if not isinstance(value, float) or not math.isfinite(value) or value != int(value):
        raise _Unreadable
    return int(value)


# What an answer says of itself besides its tokens


def read_claims(body: Any, headers: Any = None) -> Claims:
    """Model, service tier and cost as an answer states them; ``headers`` is a look-up by lower-case name."""
    usage = usage_of(body)
    tier = next((found for holder in (body, usage) if (found := _field(holder, "service_tier")) is not None), None)
    model = _field(body, "model") or _field(body, "modelVersion")
    return Claims(
        model=None if not model else model if isinstance(model, str) and _MODEL.fullmatch(model) else "unreadable",
        service_tier=_tier(tier if tier is not None else _field(usage, "trafficType")),
        cost_usd=_cost(body, usage, headers),
    )


def _tier(said: Any) -> str | None:
    """In lower case; what is no word is a tier that nothing has a price for."""
    if said is None:
        return None
    return said.lower() if isinstance(said, str) and _WORD.fullmatch(said) else "unreadable"


def _cost(body: Any, usage: Any, headers: Any) -> Decimal | None:
    """The most that the answer says it costs, in USD."""
    if not isinstance(body, dict):
        return None
    in_header = None if headers is None else headers("x-litellm-response-cost")
    if in_header is None and "cost" not in body and not (isinstance(usage, dict) and _COST_FIELDS & usage.keys()):
        return None  # nearly always
    claims = [_usd(_field(usage, name)) for name in _COSTS]
    claims += [_usd(_field(body, "cost"))] if body is not usage else []
    claims.append(_usd(in_header))
    ticks = _usd(_field(usage, "cost_in_usd_ticks"), _MOST_USD * _TICKS_PER_USD)
    claims.append(None if ticks is None else ticks / _TICKS_PER_USD)
    details = _field(usage, "cost_details")
    upstream = _usd(_field(details, "upstream_inference_cost"))
    if upstream is not None and _field(usage, "is_byok") is True:  # OpenRouter: its fee, and the bill of one's own key
        claims.append(upstream + (claims[0] or 0))
    claims.append(upstream)
    return max((claim for claim in claims if claim is not None), default=None)


def _usd(value: Any, most: Decimal = _MOST_USD) -> Decimal | None:
    """An amount as a number, as digits, or as a mapping with its total or its parts (Perplexity).

    Infinite where it is a number that cannot be meant; ``None`` where there is none.
    """
    if isinstance(value, Mapping):
        total = _usd(value.get("total_cost", value.get("total")), most)
        parts = [_usd(part, most) for name, part in value.items() if name not in ("total_cost", "total")]
        return total if total is not None else sum((part for part in parts if part is not None), Decimal(0)) or None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        amount = Decimal(value.strip().removeprefix("$") if isinstance(value, str) else repr(value))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and 0 <= amount <= most else Decimal("Infinity")


def _field(thing: Any, name: str) -> Any:
    if type(thing) is dict:  # nearly always, and asked dozens of times an answer
        return thing.get(name)
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)
