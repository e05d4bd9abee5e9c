"""From a request's body to the bytes of its answer and what they are charged for. No state."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from airflow_ai_provider.testing import answers, wire
from airflow_ai_provider.testing.behaviour import Behaviour, Fault
from airflow_ai_provider.testing.invoice import Usage, answer_id

CHAT = "chat"
EMBEDDINGS = "embeddings"


@dataclass(frozen=True, slots=True)
class Made:
    """An answer."""

    body: bytes
    content_type: str
    usage: Usage


def wrong(endpoint: str, body: Any) -> wire.Refusal | None:
    """What makes this body unacceptable to the protocol, if anything does."""
    if not isinstance(body, dict):
        return wire.bad_request("We could not parse the JSON body of your request.")
    if not isinstance(body.get("model"), str):
        return wire.bad_request("you must provide a model parameter", "model")
    for name in ("max_tokens", "max_completion_tokens", "n", "dimensions"):
        value = body.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            return wire.bad_request(f"Invalid '{name}': expected an integer of at least 1.", name)
    return _wrong_messages(body) if endpoint == CHAT else _wrong_input(body)


def _wrong_messages(body: Mapping[str, Any]) -> wire.Refusal | None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        return wire.bad_request("'messages' must be a list of messages, not empty.", "messages")
    return None


def _wrong_input(body: Mapping[str, Any]) -> wire.Refusal | None:
    try:
        answers.embedding_inputs(body.get("input"))
    except ValueError as error:
        return wire.bad_request(f"'$.input' is invalid: {error}", "input")
    return None


def input_tokens(endpoint: str, body: Mapping[str, Any], behaviour: Behaviour) -> int:
    if endpoint == CHAT:
        return answers.prompt_tokens(
            body,
            behaviour.tokens_per_message,
            image_tokens=behaviour.image_tokens,
            file_tokens=behaviour.file_tokens,
        )
    return sum(tokens for _, tokens in answers.embedding_inputs(body["input"]))


def make(
    endpoint: str, body: Mapping[str, Any], tokens: int, fault: Fault | None, behaviour: Behaviour, request_id: str
) -> Made:
    """The answer, with the faults that are part of it: truncated, empty, without usage."""
    if endpoint == EMBEDDINGS:
        return _embeddings(body, Usage(tokens, 0), fault, behaviour.dimensions)
    return _completion(body, _prompt_usage(tokens, behaviour), fault, request_id)


def _prompt_usage(tokens: int, behaviour: Behaviour) -> Usage:
    cached = int(tokens * behaviour.cached_share)
    return Usage(tokens, 0, cached, int((tokens - cached) * behaviour.cache_write_share))


def _completion(body: Mapping[str, Any], prompt: Usage, fault: Fault | None, request_id: str) -> Made:
    text, finish = _fitted(answers.answer_to(body), body, fault)
    choices = int(body.get("n") or 1)
    calls = answers.tool_calls_for(body, text, f"call_{request_id.removeprefix('req_')}")
    said = "".join(call["function"]["arguments"] for call in calls) or text
    usage = replace(prompt, completion_tokens=choices * (answers.count_tokens(said) if said else 0))
    completion = wire.Completion(
        id=answer_id(request_id),
        created=int(time.time()),
        model=body["model"],
        text=text,
        finish_reason="tool_calls" if calls else finish,
        usage=usage,
        choices=choices,
        say_usage=fault is not Fault.NO_USAGE,
        tool_calls=calls,
    )
    if not body.get("stream"):
        return Made(completion.body(), wire.JSON, usage)
    include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    return Made(b"".join(completion.events(include_usage=include_usage)), wire.EVENTS, usage)


def _fitted(full: str, body: Mapping[str, Any], fault: Fault | None) -> tuple[str, str]:
    """The text within the request's own limit, and why it ends where it ends."""
    if fault is Fault.EMPTY:
        return "", "stop"
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if fault is Fault.TRUNCATED:
        half = max(1, answers.count_tokens(full) // 2)
        limit = half if limit is None else min(limit, half)
    if limit is None:
        return full, "stop"
    text, cut = answers.cut_to_tokens(full, limit)
    return text, "length" if cut else "stop"


def _embeddings(body: Mapping[str, Any], usage: Usage, fault: Fault | None, default_dimensions: int) -> Made:
    dimensions = body.get("dimensions") or default_dimensions
    vectors = [answers.unit_vector(text, dimensions) for text, _ in answers.embedding_inputs(body["input"])]
    made = wire.embeddings_body(
        body["model"],
        vectors,
        usage.prompt_tokens,
        as_base64=body.get("encoding_format") == "base64",
        say_usage=fault is not Fault.NO_USAGE,
    )
    return Made(made, wire.JSON, usage)
