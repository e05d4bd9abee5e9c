"""Tells from a vendor's words what a refusal is about, where its HTTP status does not say: key, account or row.

Many vendors refuse a bad key, a spent account, a row that is too long and a row whose contents they do not take with
one and the same 400 or 429. Pure; every text that is passed in is in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

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
