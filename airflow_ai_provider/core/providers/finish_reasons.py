"""Why a vendor ended an answer: every vendor's words in one vocabulary.

``stop`` and ``tool_calls`` are whole answers, ``length`` was cut, ``content_filter`` was filtered, ``refusal`` is the
model's own, ``error`` is no answer. A word that fits none of them is kept as it is. ``empty`` is no vendor's: an answer
of nothing is stored with it where the job rejects that.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

CUT, FILTERED, REFUSED, FAILED, EMPTY = "length", "content_filter", "refusal", "error", "empty"
_STOP = "stop"
_TOOLS = "tool_calls"
_WORDS: Mapping[str, str] = {
    word: ending
    for ending, words in {
        _STOP: "stop eos eos_token end_turn stop_sequence stop_string complete completed finished done end"
        " finish_reason_unspecified malformed_function_call unexpected_tool_call missing_thought_signature",
        _TOOLS: "tool_calls tool_use tool_call function_call",
        CUT: "length max_tokens model_length max_output_tokens error_limit model_context_window_exceeded compaction"
        " pause_turn other",
        FILTERED: "content_filter content_filtered safety recitation language blocklist prohibited_content spii"
        " sensitive guardrail_intervened error_toxic escalation no_image",
        REFUSED: "refusal",
        EMPTY: "empty",
        FAILED: "error network_error insufficient_system_resource abort user_cancel malformed_response load",
    }.items()
    for word in words.split()
}
"""OpenAI's, Anthropic's, Gemini's, Bedrock's, Cohere's, Mistral's, DeepSeek's, Zhipu's, Hugging Face's, vLLM's words.
Calls of tools that a vendor could not read are answers without a call: the checks tell what that is worth."""
_FAMILIES: Mapping[str, frozenset[str]] = {
    FILTERED: frozenset(
        "filter filtered safety blocked policy moderation moderated toxic prohibited unsafe guardrail censored".split()
    ),
    REFUSED: frozenset("refusal refused declined".split()),
    FAILED: frozenset("error failed failure abort aborted cancel cancelled canceled timeout exception".split()),
    CUT: frozenset("length token tokens limit max truncated incomplete window".split()),
}
"""Words within a vendor's word, looked for in this order."""
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_REASON = re.compile(r"[a-z][a-z0-9_]{0,59}")


def ending_of(reason: object) -> str:
    """The ending that a vendor's finish reason names; ``stop`` where it is none.

    Takes a word in any case, several (Gemini's ``content_filter: SAFETY``), or a mapping with the word under ``type``
    (SGLang's).
    """
    if isinstance(reason, Mapping):
        reason = reason.get("type")
    if not isinstance(reason, str):
        return _STOP
    if (known := _WORDS.get(reason)) is not None:
        return known
    word = re.sub(r"\W+", "_", _CAMEL.sub("_", reason).lower(), flags=re.ASCII).strip("_")
    if not _REASON.fullmatch(word):
        return _STOP
    if (known := _WORDS.get(word)) is not None:
        return known
    parts = set(word.split("_"))
    return next((ending for ending, family in _FAMILIES.items() if parts & family), word)


def worse(first: str, second: str) -> str:
    """The ending that says more against an answer: a router's own word may hide that of the vendor behind it."""
    return second if first not in _BAD and second in _BAD else first


_BAD = frozenset({CUT, FILTERED, REFUSED, FAILED, EMPTY})


def is_whole(ending: str) -> bool:
    """Whether an answer of this ending may be taken for a whole one."""
    return ending not in _BAD


def reason_against(ending: str, *, has_text: bool) -> str | None:
    """Why an answer of this ending is rejected, as ``kind: reason``; ``None`` for a whole one."""
    match ending:
        case "length" if has_text:
            return "truncated: the answer reached its limit and is not whole; raise max_tokens"
        case "length":
            return "truncated: the limit was reached before there was any answer, as by reasoning; raise max_tokens"
        case "content_filter":
            return "filtered: the vendor's content filter withheld the answer, or the rest of it"
        case "refusal":
            return "refused: the model declined to answer"
        case _:
            return None


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, characters of no width, and letters that only fill."""
    return not text or text.isspace() or not any(map(_is_seen, text))


def _is_seen(char: str) -> bool:
    return not char.isspace() and unicodedata.category(char) not in ("Cc", "Cf", "Mn") and char not in _FILLERS


_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and signs of Unicode that are drawn as nothing."""


def raw_reason(body: Any, choice: Any) -> object:
    """The finish reason in an answer's JSON: of OpenAI's form, or as other vendors and proxies write it."""
    if not isinstance(body, Mapping):
        return None
    candidates, feedback = body.get("candidates"), body.get("promptFeedback")
    parts = [choice, candidates[0] if isinstance(candidates, list) and candidates else None, body]
    for part in parts:
        for name in _NAMES if isinstance(part, Mapping) else ():
            if part.get(name) is not None:
                return part[name]
    blocked = feedback.get("blockReason") if isinstance(feedback, Mapping) else None
    return "safety" if blocked else None


_NAMES = ("finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason")
