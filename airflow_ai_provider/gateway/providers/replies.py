"""What vendors answer and refuse, read in one way for every adapter.

A reading takes plain JSON values as well as objects with attributes, which is what litellm makes of them. Nothing a
vendor says leaves this module as it is: its errors may repeat the prompt, and its texts may be such that nobody can
write them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import orjson

from airflow_ai_provider.errors import VendorError, VendorPermanentError, VendorTransientError
from airflow_ai_provider.gateway.providers.base import LONGEST_WAIT, ModelReply, http_error, not_charged
from airflow_ai_provider.gateway.providers.delays import body_delay
from airflow_ai_provider.gateway.providers.quotas import Headers, exhausted_until, read_limits, retry_after
from airflow_ai_provider.ledger.money import Usage

_CODE = re.compile(r"[a-z][a-z0-9_]{2,39}")
_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "exceeded_current_quota_error"})
_QUOTA_PHRASES = ("credit balance is too low",)
"""Anthropic's, which has no code of its own. Gemini words its ordinary rate limit as OpenAI words a spent quota."""
_CONTEXT_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
"""OpenAI's and llama.cpp's."""
_CONTEXT_PHRASES = ("maximum context length", "context window", "context size", "prompt is too long")
"""OpenAI's and vLLM's, litellm's proxy's, llama.cpp's, and Anthropic's behind a proxy."""
_POLICY_CODES = frozenset({"content_policy_violation", "content_filter", "responsibleaipolicyviolation"})
"""OpenAI's, and Azure's outer and inner code."""
_POLICY_PHRASES = ("content management policy", "our safety system")
_REFUSED = frozenset({400, 403, 413, 422, 451})
"""Statuses with which a vendor may refuse what a request says."""
REDIRECTED_TO = "x-redirected-to"
"""What an adapter calls ``location`` where the client below it would follow that."""
_MOST_TOKENS = 10**9
_PLAIN_TEXT = 4000
"""Bytes of an error that is not JSON, in which a delay is looked for."""
_REQUEST_ID_HEADERS = ("request-id", "x-request-id", "x-amzn-requestid")
"""Anthropic's, OpenAI's and Bedrock's."""
_FINISH = {
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_length": "length",
    "tool_use": "tool_calls",
}
"""Other vendors' words for OpenAI's."""
_REASON = re.compile(r"[a-z][a-z_]{0,39}")
_THOUGHT = re.compile(r"\s*<(think|thinking)>.*?</\1>\s*", re.DOTALL)
"""What a reasoning model thought, where its server leaves that in the answer."""


def read_reply(name: str, body: Any, headers: Headers) -> ModelReply:
    """The answer of deployment ``name`` in the body of a chat completion.

    Raises ``VendorTransientError``, billed, where there is none in it.
    """
    choices = _field(body, "choices")
    message = _field(choices[0], "message") if isinstance(choices, list) and choices else None
    if message is None:
        raise unreadable(name)
    calls = _field(message, "tool_calls")
    return ModelReply(
        text=_text(_field(message, "content")),
        usage=read_usage(_field(body, "usage")),
        finish_reason=_finish(_field(choices[0], "finish_reason")),
        vendor_id=vendor_id(_field(body, "id"), headers),
        tool_calls=_plain(calls) if isinstance(calls, list) else (),
        limits=read_limits(headers, datetime.now(UTC)),
    )


def read_usage(reported: Any) -> Usage | None:
    """The vendor's figures; ``None`` where there are none (litellm then fills in zeros) or none that can be meant.

    ``prompt_tokens`` holds what was read from the prompt cache and what was written to it: OpenAI's and Gemini's own
    figures do, and for Anthropic and Bedrock litellm adds both (``AnthropicConfig.calculate_usage``,
    ``AmazonConverseConfig.transform_usage``; ``generic_cost_per_token`` relies on it). Where the two parts are more
    than the whole all the same, as behind a proxy that passes Anthropic's figures on as they are, they are added here.
    ``completion_tokens`` holds what a model thought; where the total shows that it does not (xAI), that is added.
    """
    prompt, output = _field(reported, "prompt_tokens"), _field(reported, "completion_tokens")
    if type(prompt) is not int or type(output) is not int or prompt <= 0 or output < 0:
        return None
    details = _field(reported, "prompt_tokens_details")
    cached = (
        _count(details, "cached_tokens")
        or _count(reported, "cache_read_input_tokens")
        or _count(reported, "prompt_cache_hit_tokens")
    )
    write = (
        _count(details, "cache_write_tokens")
        or _count(details, "cache_creation_tokens")
        or _count(reported, "cache_creation_input_tokens")
    )
    if cached + write > prompt:
        prompt += cached + write
    thought = _count(_field(reported, "completion_tokens_details"), "reasoning_tokens")
    if thought and _count(reported, "total_tokens") >= prompt + output + thought:
        output += thought
    if max(prompt, output) > _MOST_TOKENS:
        return None
    return Usage(prompt, output, cached, write, _kept_an_hour(details, write))


