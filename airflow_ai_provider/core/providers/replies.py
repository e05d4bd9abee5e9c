"""What vendors answer and refuse, read in one way for every adapter.

A reading takes plain JSON values as well as objects with attributes, which is what litellm makes of them. Nothing of a
vendor's errors leaves this module as it is, since they may repeat the prompt; texts are made writable as UTF-8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import orjson

from airflow_ai_provider.core.errors import VendorError, VendorPermanentError, VendorTransientError
from airflow_ai_provider.core.providers.base import LONGEST_WAIT, ModelReply, http_error, not_charged
from airflow_ai_provider.core.providers.finish_reasons import CUT, FAILED, REFUSED, ending_of, raw_reason, worse
from airflow_ai_provider.core.providers.quotas import Headers, body_delay, exhausted_until, read_limits, retry_after
from airflow_ai_provider.core.providers.reasoning import without_thought
from airflow_ai_provider.core.providers.refusals import InnerError, Refusal, inner_error, refusal_of
from airflow_ai_provider.core.providers.usage import read_claims, read_usage, usage_of

_CODE = re.compile(r"[a-z][a-z0-9_]{2,39}")
_EXPLANATIONS: Mapping[Refusal, str] = {
    "quota_exhausted": "quota exhausted",
    "unauthorized": "the key is refused",
    "too_large": "the row is larger than the quota of a whole minute",
    "context_window": "the row is larger than the model's context",
    "content_policy": "refused by content policy",
}
REDIRECTED_TO = "x-redirected-to"
"""What an adapter calls ``location`` where the client below it would follow that."""
_PLAIN_TEXT = 4000
"""Bytes of an error that is not JSON, in which a delay is looked for."""
_TEXT_PARTS = ("text", "output_text")
_REQUEST_ID_HEADERS = ("request-id", "x-request-id", "x-amzn-requestid")
"""Anthropic's, OpenAI's and Bedrock's."""


def has_openai_form(body: Any) -> bool:
    """Whether the JSON of an answer is a chat completion of OpenAI's protocol."""
    return isinstance(body, Mapping) and "choices" in body


def read_reply(
    name: str, body: Any, headers: Headers, *, messages: Sequence[Mapping[str, Any]] = (), read: Any = None
) -> ModelReply:
    """The answer of deployment ``name`` in the body of a chat completion.

    ``messages`` is what was asked. ``read`` is the body as a client library has read it: its tool calls are taken, and
    its text where the body has none, since that may have asked for a schema as a tool. Raises a ``VendorError`` where
    there is an error instead of an answer, as if the vendor had refused with that error's status;
    ``VendorTransientError``, billed, where there is neither.
    """
    raise_inner(name, body, headers)
    choice, message = _message(name, body)
    said = _field(message, "content"), _field(message, "tool_calls")
    if read is not None:
        _, ours = _message(name, read)
        said = said[0] or _field(ours, "content"), _field(ours, "tool_calls")
    ending = worse(ending_of(raw_reason(body, choice)), ending_of(_field(choice, "native_finish_reason")))
    reply = _reply(said, ending, usage_of(body), messages)
    return replace(
        reply if reply.tool_calls or ending == CUT else _or_refusal(reply, message),
        vendor_id=vendor_id(_field(body, "id"), headers),
        limits=read_limits(headers, datetime.now(UTC)),
        claims=read_claims(body, headers),
    )


def read_translated(
    name: str, read: Any, headers: Headers, *, messages: Sequence[Mapping[str, Any]], body: Any
) -> ModelReply:
    """The answer of a vendor with a protocol of its own, as litellm has made it OpenAI's.

    ``body`` is the vendor's JSON, which has the last word on why the answer ended and on what it says of itself;
    ``None`` where that is not known. Raises ``VendorTransientError``, billed, where there is no answer.
    """
    choice, message = _message(name, read)
    reason = raw_reason(body, None)
    ending = ending_of(_field(choice, "finish_reason") if reason is None else reason)
    if ending == FAILED:
        raise _refused_within(name, InnerError({}, None, {}, partial=True), body, headers)
    reply = _reply((_field(message, "content"), _field(message, "tool_calls")), ending, usage_of(read), messages)
    return replace(
        reply,
        vendor_id=vendor_id(_field(read, "id"), headers),
        limits=read_limits(headers, datetime.now(UTC)),
        claims=read_claims(body, headers),
    )


def raise_inner(name: str, body: Any, headers: Headers) -> None:
    """Raises the ``VendorError`` for an error that came with HTTP status 200, where ``body`` is one."""
    if (error := inner_error(body)) is not None:
        raise _refused_within(name, error, body, headers)


def _reply(said: tuple[Any, Any], ending: str, figures: Any, messages: Sequence[Mapping[str, Any]]) -> ModelReply:
    content, calls = said
    tool_calls = _plain(calls) if isinstance(calls, list) else ()
    text = without_thought(_text(content), lambda: _prompt(messages))
    usage = read_usage(figures)
    if usage is not None and not usage.output and (text or tool_calls):
        usage = None  # no answer is made of no tokens
    return ModelReply(text=writable(text), usage=usage, finish_reason=ending, tool_calls=tool_calls)


