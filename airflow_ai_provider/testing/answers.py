"""What the double answers: pure functions of the request, so that a test can foretell every answer.

Its tokens are simple and never more than the text's UTF-8 bytes, the bound on which cost estimates rest.

From a request's body to the bytes of its answer and what they are charged for. No state.
"""

from __future__ import annotations

import math
import re
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import shake_128
from typing import Any

import orjson

from airflow_ai_provider.testing import wire
from airflow_ai_provider.testing.behaviour import MARKER, Behaviour, Fault
from airflow_ai_provider.testing.invoice import Usage, answer_id

HEAD_CHARS = 60
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
_TOKEN = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+|[^\w\s]")
_MASKED = re.compile(r"\[[A-Z][A-Z0-9_]*_[A-Z0-9]{4,16}\]")
_MARKER = re.compile(MARKER.pattern.decode())
_DEEPEST = 12


def count_tokens(text: str) -> int:
    """Words, each Han character, each sign; at least 1."""
    return len(_TOKEN.findall(text)) or 1


def cut_to_tokens(text: str, limit: int) -> tuple[str, bool]:
    """The first ``limit`` tokens of a text, and whether that is less than all."""
    for number, token in enumerate(_TOKEN.finditer(text)):
        if number == limit:
            return text[: token.start()].rstrip(), True
    return text, False


def text_of(content: Any) -> str:
    """The text of a message: a string, or parts of which some are text."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return ""


def last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    return next((text_of(m.get("content")) for m in reversed(messages) if m.get("role") == "user"), "")


def count_parts(messages: Sequence[Mapping[str, Any]], kind: str) -> int:
    """How many parts of a kind, such as ``image_url`` or ``file``, the messages hold."""
    contents = (message.get("content") for message in messages)
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return sum(isinstance(part, Mapping) and part.get("type") == kind for part in parts)


def prompt_tokens(
    body: Mapping[str, Any], tokens_per_message: int = 0, *, image_tokens: int = 0, file_tokens: int = 0
) -> int:
    """Input tokens of a chat request; tools and an answer's schema are charged as vendors charge them, as text."""
    messages = body["messages"]
    total = sum(count_tokens(text_of(message.get("content"))) for message in messages)
    total += image_tokens * count_parts(messages, "image_url") + file_tokens * count_parts(messages, "file")
    for extra in (body.get("tools"), body.get("response_format")):
        if extra:
            total += count_tokens(orjson.dumps(extra).decode())
    return total + tokens_per_message * len(messages)


def answer_to(body: Mapping[str, Any]) -> str:
    """The full answer to a chat request: text, or JSON where ``response_format`` asks for it."""
    text = _plain_answer(last_user_text(body["messages"]))
    response_format = body.get("response_format") or {}
    match response_format.get("type"):
        case "json_object":
            return orjson.dumps({"answer": text}).decode()
        case "json_schema":
            schema = response_format.get("json_schema", {}).get("schema", {})
            return orjson.dumps(example_of(schema, text)).decode()
        case _:
            return text


def tool_calls_for(body: Mapping[str, Any], answer: str, name: str) -> list[dict[str, Any]]:
    """The call of a tool that a request insists on, named ``name``; none where the model may choose: it never does."""
    tools, choice = body.get("tools") or [], body.get("tool_choice")
    wanted = choice.get("function", {}).get("name") if isinstance(choice, Mapping) else None
    if not tools or not (wanted or choice == "required"):
        return []
    functions = [tool.get("function", {}) for tool in tools]
    function = next((each for each in functions if each.get("name") == wanted), functions[0])
    arguments = orjson.dumps(example_of(function.get("parameters") or {"type": "object"}, answer)).decode()
    return [{"id": name, "type": "function", "function": {"name": function.get("name"), "arguments": arguments}}]


def _plain_answer(prompt: str) -> str:
    """The prompt's beginning and every masked token in it, each once, in order."""
    plain = _MARKER.sub("", prompt).strip()
    head = plain[:HEAD_CHARS]
    if len(plain) > HEAD_CHARS and head.rfind("[") > head.rfind("]"):
        head = head[: head.rfind("[")]  # no half of a token
    tokens = dict.fromkeys(_MASKED.findall(plain))
    about = f'Answer about "{head.rstrip()}…"'
    return f"{about}: {' '.join(tokens)}" if tokens else about


def example_of(schema: Mapping[str, Any], text: str) -> Any:
    """A value that satisfies a simple JSON schema; its strings are ``text`` where the schema lets them."""
    return _example(schema, text, schema, 0)