def vendor_id(name: object, headers: Headers) -> str | None:
    """The vendor's name of the answer: its ``id`` or, where it has none, the request id of its headers."""
    if isinstance(name, str):
        return _storable(name)
    return next((found for key in _REQUEST_ID_HEADERS if (found := _storable(headers(key)))), None)


def parse(name: str, content: bytes) -> Any:
    """The JSON of an answer. Raises ``VendorTransientError``, billed, where it is none.

    orjson refuses half of a surrogate pair, which vendors send when they cut an emoji; the library's json does not.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        halves = b"\\ud" in content or b"\\uD" in content
    if halves:
        with suppress(ValueError, RecursionError):
            return _clean(json.loads(content.decode()))
    raise unreadable(name)


# Errors


@dataclass(frozen=True, slots=True)
class Said:
    """What a vendor's error body says. None of it may be shown."""

    codes: frozenset[str] = frozenset()
    """In lower case, most general first."""
    code: str = ""
    message: str = ""
    """In lower case."""
    delay: float | None = None
    """Seconds it asks to wait."""


def read_error(content: bytes) -> Said:
    """OpenAI's form ``{"error": {"code", "type", "message"}}``, or what comes near it; empty where there is none."""
    now = datetime.now(UTC)
    try:
        body = orjson.loads(content)
    except ValueError:
        return Said(delay=_stated_delay({}, {}, content[:_PLAIN_TEXT].decode(errors="replace"), now))
    if isinstance(body, list) and body:  # Gemini's, where it speaks OpenAI's protocol
        body = body[0]
    whole = body if isinstance(body, Mapping) else {"error": body}
    error = whole.get("error", whole)
    if not isinstance(error, Mapping):
        text = str(error) if error else ""
        return Said(message=text.lower(), delay=_stated_delay({}, whole, text, now))
    inner = error.get("innererror")
    given = (error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, Mapping) else None)
    codes = [code for code in given if isinstance(code, str) and code]
    text = str(error.get("message") or error.get("detail") or "")
    delay = _stated_delay(error, whole, text, now)
    return Said(frozenset(map(str.lower, codes)), codes[0] if codes else "", text.lower(), delay)


def _stated_delay(error: Mapping[str, Any], whole: Mapping[str, Any], text: str, now: datetime) -> float | None:
    """Seconds that an error asks to wait, at most ``LONGEST_WAIT``: in its fields, in those around it, in its text, or
    in the headers that OpenRouter passes on in ``metadata``."""
    metadata = error.get("metadata")
    headers = metadata.get("headers") if isinstance(metadata, Mapping) else None
    passed_on = (
        {str(name).lower(): str(value) for name, value in headers.items()} if isinstance(headers, Mapping) else {}
    )
    for found in (
        body_delay(error, text, now),
        body_delay(whole, "", now),
        retry_after(passed_on.get, now),
        exhausted_until(passed_on.get, now),
    ):
        if found is not None:
            return min(found, LONGEST_WAIT)
    return None


def refused(
    name: str, status: int, said: Said, headers: Headers, *, context: bool = False, policy: bool = False
) -> VendorError:
    """The error for a complete HTTP response of ``status``; ``context`` and ``policy`` are what others know of it."""
    place, content = f"{name}: HTTP {status}", status in _REFUSED
    billed = not not_charged(status)
    if said.codes & _QUOTA_CODES or _any(_QUOTA_PHRASES, said.message):
        return VendorPermanentError(
            f"{place}: quota exhausted", kind="quota_exhausted", http_status=status, billed=billed
        )
    if context or (content and (said.codes & _CONTEXT_CODES or _any(_CONTEXT_PHRASES, said.message))):
        explanation = f"{place}: the row is larger than the model's context"
        return VendorPermanentError(explanation, kind="context_window", http_status=status, billed=billed)
    if policy or (content and (said.codes & _POLICY_CODES or _any(_POLICY_PHRASES, said.message))):
        explanation = f"{place}: refused by content policy"
        return VendorPermanentError(explanation, kind="content_policy", http_status=status, billed=billed)
    detail = _redirection(headers) if 300 <= status < 400 else said.code if _CODE.fullmatch(said.code) else ""
    return http_error(name, status, detail=detail, retry_after=_delay(status, said, headers, datetime.now(UTC)))