def _or_refusal(reply: ModelReply, message: Any) -> ModelReply:
    """The same, or what the model says instead of an answer: in a field of the message, or a part of its content."""
    said = _field(message, "refusal")
    if not said and isinstance(parts := _field(message, "content"), list):
        said = next((_field(part, "refusal") for part in parts if _field(part, "type") == "refusal"), None)
    if not isinstance(said, str) or not said.strip():
        return reply
    return replace(reply, finish_reason=REFUSED, text=reply.text or writable(said))


def _message(name: str, body: Any) -> tuple[Any, Any]:
    """The first choice, and its message. Raises ``VendorTransientError``, billed, where there is none.

    Choices that are none, from a vendor that says what it charged, are an answer without text.
    """
    choices = _field(body, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = _field(choice, "message")
    if message is not None or (choice is not None and _field(choice, "finish_reason") is not None):
        return choice, message
    if isinstance(choices, list) and not choices and read_usage(usage_of(body)) is not None:
        return {}, {}
    raise unreadable(name)


def _prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of all messages."""
    contents = (message.get("content") for message in messages)
    return "\n".join(_text(content) if not isinstance(content, str) else content for content in contents)


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
    return _said(body, now)


def _said(body: Any, now: datetime) -> Said:
    whole = body if isinstance(body, Mapping) else {"error": body}
    error = whole.get("error", whole)
    if not isinstance(error, Mapping):  # xAI's and Hugging Face's
        text = str(error) if error else ""
        beside = frozenset(code.lower() for name in ("code", "error_type") if isinstance(code := whole.get(name), str))
        return Said(beside, message=text.lower(), delay=_stated_delay({}, whole, text, now))
    codes = [code for code in _codes(error) if isinstance(code, str) and code]
    text = str(error.get("message") or error.get("detail") or "")
    delay = _stated_delay(error, whole, text, now)
    return Said(frozenset(map(str.lower, codes)), codes[0] if codes else "", text.lower(), delay)


def _codes(error: Mapping[str, Any]) -> Iterator[Any]:
    yield error.get("code")
    yield error.get("type")
    if isinstance(inner := error.get("innererror"), Mapping):  # Azure's
        yield inner.get("code")
    details = error.get("details")
    for detail in details[:20] if isinstance(details, list) else ():
        if isinstance(detail, Mapping):  # Gemini's
            yield detail.get("reason")


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


def _refused_within(name: str, found: InnerError, body: Any, headers: Headers) -> VendorError:
    """The error for one that came with HTTP status 200. Charged for where the answer says so, or began."""
    charged = found.partial or _says_it_is_charged(body)
    if found.status is None:
        message = f"{name}: an error without a status in an HTTP 200 answer"
        return VendorTransientError(message, kind="server_error", billed=True)
    said = _said({**found.body, "error": found.error}, datetime.now(UTC))
    error = refused(name, found.status, said, headers, place=f"{name}: error {found.status} in HTTP 200")
    error.billed |= charged
    return error


def _says_it_is_charged(body: Any) -> bool:
    figures = usage_of(body)
    counts = figures.values() if isinstance(figures, Mapping) else ()
    return any(isinstance(count, int | float) and not isinstance(count, bool) and count > 0 for count in counts)


def refused(
    name: str,
    status: int,
    said: Said,
    headers: Headers,
    *,
    context: bool = False,
    policy: bool = False,
    place: str | None = None,
) -> VendorError:
    """The error for a complete HTTP response of ``status``.

    ``context`` and ``policy`` are what a client library has made of it. ``place`` begins the message.
    """
    place = place or f"{name}: HTTP {status}"
    kind = refusal_of(status, said.codes, said.message)
    if kind is None or kind in ("context_window", "content_policy"):
        kind = "context_window" if context else "content_policy" if policy else kind
    if kind is not None:
        billed = not not_charged(status)
        return VendorPermanentError(f"{place}: {_EXPLANATIONS[kind]}", kind=kind, http_status=status, billed=billed)
    detail = _redirection(headers) if 300 <= status < 400 else said.code if _CODE.fullmatch(said.code) else ""
    return http_error(place, status, detail=detail, retry_after=_delay(status, said, headers, datetime.now(UTC)))


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


# Values


def _field(thing: Any, name: str) -> Any:
    if type(thing) is dict:
        return thing.get(name)
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
        parts = (_field(part, "text") for part in content if _field(part, "type") in _TEXT_PARTS)
        content = "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def writable(text: str) -> str:
    """The text as UTF-8 can hold it: JSON lets a vendor send half of a surrogate pair, as when it cuts an emoji."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _storable(name: object) -> str | None:
    return name if isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable() else None