def _example(schema: Mapping[str, Any], text: str, root: Mapping[str, Any], depth: int) -> Any:
    schema = _resolved(schema, root)
    if depth > _DEEPEST:
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        options = schema["enum"]
        return options[len(text) % len(options)]
    match _type_of(schema):
        case "object":
            properties = schema.get("properties") or {}
            return {name: _example(part, text, root, depth + 1) for name, part in properties.items()}
        case "array":
            length = max(int(schema.get("minItems", 0)), min(1, int(schema.get("maxItems", 1))))
            return [_example(schema.get("items") or {}, text, root, depth + 1)] * length
        case "integer" | "number" as kind:
            return _number(schema, whole=kind == "integer")
        case "boolean":
            return len(text) % 2 == 0
        case "null":
            return None
        case _:
            return _string(schema, text)


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow ``$ref``, take the first real choice of ``anyOf``/``oneOf``, merge ``allOf``."""
    for _ in range(_DEEPEST):
        if "$ref" in schema:
            target: Any = root
            for step in str(schema["$ref"]).removeprefix("#/").split("/"):
                target = target.get(step, {}) if isinstance(target, Mapping) else {}
            schema = target
        elif choices := schema.get("anyOf") or schema.get("oneOf"):
            schema = next((c for c in choices if c.get("type") != "null"), choices[0])
        elif parts := schema.get("allOf"):
            rest = {name: value for name, value in schema.items() if name != "allOf"}
            schema = {name: value for part in (*parts, rest) for name, value in part.items()}
        else:
            break
    return schema


def _type_of(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        return next((str(k) for k in kind if k != "null"), "null")
    return str(kind)


def _number(schema: Mapping[str, Any], *, whole: bool) -> float | int:
    low = schema.get("minimum", schema["exclusiveMinimum"] + 1 if "exclusiveMinimum" in schema else None)
    high = schema.get("maximum", schema["exclusiveMaximum"] - 1 if "exclusiveMaximum" in schema else None)
    if not whole and "exclusiveMinimum" in schema and high is not None:
        low = (schema["exclusiveMinimum"] + schema.get("exclusiveMaximum", high)) / 2
    value = low if low is not None else min(1, high) if high is not None else 1
    return math.ceil(value) if whole else float(value)


_FORMATS = {"date": "2024-02-29", "date-time": "2024-02-29T12:00:00Z", "time": "12:00:00Z", "email": "a@example.org"}


def _string(schema: Mapping[str, Any], text: str) -> str:
    text = _FORMATS.get(str(schema.get("format")), text)
    text = text.ljust(int(schema.get("minLength", 0)), ".")
    return text[: int(schema["maxLength"])] if "maxLength" in schema else text


@lru_cache(maxsize=4096)
def unit_vector(text: str, dimensions: int) -> bytes:
    """A vector of length 1 that only the text decides, as little-endian 32-bit floats."""
    raw = struct.unpack(f"<{dimensions}h", shake_128(text.encode()).digest(2 * dimensions))
    length = math.sqrt(sum(value * value for value in raw))
    if not length:
        raw, length = (1, *raw[1:]), 1.0
    return struct.pack(f"<{dimensions}f", *(value / length for value in raw))


def embedding_inputs(given: Any) -> list[tuple[str, int]]:
    """Texts and their token counts. Takes what the protocol takes: text, texts, token ids, or lists of token ids.

    Raises ``ValueError`` for anything else, and for an empty input.
    """
    if isinstance(given, str) or (isinstance(given, list) and given and all(isinstance(i, int) for i in given)):
        given = [given]
    if not isinstance(given, list) or not given:
        raise ValueError("expected a text, a list of texts, or lists of token ids, not empty")
    found = []
    for item in given:
        if isinstance(item, str) and item:
            found.append((item, count_tokens(item)))
        elif isinstance(item, list) and item and all(isinstance(i, int) for i in item):
            found.append((repr(item), len(item)))
        else:
            raise ValueError("expected each input to be a text or a list of token ids, not empty")
    return found


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
        embedding_inputs(body.get("input"))
    except ValueError as error:
        return wire.bad_request(f"'$.input' is invalid: {error}", "input")
    return None


def input_tokens(endpoint: str, body: Mapping[str, Any], behaviour: Behaviour) -> int:
    if endpoint == CHAT:
        return prompt_tokens(
            body,
            behaviour.tokens_per_message,
            image_tokens=behaviour.image_tokens,
            file_tokens=behaviour.file_tokens,
        )
    return sum(tokens for _, tokens in embedding_inputs(body["input"]))


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
    text, finish = _fitted(answer_to(body), body, fault)
    choices = int(body.get("n") or 1)
    calls = tool_calls_for(body, text, f"call_{request_id.removeprefix('req_')}")
    said = "".join(call["function"]["arguments"] for call in calls) or text
    usage = replace(prompt, completion_tokens=choices * (count_tokens(said) if said else 0))
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
        half = max(1, count_tokens(full) // 2)
        limit = half if limit is None else min(limit, half)
    if limit is None:
        return full, "stop"
    text, cut = cut_to_tokens(full, limit)
    return text, "length" if cut else "stop"


def _embeddings(body: Mapping[str, Any], usage: Usage, fault: Fault | None, default_dimensions: int) -> Made:
    dimensions = body.get("dimensions") or default_dimensions
    vectors = [unit_vector(text, dimensions) for text, _ in embedding_inputs(body["input"])]
    made = wire.embeddings_body(
        body["model"],
        vectors,
        usage.prompt_tokens,
        as_base64=body.get("encoding_format") == "base64",
        say_usage=fault is not Fault.NO_USAGE,
    )
    return Made(made, wire.JSON, usage)