def not_connected(name: str, why: str = "") -> VendorTransientError:
    message = f"{name}: no connection could be made{f': {why}' if why else ''}"
    return VendorTransientError(message, kind="connection_refused")


def untrusted(name: str) -> VendorTransientError:
    return VendorTransientError(
        f"{name}: the server's certificate cannot be verified; name an authority of your own by SSL_CERT_FILE",
        kind="certificate",
    )


def timed_out(name: str) -> VendorTransientError:
    return VendorTransientError(f"{name}: no answer in time", kind="timeout", billed=True)


def lost(name: str) -> VendorTransientError:
    return VendorTransientError(f"{name}: connection lost", kind="connection_lost", billed=True)


def unreadable(name: str) -> VendorTransientError:
    return VendorTransientError(f"{name}: the answer cannot be read", kind="malformed", billed=True)


def wrong_address(name: str, status: int) -> VendorPermanentError:
    """A web page where an API should be. One with a status of success may still hide an answer that was charged."""
    message = f"{name}: HTTP {status} with a web page, which is no model's answer"
    return VendorPermanentError(message, kind="wrong_address", http_status=status, billed=not not_charged(status))


def is_page(status: int, content_type: str | None) -> bool:
    """Whether a response is a web page in place of an API's answer: a site's, a login's, a proxy's."""
    page = (content_type or "").partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")
    return page and (200 <= status < 300 or status in (404, 405))


def unknown_host(name: str) -> VendorTransientError:
    return VendorTransientError(f"{name}: there is no host of that name", kind="unknown_host")


def oversized(name: str, limit: int) -> VendorPermanentError:
    """Permanent: the same again would be paid for again."""
    message = f"{name}: the answer is larger than {limit // 2**20} MiB and was not read"
    return VendorPermanentError(message, kind="oversized", billed=True)


def _delay(status: int, said: Said, headers: Headers, now: datetime) -> float | None:
    """Seconds until the vendor wants to hear from us again: as it says so or, of a 429, by its quotas."""
    seconds = retry_after(headers, now)
    if seconds is None:
        seconds = said.delay
    if seconds is None and status == 429:
        seconds = exhausted_until(headers, now)
    return seconds


def _redirection(headers: Headers) -> str:
    """Where a redirect leads, without its path: that may hold a token."""
    try:
        target = urlsplit(headers("location") or headers(REDIRECTED_TO) or "")
        place = f" to {target.scheme}://{target.hostname}" if target.scheme and target.hostname else ""
    except ValueError:
        place = ""
    return f"it redirects{place}, and redirects are not followed: give the API's own address as api_base"


def _any(phrases: Sequence[str], message: str) -> bool:
    return any(phrase in message for phrase in phrases)


# Values


def _field(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def _plain(calls: Sequence[Any]) -> tuple[Mapping[str, Any], ...]:
    """Calls of tools as JSON values; litellm makes objects of them."""
    dumped = (_clean(call.model_dump(exclude_none=True)) if hasattr(call, "model_dump") else call for call in calls)
    return tuple(call for call in dumped if isinstance(call, Mapping))


def _clean(value: Any) -> Any:
    """JSON values with texts that can be written."""
    return json.loads(writable(json.dumps(value, ensure_ascii=False)))


def _text(content: Any) -> str:
    """The text of a message: a string, or parts of which some are text (Mistral's, when it thinks)."""
    if isinstance(content, list):
        parts = (_field(part, "text") for part in content if _field(part, "type") == "text")
        content = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str):
        return ""
    if "</think" in content and (thought := _THOUGHT.match(content)):
        content = content[thought.end() :]
    return writable(content)


def writable(text: str) -> str:
    """The text as UTF-8 can hold it: JSON lets a vendor send half of a surrogate pair, as when it cuts an emoji."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _finish(reason: object) -> str:
    if not isinstance(reason, str) or not _REASON.fullmatch(reason):
        return "stop"
    return _FINISH.get(reason, reason)


def _kept_an_hour(details: Any, write: int) -> int:
    """Of the tokens written to the cache, those that may be charged as kept for an hour: all but what was said to be
    kept for five minutes. Who offers only one kind has one price for both."""
    split = _field(details, "cache_creation_token_details")
    return max(0, write - _count(split, "ephemeral_5m_input_tokens"))


def _count(figures: Any, name: str) -> int:
    value = _field(figures, name)
    return value if type(value) is int and value > 0 else 0


def _storable(name: object) -> str | None:
    return name if isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable() else None
