"""What vendors answer, and what must come of each: one case a line, to be added to.

A case says what the vendor sends and puts on its invoice, and what the row, the ledger and the response store must then
hold. ``test_vendor_zoo`` runs each through the gateway against the vendor double, over both adapters. The first request
of a row meets the case; a second one, if there is any, is answered well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from support.providers import completion

MODEL = "gpt-4o-mini"
AUDIO = "gpt-audio-mini"
INPUT, OUTPUT, CACHED = 150, 600, 75
"""Nano-dollars per token of ``MODEL`` in litellm's map."""
TOKENS = 100 * INPUT + 7 * OUTPUT
"""What the usual figures of ``completion`` cost."""
FAST = {"retry-after-ms": "5"}


@dataclass(frozen=True)
class Case:
    """One vendor answer."""

    name: str
    body: Any
    """JSON values, or text that is sent as it is."""
    row: Literal["ok", "rejected", "error", "retried"]
    """Of the row after its first request; ``retried``: it is asked again, and then ``ok``."""
    kind: str | None = None
    """Kind of the error of the row, or of its first attempt; ``None`` for ``ok``."""
    cost: int | Literal["hold", "more"] = "hold"
    """Nano-dollars of the attempt in the ledger. ``hold``: all of it, as ``unknown``; ``more``: the invoice."""
    invoice: int | None = None
    """Nano-dollars that the vendor charges; ``None``: nothing."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None
    """The row's answer; ``None``: not looked at."""
    reused: bool = False
    """Whether another run is served the same answer."""
    said: Literal["limited", "down", "up"] | None = None
    """What a failure tells pacing: cool down, count it for the circuit, or neither."""
    model: str = MODEL
    prompt: str = "What is it?"
    alone: bool = False
    """It stops its deployment, and cannot share one with others."""
    job: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the job, such as ``tools``."""


def good(
    name: str, body: Any, *, cost: int | Literal["hold", "more"] = TOKENS, text: str | None = "yes", **more: Any
) -> Case:
    invoice = more.pop("invoice", cost if isinstance(cost, int) else TOKENS)
    return Case(name, body, "ok", None, cost, invoice, text=text, reused=True, **more)


def bad(name: str, body: Any, kind: str, *, cost: int | Literal["hold"] = TOKENS, **more: Any) -> Case:
    return Case(name, body, "rejected", kind, cost, more.pop("invoice", TOKENS), **more)


def free(name: str, body: Any, row: Literal["retried", "error"], kind: str, said: Any, **more: Any) -> Case:
    """A failure that is certain to cost nothing."""
    return Case(name, body, row, kind, 0, None, said=said, **more)


def costly(name: str, body: Any, row: Literal["retried", "error"], kind: str, said: Any, **more: Any) -> Case:
    """A failure that may have been charged."""
    return Case(name, body, row, kind, "hold", more.pop("invoice", TOKENS), said=said, **more)


def said(content: Any = "yes", *, finish: Any = "stop", usage: Any = None, body: Any = None, **message: Any) -> Any:
    """A chat completion of ``MODEL``; ``body`` adds to its own fields."""
    return {**completion(content, finish=finish, usage=usage, **message), "model": MODEL, **(body or {})}


def used(usage: Any, **body: Any) -> Any:
    """A chat completion with these token figures alone."""
    return said(body={"usage": usage, **body})


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "refund", "parameters": SCHEMA}}
BY_SCHEMA = {"output_schema": SCHEMA}
BY_TOOL = {"tools": [TOOL], "tool_choice": "required"}


def call(arguments: str, finish: str) -> Any:
    function = {"name": "refund", "arguments": arguments}
    return said(None, finish=finish, tool_calls=[{"id": "c1", "type": "function", "function": function}])


ENDINGS = [
    good("stop", said()),
    *(good(f"stop as {word}", said(finish=word)) for word in ("eos", "end_turn", "STOP", "COMPLETE", "stop_sequence")),
    good("no finish reason", said(finish=None)),
    good("a finish reason nobody knows", said(finish="banana")),
    good("a finish reason that is no word", said(finish=17)),
    bad("length", said("ye", finish="length"), "truncated", text="ye"),
    *(
        bad(f"length as {word}", said("ye", finish=word), "truncated", text="ye")
        for word in (
            "max_tokens MAX_TOKENS model_length max_output_tokens model_context_window_exceeded pause_turn OTHER"
            " token_limit_reached error_limit"
        ).split()
    ),
    bad("length as SGLang writes it", said("ye", finish={"type": "length", "length": 50}), "truncated"),
    bad(
        "length behind a router's stop",
        said("ye", body=None)
        | {
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "native_finish_reason": "MAX_TOKENS",
                    "message": {"role": "assistant", "content": "ye"},
                }
            ]
        },
        "truncated",
    ),
    bad("length, before any text", said("", finish="length"), "truncated", text=""),
    bad(
        "length, all of it reasoning",
        said(
            None,
            finish="length",
            reasoning_content="let me see",
            usage={"completion_tokens_details": {"reasoning_tokens": 7}},
        ),
        "truncated",
        text="",
    ),
    bad("length, although the JSON is whole", said('{"a": "b"}', finish="length"), "truncated", job=BY_SCHEMA),
    bad("length, JSON cut", said('{"a": "b', finish="length"), "truncated", job=BY_SCHEMA),
    bad("JSON cut that says stop", said('{"a": "b'), "schema", job=BY_SCHEMA, reused=True),
    bad("length, a call cut", call('{"a": "b', "length"), "truncated", job=BY_TOOL),
    bad("length, a call that is whole", call('{"a": "b"}', "length"), "truncated", job=BY_TOOL),
    good("a call", call('{"a": "b"}', "tool_calls"), text=None, job=BY_TOOL),
    good("a call that says stop", call('{"a": "b"}', "stop"), text=None, job=BY_TOOL),
    good("a call as tool_use", call('{"a": "b"}', "tool_use"), text=None, job=BY_TOOL),
    bad("a call cut that says stop", call('{"a": "b', "stop"), "schema", job=BY_TOOL, reused=True),
    bad("text where a call was asked", said("no"), "schema", job=BY_TOOL, reused=True),
    bad("content_filter, half a text", said("ye", finish="content_filter"), "filtered", text="ye"),
    bad("content_filter, no text", said(None, finish="content_filter"), "filtered", text=""),
    bad(
        "content_filter, no message",
        said() | {"choices": [{"index": 0, "finish_reason": "content_filter", "message": None}]},
        "filtered",
    ),
    *(
        bad(f"filtered as {word}", said("ye", finish=word), "filtered")
        for word in (
            "SAFETY RECITATION PROHIBITED_CONTENT BLOCKLIST SPII safety recitation content_filtered sensitive"
            " guardrail_intervened ERROR_TOXIC IMAGE_SAFETY blocked_by_policy"
        ).split()
    ),
    bad(
        "refusal, null content",
        said(None, refusal="I cannot help with that."),
        "refused",
        text="I cannot help with that.",
    ),
    bad("refusal as a part", said([{"type": "refusal", "refusal": "I cannot."}]), "refused", text="I cannot."),
    bad("refusal with a schema", said(None, refusal="I cannot."), "refused", job=BY_SCHEMA),
    bad("refusal as a stop reason", said("I cannot.", finish="refusal"), "refused", text="I cannot."),
    good("a refusal that is null", said(refusal=None)),
    good("a refusal that is empty", said(refusal="")),
    bad("empty", said(""), "empty", text=""),
    bad("null", said(None), "empty", text=""),
    bad("white space", said(" \n\t\u3000"), "empty"),
    bad("zero width", said("\u200b\u200d\ufeff"), "empty"),
    bad("fillers", said("\u3164\u2800"), "empty"),
    bad("empty after reasoning", said("", reasoning_content="so it is 4"), "empty", text=""),
    bad("empty after reasoning, OpenRouter's name", said("", reasoning="so it is 4"), "empty", text=""),
    bad("only thinking parts", said([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]), "empty"),
    bad("no choices, but figures", said() | {"choices": []}, "empty"),
]

THOUGHTS = [
    good("a thought", said("<think>let me see</think>\n\nyes")),
    good("an empty thought", said("<think>\n\n</think>\n\nyes")),
    good("a thought without an opening tag", said("it may be so</think>yes")),
    good("the same on lines of its own", said("it may be so\n</think>\n\nyes")),
    bad("a thought that never ends", said("<think>it may"), "empty", text=""),
    bad("a thought that was cut", said("<think>it may", finish="length"), "truncated", text=""),
    bad("nothing after a thought", said("<think>it may</think>\n"), "empty", text=""),
    *(
        good(f"a thought in <{tag}>", said(f"<{tag}>let me see</{tag}>\nyes"))
        for tag in ("thinking", "reasoning", "thought", "reflection", "seed:think", "THINK")
    ),
    bad("reasoning that never ends", said("<reasoning>it may"), "empty", text=""),
    good("Magistral's", said("[THINK]let me see[/THINK]yes")),
    good("Kimi's", said("◁think▷let me see◁/think▷yes")),
    good(
        "harmony",
        said("<|channel|>analysis<|message|>let me see<|end|><|start|>assistant<|channel|>final<|message|>yes"),
    ),
    bad("harmony that was cut", said("<|channel|>analysis<|message|>let me", finish="length"), "truncated", text=""),
    good("harmony without its tokens", said("analysisWe must say yes.assistantfinalyes")),
    good(
        "parts, one of them a thought",
        said([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "yes"}]),
    ),
    good("reasoning_content beside an answer", said(reasoning_content="let me see")),
    good("two thoughts", said("<think>a</think><think>b</think>yes")),
    good("a thought within a thought", said("<think>a <think>b</think> c</think>yes")),
    good("a thought that is closed at once", said("<think/>yes")),
    good("Cohere's", said("<|START_THINKING|>a<|END_THINKING|>yes")),
    good("only harmony's final", said("<|start|>assistant<|channel|>final<|message|>yes<|return|>")),
    bad("a closing tag at the end", said("it may be</think>"), "empty", text=""),
    good("tags in a code block", said("```xml\n<think>a</think>\n```"), text="```xml\n<think>a</think>\n```"),
    good("a word that begins like a tag", said("<thoughtful>yes</thoughtful>"), text="<thoughtful>yes</thoughtful>"),
    good("a heading that says analysis", said("analysis of it: yes"), text="analysis of it: yes"),
    good(
        "<think> in the middle", said("Write <think> first, then </think>."), text="Write <think> first, then </think>."
    ),
    good("a closing tag in quotes", said("End it with `</think>` please"), text="End it with `</think>` please"),
    good(
        "a closing tag that was asked about",
        said("Yes, </think> ends it."),
        text="Yes, </think> ends it.",
        prompt="What does </think> do?",
    ),
    good(
        "XML that was asked for",
        said("<reasoning>a</reasoning><answer>b</answer>"),
        text="<reasoning>a</reasoning><answer>b</answer>",
        prompt="Answer as <reasoning>…</reasoning><answer>…</answer>",
    ),
    good(
        "XML that is asked for in words",
        said("<reasoning>a</reasoning><answer>b</answer>"),
        text="<reasoning>a</reasoning><answer>b</answer>",
        prompt="Answer in XML with elements reasoning and answer",
    ),
    good("other tags", said("<b>yes</b>"), text="<b>yes</b>"),
    good("a thought before JSON", said('<think>{"a": 1}</think>{"a": "b"}'), text='{"a": "b"}', job=BY_SCHEMA),
]

ERRORS = [
    free("429 inside", {"error": {"code": 429, "message": "slow"}}, "retried", "rate_limited", "limited", headers=FAST),
    free("429 inside, no header", {"error": {"code": 429}}, "retried", "rate_limited", "limited"),
    free("429 as text", {"error": {"code": "429"}}, "retried", "rate_limited", "limited", headers=FAST),
    free("429 as status", {"error": {"status": 429}}, "retried", "rate_limited", "limited", headers=FAST),
    free(
        "429 with empty choices",
        {"choices": [], "error": {"code": 429}},
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    free(
        "429 with null choices",
        {"choices": None, "error": {"code": 429}},
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    free(
        "429 in a list",
        [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}],
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    free(
        "429 in a choice",
        {"choices": [{"error": {"code": 429}, "finish_reason": "error", "message": {"content": ""}}]},
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    free("429 as a word", {"error": {"type": "rate_limit_error"}}, "retried", "rate_limited", "limited", headers=FAST),
    free(
        "429 in words", {"error": "Rate limit reached, slow down"}, "retried", "rate_limited", "limited", headers=FAST
    ),
    free(
        "429 of vLLM",
        {"object": "error", "message": "busy", "type": "TooManyRequests", "code": 429},
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    free(
        "429 as a private code",
        {"code": 42901, "message": "slow", "success": False},
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    free(
        "MiniMax's limit",
        {"base_resp": {"status_code": 1002, "status_msg": "rate limit"}, "choices": None},
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    free(
        "Dashscope's limit",
        {"code": "Throttling.RateQuota", "message": "slow"},
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    free(
        "AWS' limit",
        {"message": "slow", "__type": "ThrottlingException"},
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    free(
        "errors in a list",
        {"errors": [{"message": "slow", "code": 429}]},
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    free(
        "a problem document",
        {"status": 429, "title": "Too Many Requests"},
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    free(
        "a limit in Chinese",
        {"error": {"code": "1302", "message": "您的账户已达到速率限制"}},
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    free(
        "a model that is loading",
        {"error": "Model x is loading", "estimated_time": 20},
        "retried",
        "server_error",
        "down",
    ),
    free(
        "no balance",
        {"code": 30001, "message": "your account balance is insufficient"},
        "error",
        "payment_required",
        "up",
    ),
    free("no such model", {"code": 20012, "message": "Model does not exist"}, "error", "not_found", "up"),
    costly("an error of code 200", {"error": {"code": 200, "message": "x"}}, "retried", "server_error", "down"),
    costly("success false alone", {"success": False}, "retried", "server_error", "down"),
    free(
        "Baidu's limit",
        {"error_code": 18, "error_msg": "Open api qps request limit reached"},
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    free("500 inside", {"error": {"code": 500}}, "retried", "server_error", "down"),
    free("503 inside", {"error": {"code": 503, "message": "no instances"}}, "retried", "server_error", "down"),
    free("529 as a word", {"type": "error", "error": {"type": "overloaded_error"}}, "retried", "server_error", "down"),
    free("500 as a private code", {"code": 50001, "message": "x", "success": False}, "retried", "server_error", "down"),
    costly("502 inside", {"error": {"code": 502}}, "retried", "server_error", "down"),
    costly("504 inside", {"error": {"code": 504}}, "retried", "timeout", "down"),
    costly("408 inside", {"error": {"code": 408}}, "retried", "timeout", "down"),
    free("400 inside", {"error": {"code": 400, "message": "no"}}, "error", "bad_request", "up"),
    free("400 as a private code", {"code": 4001, "message": "no", "success": False}, "error", "bad_request", "up"),
    free("401 inside", {"error": {"code": 401}}, "error", "unauthorized", "up"),
    free("401 as a word", {"error": {"code": "invalid_api_key", "message": "x"}}, "error", "unauthorized", "up"),
    free("402 inside", {"error": {"code": 402, "message": "Insufficient credits"}}, "error", "payment_required", "up"),
    free("403 inside", {"error": {"code": 403}}, "error", "forbidden", "up"),
    free("404 inside", {"error": {"code": "model_not_found"}}, "error", "not_found", "up"),
    free(
        "quota inside", {"error": {"code": "insufficient_quota", "message": "x"}}, "error", "quota_exhausted", "limited"
    ),
    free(
        "context inside",
        {"error": {"code": 400, "message": "maximum context length is 8"}},
        "error",
        "context_window",
        "up",
    ),
    free("context inside, no status", {"error": {"code": "context_length_exceeded"}}, "error", "context_window", "up"),
    free("policy inside", {"error": {"code": "content_filter", "message": "x"}}, "error", "content_policy", "up"),
    free(
        "tokens of 0 beside an error",
        {"error": {"code": 500}, "usage": {"prompt_tokens": 0, "completion_tokens": 0}},
        "retried",
        "server_error",
        "down",
    ),
    costly(
        "tokens beside an error",
        {"error": {"code": 429}, "usage": {"prompt_tokens": 9, "completion_tokens": 1}},
        "retried",
        "rate_limited",
        "limited",
        headers=FAST,
    ),
    costly(
        "half an answer beside an error",
        {"choices": [{"error": {"code": 500}, "finish_reason": "error", "message": {"content": "ye"}}]},
        "retried",
        "server_error",
        "down",
    ),
    costly("finish_reason error", said("ye", finish="error"), "retried", "server_error", "down"),
    costly("finish_reason error, no text", said("", finish="error"), "retried", "server_error", "down"),
    costly("finish_reason abort", said("ye", finish="abort"), "retried", "server_error", "down"),
    costly(
        "DeepSeek's lack of resources",
        said("", finish="insufficient_system_resource"),
        "retried",
        "server_error",
        "down",
    ),
    costly("an error without a status", {"error": {"message": "something"}}, "retried", "server_error", "down"),
    costly("an error of one word", {"error": "oops"}, "retried", "server_error", "down"),
    good("an error that is null", said(body={"error": None})),
    good("an error beside a whole answer", said(body={"error": {"code": 429}})),
    costly("no choices", {"choices": []}, "retried", "malformed", "down"),
    costly("half of it", '{"choices": [{"mess', "retried", "malformed", "down"),
    costly("no JSON", "<html>busy</html>", "retried", "malformed", "down"),
    costly("null as a body", "null", "retried", "malformed", "down"),
    costly("a detail alone", {"detail": "Not Found"}, "retried", "malformed", "down"),
    costly("NaN in it", '{"choices": [], "usage": {"prompt_tokens": NaN}}', "retried", "malformed", "down"),
    free("HTTP 429", {"error": {"message": "slow"}}, "retried", "rate_limited", "limited", status=429, headers=FAST),
    free("HTTP 500", {"error": {"message": "x"}}, "retried", "server_error", "down", status=500),
    free("HTTP 529", {}, "retried", "server_error", "down", status=529),
    costly("HTTP 502", "<html>", "retried", "server_error", "down", status=502),
    free("HTTP 401", {}, "error", "unauthorized", "up", status=401),
    free("HTTP 400", {"error": {"message": "no"}}, "error", "bad_request", "up", status=400),
]

USAGE = [
    good("figures as floats", used({"prompt_tokens": 100.0, "completion_tokens": 7.0})),
    good("figures as text", used({"prompt_tokens": "100", "completion_tokens": "7"})),
    good("figures as floats in text", used({"prompt_tokens": "100.0", "completion_tokens": "7.0"})),
    good("Anthropic's names", used({"input_tokens": 100, "output_tokens": 7})),
    good("Gemini's names", used(None, usageMetadata={"promptTokenCount": 100, "candidatesTokenCount": 7})),
    good(
        "Gemini's thoughts",
        used(
            None,
            usageMetadata={
                "promptTokenCount": 100,
                "candidatesTokenCount": 7,
                "thoughtsTokenCount": 5,
                "totalTokenCount": 112,
            },
        ),
        cost=100 * INPUT + 12 * OUTPUT,
    ),
    good("Ollama's names", used(None, prompt_eval_count=100, eval_count=7)),
    good("Bedrock's names", used({"inputTokens": 100, "outputTokens": 7, "totalTokens": 107})),
    good("Cohere's place", used(None, meta={"billed_units": {"input_tokens": 100, "output_tokens": 7}})),
    good(
        "a total with thoughts",
        used({"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 120}),
        cost=100 * INPUT + 20 * OUTPUT,
    ),
    good(
        "thoughts beside the output",
        used({"prompt_tokens": 100, "completion_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 9}}),
        cost=100 * INPUT + 16 * OUTPUT,
    ),
    good("thoughts in the output", said(usage={"completion_tokens_details": {"reasoning_tokens": 5}})),
    good(
        "cached",
        said(usage={"prompt_tokens_details": {"cached_tokens": 40}}),
        cost=60 * INPUT + 40 * CACHED + 7 * OUTPUT,
    ),
    good(
        "cached as a float",
        said(usage={"prompt_tokens_details": {"cached_tokens": 40.0}}),
        cost=60 * INPUT + 40 * CACHED + 7 * OUTPUT,
    ),
    good(
        "Anthropic's cache beside its input",
        used({"input_tokens": 60, "output_tokens": 7, "cache_read_input_tokens": 40}),
        cost=60 * INPUT + 40 * CACHED + 7 * OUTPUT,
    ),
    good("no figures", said() | {"usage": None}, cost="hold"),
    good("no usage", {name: value for name, value in said().items() if name != "usage"}, cost="hold"),
    good("an empty usage", used({}), cost="hold"),
    good("figures of 0", used({"prompt_tokens": 0, "completion_tokens": 0}), cost="hold"),
    good("no output for a text", used({"prompt_tokens": 100, "completion_tokens": 0}), cost="hold"),
    *(
        good(f"input of {shown}", used({"prompt_tokens": count, "completion_tokens": 7}), cost="hold")
        for shown, count in {
            "-1": -1,
            "1e30": 10**30,
            "true": True,
            "1.5": 1.5,
            "NaN as text": "NaN",
            "a word": "many",
            "a list": [100],
        }.items()
    ),
    good("output of -7", used({"prompt_tokens": 100, "completion_tokens": -7}), cost="hold"),
    good("cached of -7", said(usage={"prompt_tokens_details": {"cached_tokens": -7}}), cost="hold"),
    good("audio without a price", said(usage={"completion_tokens_details": {"audio_tokens": 5}}), cost="hold"),
    good("images without a price", said(usage={"prompt_tokens_details": {"image_tokens": 50}}), cost="hold"),
    good("video without a price", said(usage={"prompt_tokens_details": {"video_tokens": 50}}), cost="hold"),
    good(
        "audio by Gemini's names",
        used(
            None,
            usageMetadata={
                "promptTokenCount": 100,
                "candidatesTokenCount": 7,
                "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 50}],
            },
        ),
        cost="hold",
    ),
    good("a kind nobody knows", said(usage={"completion_tokens_details": {"smell_tokens": 5}}), cost="hold"),
    good("searches", said(usage={"server_tool_use": {"web_search_requests": 2}}), cost="hold"),
    good(
        "audio with a price",
        said(
            usage={"completion_tokens_details": {"audio_tokens": 5}, "prompt_tokens_details": {"audio_tokens": 10}},
            body={"model": AUDIO},
        ),
        model=AUDIO,
        cost=90 * 600 + 10 * 10_000 + 2 * 2400 + 5 * 20_000,
    ),
    good(
        "kinds of 0", said(usage={"prompt_tokens_details": {"audio_tokens": 0, "image_tokens": 0, "text_tokens": 100}})
    ),
]

CLAIMS = [
    *(good(f"tier {tier}", said(body={"service_tier": tier})) for tier in ("default", "standard", "on_demand", "auto")),
    good("tier priority", said(body={"service_tier": "priority"}), cost=100 * 250 + 7 * 1000),
    good("tier PRIORITY", said(body={"service_tier": "PRIORITY"}), cost=100 * 250 + 7 * 1000),
    good("tier in usage", said(usage={"service_tier": "priority"}), cost=100 * 250 + 7 * 1000),
    good(
        "tier flex",
        said(body={"service_tier": "flex", "model": "gpt-5-mini"}),
        model="gpt-5-mini",
        cost=100 * 125 + 7 * 1000,
    ),
    good("tier flex without a price", said(body={"service_tier": "flex"}), cost="hold"),
    good("tier scale", said(body={"service_tier": "scale"}), cost="hold"),
    good("tier that is no word", said(body={"service_tier": 7}), cost="hold"),
    good("a dated model", said(body={"model": "gpt-4o-mini-2024-07-18"})),
    good("a model with its provider", said(body={"model": "openai/gpt-4o-mini"})),
    good("a model in capitals", said(body={"model": "GPT-4o-mini"})),
    good("no model", said(body={"model": None})),
    good("a cheaper model", said(body={"model": "gpt-4.1-nano"})),
    good(
        "a dearer model within the hold",
        said(usage={"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}, body={"model": "gpt-4o"}),
        cost=10 * 2500 + 10_000,
    ),
    good("a model without a price", said(body={"model": "llama-99"}), cost="hold"),
    good("another vendor's model", said(body={"model": "claude-haiku-4-5"}), cost="hold"),
    good("a model that is no name", said(body={"model": "the private words"}), cost="hold"),
    good("a cost above ours", said(usage={"cost": 0.00003}), cost=30_000),
    good("a cost above ours, as text", said(usage={"cost": "0.00003"}), cost=30_000),
    good(
        "a cost above ours, by parts",
        said(usage={"cost": {"input_tokens_cost": 0.00001, "request_cost": 0.00002}}),
        cost=30_000,
    ),
    good("a cost above ours, by its total", said(usage={"cost": {"total_cost": 0.00003}}), cost=30_000),
    good("a cost below ours", said(usage={"cost": 0.00001})),
    good("a cost that is ours", said(usage={"cost": 0.0000192})),
    good("a cost of 0", said(usage={"cost": 0})),
    good(
        "the bill of one's own key",
        said(usage={"cost": 0.00001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.00002}}),
        cost=30_000,
    ),
    good(
        "an upstream cost",
        said(usage={"cost": 0.00001, "cost_details": {"upstream_inference_cost": 0.00002}}),
        cost=20_000,
    ),
    good("a cost in ticks", said(usage={"cost_in_usd_ticks": 300_000}), cost=30_000),
    good("an estimated cost", said(usage={"estimated_cost": 0.00003}), cost=30_000),
    good("a cost in a header", said(), cost=30_000, headers={"x-litellm-response-cost": "0.00003"}),
    good("a cost of -1", said(usage={"cost": -1}), cost="hold"),
    good("a cost of NaN", said(usage={"cost": "NaN"}), cost="hold"),
    good("a cost above the hold", said(usage={"cost": 0.5}), cost=500_000_000, alone=True),
    good(
        "more tokens than were allowed",
        used({"prompt_tokens": 100, "completion_tokens": 5000}),
        alone=True,
        cost=100 * INPUT + 5000 * OUTPUT,
    ),
    good(
        "no tokens, and a cost above the hold",
        said() | {"usage": {"cost": 0.5}},
        cost="more",
        invoice=500_000_000,
        alone=True,
    ),
    good("a cost of a billion", said(usage={"cost": 1e9}), cost="hold"),
    good("a cost in words", said(usage={"cost": "free"})),
    good("no tokens, but a cost", said() | {"usage": {"cost": 0.00001}}, cost="hold"),
]


def of_openai(message: str, code: Any = None, kind: Any = None) -> Any:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def of_google(status: int, message: str, *details: Any) -> Any:
    """An error of Gemini where it speaks OpenAI's protocol."""
    return [{"error": {"code": status, "message": message, "status": "INVALID_ARGUMENT", "details": list(details)}}]


