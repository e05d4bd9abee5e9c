"""Bodies and headers as an OpenAI-compatible vendor sends them. Values in, bytes out; no state."""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from airflow_ai_provider.testing.behaviour import Fault
from airflow_ai_provider.testing.invoice import Usage

JSON = "application/json"
EVENTS = "text/event-stream"
_PIECE = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as the vendor words it."""

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None
    location: str | None = None

    def body(self) -> bytes:
        return orjson.dumps(
            {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        )

    def headers(self) -> dict[str, str]:
        if self.location is not None:
            return {"location": self.location}
        if self.retry_after is None:
            return {}
        return {
            "retry-after": str(math.ceil(self.retry_after)),
            "retry-after-ms": str(math.ceil(self.retry_after * 1000)),
        }


_INVALID = "invalid_request_error"
REFUSALS: Mapping[Fault, Refusal] = {
    Fault.UNAUTHORIZED: Refusal(401, "Incorrect API key provided.", _INVALID, "invalid_api_key"),
    Fault.FORBIDDEN: Refusal(403, "Country, region, or territory not supported", "request_forbidden", "unsupported"),
    Fault.NOT_FOUND: Refusal(404, "The model does not exist or is not yours to use.", _INVALID, "model_not_found"),
    Fault.REQUEST_TIMEOUT: Refusal(408, "The request took too long to arrive.", "timeout"),
    Fault.CONFLICT: Refusal(409, "The resource was updated by another request.", "conflict_error"),
    Fault.UNPROCESSABLE: Refusal(422, "Unable to process the request.", _INVALID),
    Fault.RATE_LIMITED: Refusal(429, "Rate limit reached on requests per min.", "requests", "rate_limit_exceeded"),
    Fault.SERVER_ERROR: Refusal(500, "The server had an error while processing your request. Sorry!", "server_error"),
    Fault.BAD_GATEWAY: Refusal(502, "Bad gateway.", "server_error", "bad_gateway"),
    Fault.UNAVAILABLE: Refusal(503, "The engine is currently overloaded, please try again later.", "server_error"),
    Fault.GATEWAY_TIMEOUT: Refusal(504, "The upstream did not answer in time.", "server_error", "gateway_timeout"),
    Fault.REDIRECT: Refusal(307, "Moved.", "redirect", location="/v1/chat/completions?moved=1"),
    Fault.INSUFFICIENT_QUOTA: Refusal(
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        "insufficient_quota",
    ),
    Fault.CONTENT_POLICY: Refusal(
        400, "Your request was rejected by our safety system.", _INVALID, "content_policy_violation"
    ),
    Fault.CONTEXT_LENGTH: Refusal(
        400,
        "This model's maximum context length is exceeded. Please reduce the length of the messages.",
        _INVALID,
        "context_length_exceeded",
        "messages",
    ),
}


def refusal_of(fault: Fault, retry_after: float) -> Refusal | None:
    """How the vendor words this fault; None for a fault that is no refusal."""
    refusal = REFUSALS.get(fault)
    if refusal is None or fault not in (Fault.RATE_LIMITED, Fault.UNAVAILABLE):
        return refusal
    return Refusal(refusal.status, refusal.message, refusal.type, refusal.code, retry_after=retry_after)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    return Refusal(400, message, _INVALID, code, param)


def unsupported(param: str) -> Refusal:
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}.get(param)
    advice = f" Use '{other}' instead." if other else ""
    message = f"Unsupported parameter: '{param}' is not supported with this model.{advice}"
    return bad_request(message, param, "unsupported_parameter")


def unknown_model(model: str) -> Refusal:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return Refusal(404, message, _INVALID, "model_not_found", "model")


def too_long(limit: int, tokens: int) -> Refusal:
    message = (
        f"This model's maximum context length is {limit} tokens. However, your messages resulted in {tokens} tokens. "
        "Please reduce the length of the messages."
    )
    return bad_request(message, "messages", "context_length_exceeded")


def over_limit(model: str, what: str, limit: int, retry_after: float) -> Refusal:
    message = (
        f"Rate limit reached for {model} on {what} per min: Limit {limit}. "
        f"Please try again in {retry_after * 1000:.0f}ms."
    )
    return Refusal(429, message, what, "rate_limit_exceeded", retry_after=retry_after)


@dataclass(frozen=True, slots=True)
class Completion:
    """One chat answer before it becomes bytes."""

    id: str
    created: int
    model: str
    text: str
    finish_reason: str
    usage: Usage
    choices: int = 1
    say_usage: bool = True
    tool_calls: Sequence[Mapping[str, Any]] = ()
    """Instead of the text. A stream says the text."""

    def body(self) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None, "annotations": []}
        if self.tool_calls:
            message |= {"content": None, "tool_calls": self.tool_calls}
        choice = {"message": message, "logprobs": None, "finish_reason": self.finish_reason}
        body = self._head("chat.completion") | {
            "choices": [{"index": index, **choice} for index in range(self.choices)],
            "usage": usage_body(self.usage),
            "service_tier": "default",
            "system_fingerprint": "fp_double",
        }
        if not self.say_usage:
            del body["usage"]
        return orjson.dumps(body)

    def events(self, *, include_usage: bool) -> Iterator[bytes]:
        """Server-sent events: a role, the text word by word, the end, usage where asked, ``[DONE]``."""
        deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
        deltas += [({"content": piece}, None) for piece in _PIECE.findall(self.text)]
        deltas.append(({}, self.finish_reason))
        head = self._head("chat.completion.chunk")
        for delta, finish in deltas:
            for index in range(self.choices):
                choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
                yield _event(head | {"choices": [choice]})
        if include_usage and self.say_usage:
            yield _event(head | {"choices": [], "usage": usage_body(self.usage)})
        yield b"data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def embeddings_body(model: str, vectors: Sequence[bytes], tokens: int, *, as_base64: bool, say_usage: bool) -> bytes:
    """``vectors`` are little-endian 32-bit floats."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector).decode()
            if as_base64
            else struct.unpack(f"<{len(vector) // 4}f", vector),
        }
        for index, vector in enumerate(vectors)
    ]
    body: dict[str, Any] = {"object": "list", "data": data, "model": model}
    if say_usage:
        body["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps(body)


def models_body(models: Sequence[str], created: int) -> bytes:
    data = [{"id": model, "object": "model", "created": created, "owned_by": "vendor-double"} for model in models]
    return orjson.dumps({"object": "list", "data": data})


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
