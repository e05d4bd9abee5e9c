"""What a vendor's refusal is about, and errors inside answers of HTTP status 200.

Tells from a vendor's words what a refusal is about, where its HTTP status does not say: key, account or row.

Many vendors refuse a bad key, a spent account, a row that is too long and a row whose contents they do not take with
one and the same 400 or 429. Pure; every text that is passed in is in lower case.

Errors that come inside an answer of HTTP status 200: found, and given the status that they stand for.

The status is taken from the error itself: a number from 400 to 599, or a word that names one (``rate_limit_error``,
``RESOURCE_EXHAUSTED``), or what the message says. A vendor's private numbers (``42901``, ``4001``) count by their first
digits, last of all. An error without any of these has no status, and may have been charged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from airflow_ai_provider.core.providers.finish_reasons import FAILED, ending_of, raw_reason

Refusal = Literal["quota_exhausted", "unauthorized", "too_large", "context_window", "content_policy"]


class _Words(NamedTuple):
    """How vendors word one kind of refusal."""

    statuses: frozenset[int] | None
    """HTTP statuses with which it comes; ``None``: any."""
    codes: frozenset[str]
    """Without anything but letters and digits."""
    phrases: tuple[str, ...]


_OF_CONTENT = frozenset({400, 403, 413, 422, 446, 451})
"""446 is Portkey's, for a guardrail."""
_WORDS: Mapping[Refusal, _Words] = {
    "quota_exhausted": _Words(
        None,
        frozenset(
            "insufficientquota billinghardlimitreached exceededcurrentquotaerror budgetexceeded arrearage"
            " accountoverdueerror".split()
        ),
        (
            "credit balance is too low",  # Anthropic
            "used all available credits",  # xAI
            "monthly spending limit",
            "budget has been exceeded",  # litellm's proxy
            "余额不足",  # Zhipu, with 429
            "欠费",
        ),
    ),
    "unauthorized": _Words(
        frozenset({400, 403}),
        frozenset({"apikeyinvalid", "invalidapikey"}),  # Gemini
        ("api key not valid", "incorrect api key", "invalid api key"),  # Gemini, xAI
    ),
    "too_large": _Words(
        frozenset({429}),
        frozenset(),
        ("request too large", "must be reduced in order to run"),  # OpenAI: larger than the quota of a whole minute
    ),
    "context_window": _Words(
        _OF_CONTENT,
        frozenset({"contextlengthexceeded", "exceedcontextsizeerror", "contextwindowexceedederror"}),
        (
            "maximum context length",  # OpenAI, vLLM, Mistral
            "context window",
            "contextwindowexceeded",  # litellm's proxy
            "context size",  # llama.cpp
            "context limit",  # Anthropic
            "context length",  # SGLang, LM Studio
            "prompt is too long",
            "input is too long",  # Bedrock
            "maximum prompt length",  # xAI
            "maximum model length",  # vLLM
            "maximum number of tokens allowed",  # Gemini
            "model token limit",  # Moonshot
            "range of input length",  # DashScope
            "`inputs` must have less than",  # Hugging Face
            "`inputs` tokens + `max_new_tokens` must be",
            "prompt 超长",  # Zhipu
        ),
    ),
    "content_policy": _Words(
        _OF_CONTENT,
        frozenset(
            "contentpolicyviolation contentfilter responsibleaipolicyviolation datainspectionfailed invalidprompt"
            " hooksfailed inputtextsensitivecontentdetected outputtextsensitivecontentdetected"
            " inputimagesensitivecontentdetected".split()
        ),
        (
            "content management policy",  # Azure
            "our safety system",  # OpenAI
            "violating our usage policy",
            "content filtering policy",  # Anthropic
            "contentpolicyviolation",  # litellm's proxy
            "violates usage guidelines",  # xAI, with 403
            "requires moderation",  # OpenRouter, with 403
            "content exists risk",  # DeepSeek
            "inappropriate content",  # DashScope
            "considered high risk",  # Moonshot
            "不安全或敏感",  # Zhipu
        ),
    ),
}


def refusal_of(status: int, codes: Iterable[str], message: str) -> Refusal | None:
    """What a refusal of this HTTP status is about, by its codes and its message; ``None`` where they do not tell."""
    plain = {re.sub(r"[^a-z0-9]", "", code) for code in codes}
    for kind, words in _WORDS.items():
        if words.statuses is not None and status not in words.statuses:
            continue
        if plain & words.codes or any(phrase in message for phrase in words.phrases):
            return kind
    return None


@dataclass(frozen=True, slots=True)
class InnerError:
    """An error instead of an answer."""

    error: Any
    """What the vendor says of it: a mapping, or text. None of it may be shown."""
    status: int | None
    """The HTTP status that it stands for; ``None`` where that is not known."""
    body: Mapping[str, Any]
    """What it stands in."""
    partial: bool
    """Whether part of an answer came with it."""