REFUSED_FOR: dict[str, dict[str, tuple[int, Any]]] = {
    "context_window": {
        "Anthropic": (400, of_openai("input length and `max_tokens` exceed context limit: 197202 + 21333 > 200000")),
        "Gemini": (400, of_google(400, "The input token count (9) exceeds the maximum number of tokens allowed (8).")),
        "litellm's proxy": (400, of_openai("litellm.ContextWindowExceededError: VertexAIException - x", "400")),
        "Bedrock": (400, {"message": "Input is too long for requested model."}),
        "Together": (422, of_openai("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193.")),
        "Hugging Face": (
            422,
            {"error": "Input validation error: `inputs` must have less than 4095 tokens.", "error_type": "validation"},
        ),
        "Mistral": (
            400,
            {
                "object": "error",
                "message": "Prompt contains 9 tokens, too large for model with 8 maximum context length",
                "type": "invalid_request_error",
                "code": "3051",
            },
        ),
        "DashScope": (
            400,
            of_openai("<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 8]"),
        ),
        "Zhipu": (400, {"error": {"code": "1261", "message": "Prompt 超长"}}),
        "Moonshot": (400, of_openai("Invalid request: Your request exceeded model token limit: 8192")),
        "xAI": (
            400,
            {"code": "Client specified an invalid argument", "error": "This model's maximum prompt length is 8"},
        ),
        "vLLM": (
            400,
            {
                "object": "error",
                "message": "The decoder prompt (length 9) is longer than the maximum model length of 8.",
                "type": "BadRequestError",
                "code": 400,
            },
        ),
        "SGLang": (
            400,
            {
                "object": "error",
                "message": "The input (9 tokens) is longer than the model's context length (8 tokens).",
                "type": "BadRequestError",
                "code": 400,
            },
        ),
        "LM Studio": (400, {"error": "the model is loaded with context length of only 8 tokens, which is not enough"}),
    },
    "content_policy": {
        "OpenAI": (400, of_openai("Invalid prompt: your prompt was flagged", "invalid_prompt")),
        "Anthropic": (400, of_openai("Output blocked by content filtering policy")),
        "litellm's proxy": (400, of_openai("litellm.ContentPolicyViolationError: AzureException - x", "400")),
        "DeepSeek": (400, of_openai("Content Exists Risk", "invalid_request_error")),
        "DashScope": (400, of_openai("Input data may contain inappropriate content.", "data_inspection_failed")),
        "DashScope's own": (400, {"code": "DataInspectionFailed", "message": "x"}),
        "Zhipu": (400, {"error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}}),
        "Moonshot": (
            400,
            of_openai("The request was rejected because it was considered high risk", None, "content_filter"),
        ),
        "Volcengine": (400, of_openai("x", "InputTextSensitiveContentDetected", "BadRequest")),
        "xAI, with 403": (403, {"code": "x", "error": "Content violates usage guidelines. Failed check: SAFETY"}),
        "OpenRouter, with 403": (403, {"error": {"code": 403, "message": "Input is flagged: requires moderation"}}),
        "Portkey": (446, of_openai("The guardrail checks defined in the config failed.", None, "hooks_failed")),
    },
    "quota_exhausted": {
        "Anthropic": (400, of_openai("Your credit balance is too low to access the Anthropic API.")),
        "litellm's proxy": (400, of_openai("Budget has been exceeded! Current cost: 5.2", "400", "budget_exceeded")),
        "litellm's proxy, with 429": (429, of_openai("Budget has been exceeded!", "429", "budget_exceeded")),
        "DashScope": (400, of_openai("Access denied, please make sure your account is in good standing.", "Arrearage")),
        "Zhipu, with 429": (429, {"error": {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}}),
        "xAI, with 429": (
            429,
            {"code": "x", "error": "Your team has either used all available credits or reached its"},
        ),
        "Moonshot": (429, of_openai("insufficient balance", None, "exceeded_current_quota_error")),
        "Volcengine": (403, of_openai("x", "AccountOverdueError", "Forbidden")),
    },
    "unauthorized": {
        "Gemini, with 400": (
            400,
            of_google(400, "API key not valid. Please pass a valid API key.", {"reason": "API_KEY_INVALID"}),
        ),
        "xAI, with 400": (400, {"code": "x", "error": "Incorrect API key provided: xa***ab."}),
        "Baidu, within 200": (200, {"error_code": 110, "error_msg": "Access token invalid or no longer valid"}),
        "MiniMax, within 200": (200, {"choices": None, "base_resp": {"status_code": 1004, "status_msg": "login fail"}}),
    },
    "not_found": {
        "LM Studio, within 200": (200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}),
    },
    "too_large": {
        "OpenAI, with 429": (
            429,
            of_openai(
                "Request too large for gpt-4o-mini on tokens per min (TPM): Limit 3, Requested 4.",
                "rate_limit_exceeded",
                "tokens",
            ),
        ),
        "Groq": (413, of_openai("Request too large for model `x`", "rate_limit_exceeded", "tokens")),
    },
}
"""By what is refused, and by vendor. Only the account's own 429 tells pacing to wait."""

REFUSALS = [
    *(
        free(
            f"{kind}: {vendor}",
            body,
            "error",
            kind,
            "limited" if kind == "quota_exhausted" and status == 429 else "up",
            status=status,
        )
        for kind, vendors in REFUSED_FOR.items()
        for vendor, (status, body) in vendors.items()
    ),
    *(
        bad(f"Gemini's {word}", said("ye", finish=word), "filtered", text="ye")
        for word in ("content_filter: SAFETY", "content_filter: RECITATION", "FinishReason.SAFETY", "ContentFilter")
    ),
    *(
        bad(f"length as {word}", said("ye", finish=word), "truncated", text="ye")
        for word in ("FinishReason.MAX_TOKENS", "maxTokens", "length: max_tokens", "(max_tokens)")
    ),
    *(good(f"stop as {word}", said(finish=word)) for word in ("endTurn", "FinishReason.STOP", "EOS_TOKEN", "null")),
    *(
        costly(f"{who}'s model that failed", body, "retried", "server_error", "down", status=424)
        for who, body in {
            "Bedrock": {"message": "The model has encountered an unexpected error.", "originalStatusCode": 500},
            "Azure ML": {"error": {"code": "424", "message": "Failed dependency"}},
            "Hugging Face": {"error": "Request failed during generation: out of memory", "error_type": "generation"},
        }.items()
    ),
    free("Groq's flex tier", of_openai("Flex tier capacity exceeded"), "retried", "rate_limited", "up", status=498),
    free("too early", of_openai("x"), "retried", "server_error", "up", status=425),
    good("a guardrail of Portkey's that only notes", said(body={"hook_results": {}}), status=246),
    costly("NVIDIA's, not ready", "", "retried", "malformed", "down", status=202),
    costly(
        "a stream that was not asked for",
        "data: {}\n\ndata: [DONE]\n\n",
        "retried",
        "malformed",
        "down",
        headers={"Content-Type": "text/event-stream"},
    ),
    good("blank lines before it", "\n\n" + json.dumps(said())),
    good("Spark's code 0", said(body={"code": 0, "message": "Success", "sid": "s"})),
    good("MiniMax's status 0", said(body={"base_resp": {"status_code": 0, "status_msg": ""}})),
    good(
        "Azure's filter results",
        said(body={"prompt_filter_results": [{"content_filter_results": {"hate": {"filtered": False}}}]}),
    ),
]

CASES = [*ENDINGS, *THOUGHTS, *ERRORS, *USAGE, *CLAIMS, *REFUSALS]