_HTTP = range(400, 600)
_CODE_NAMES = "code status status_code statusCode http_status http_code type error_code __type".split()
_STATUS_WORDS: Sequence[tuple[str, int]] = (
    ("ratelimit", 429),
    ("toomanyrequests", 429),
    ("throttl", 429),
    ("limitexceeded", 429),
    ("resourceexhausted", 429),
    ("quota", 429),
    ("balance", 402),
    ("paymentrequired", 402),
    ("insufficientcredits", 402),
    ("billing", 402),
    ("overload", 503),
    ("unavailable", 503),
    ("capacity", 503),
    ("apikey", 401),
    ("authentication", 401),
    ("unauthorized", 401),
    ("unauthenticated", 401),
    ("permission", 403),
    ("forbidden", 403),
    ("accessdenied", 403),
    ("notfound", 404),
    ("toolarge", 413),
    ("timeout", 504),
    ("deadlineexceeded", 504),
    ("badgateway", 502),
    ("upstream", 502),
    ("contextlength", 400),
    ("contextsize", 400),
    ("contentpolicy", 400),
    ("contentfilter", 400),
    ("responsibleaipolicy", 400),
    ("invalid", 400),
    ("badrequest", 400),
    ("unsupported", 400),
    ("servererror", 500),
    ("internal", 500),
    ("apierror", 500),
)
"""What a code says, without its underscores; the first that fits."""
_PHRASES: Sequence[tuple[str, int]] = (
    ("rate limit", 429),
    ("too many requests", 429),
    ("ratelimit", 429),
    ("qps", 429),
    ("速率限制", 429),
    ("过于频繁", 429),
    ("account balance", 402),
    ("insufficient balance", 402),
    ("余额不足", 402),
    ("insufficient credit", 402),
    ("credit balance", 402),
    ("quota", 429),
    ("overloaded", 503),
    ("temporarily unavailable", 503),
    ("at capacity", 503),
    ("is loading", 503),
    ("currently loading", 503),
    ("api key", 401),
    ("access token", 401),
    ("login fail", 401),
    ("unexpected endpoint", 404),
    ("model does not exist", 404),
    ("model not found", 404),
    ("maximum context length", 400),
    ("context window", 400),
    ("context size", 400),
    ("prompt is too long", 400),
    ("content management policy", 400),
    ("our safety system", 400),
    ("internal server error", 500),
    ("internal error", 500),
)
_WHOLE = ("stop", "tool_calls")
_PRIVATE = frozenset({400, 401, 403, 404, 413, 422, 429, 500, 503})
"""What a private number's first three digits may say."""


def inner_error(body: Any) -> InnerError | None:
    """The error in an answer's JSON; ``None`` where there is an answer, or nothing that certainly is an error."""
    if isinstance(body, list) and len(body) == 1:  # Gemini's, where it speaks OpenAI's protocol
        body = body[0]
    if not isinstance(body, Mapping):
        return None
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    if choice.get("finish_reason") in _WHOLE and not choice.get("error") and not body.get("error"):
        return None  # nearly always
    failed = ending_of(raw_reason(body, choice)) == FAILED
    within, partial = choice.get("error"), _has_answer(choice)
    if partial and not within and not failed:
        return None
    error = within or body.get("error")
    if not isinstance(error, Mapping | str):
        error = None
    if not error and not choices:
        error = _unnamed(body)
    if not error and not failed:
        return None
    return InnerError(error or {}, _status(error, body), body, partial)


def _has_answer(choice: Mapping[str, Any]) -> bool:
    message = choice.get("message")
    return isinstance(message, Mapping) and any(message.get(name) for name in ("content", "tool_calls", "refusal"))


def _unnamed(body: Mapping[str, Any]) -> Any:
    """An error that stands in the body itself, without choices beside it."""
    if isinstance(response := body.get("Response"), Mapping):  # Tencent's
        return response.get("Error")
    several = body.get("errors")
    if isinstance(several, list) and several and isinstance(several[0], Mapping):
        return several[0]
    base = body.get("base_resp")  # MiniMax's
    if isinstance(base, Mapping) and base.get("status_code"):
        return {"code": base["status_code"], "message": base.get("status_msg")}
    says_so = body.get("object") == "error" or body.get("type") == "error" or body.get("success") is False
    says_so |= str(body.get("status", "")).lower() in ("error", "failed", "failure")
    numbered = any(_number(body.get(name)) in _HTTP for name in _CODE_NAMES)
    worded = any(_named(body.get(name)) for name in ("code", "__type")) and bool(body.get("message"))
    private = (_number(body.get("code")) or 0) >= 1000 and bool(body.get("message") or body.get("msg"))
    private |= bool(body.get("error_code")) and bool(body.get("error_msg"))
    if not (says_so or numbered or worded or private):
        return None
    message = next((body[name] for name in ("message", "msg", "error_msg", "detail", "title") if body.get(name)), None)
    codes = {name: body[name] for name in _CODE_NAMES if body.get(name) is not None}
    return {**codes, "message": message}


def _status(error: Any, body: Mapping[str, Any]) -> int | None:
    holders = [holder for holder in (error, body) if isinstance(holder, Mapping)]
    said = list(_said(holders))
    if (known := next((number for value in said if (number := _number(value)) in _HTTP), None)) is not None:
        return known
    if (known := next((status for value in said if (status := _named(value)) is not None), None)) is not None:
        return known
    text = error if isinstance(error, str) else error.get("message") if isinstance(error, Mapping) else None
    message = str(text or "").lower()
    if (known := next((status for phrase, status in _PHRASES if phrase in message), None)) is not None:
        return known
    return next((status for value in said if (status := _private(_number(value))) is not None), None)


def _said(holders: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    for holder in holders:
        yield from (holder.get(name) for name in _CODE_NAMES)
        yield holder.get("Code")
        if isinstance(inner := holder.get("innererror"), Mapping):
            yield inner.get("code")


def _number(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int:
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"\d{3,9}", value, re.ASCII) else None


def _named(value: Any) -> int | None:
    if not isinstance(value, str):
        return None
    word = re.sub(r"[^a-z]", "", value.lower())
    return next((status for part, status in _STATUS_WORDS if part in word), None)


def _private(number: int | None) -> int | None:
    """The status that a vendor's own number of four digits and more begins with, or at least its class."""
    if number is None or number < 1000:
        return None
    digits = str(number)
    if (first := int(digits[:3])) in _PRIVATE:
        return first
    return {"4": 400, "5": 500}.get(digits[0])
