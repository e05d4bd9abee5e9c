"""What a reasoning model thought, taken out of its answer where its server leaves it in.

Only what comes before the answer is a thought: a model that is asked about ``<think>``, or for XML, may use the tags
anywhere else, and keeps them. Tags that are ordinary words (``<reasoning>``) count as a thought unless the prompt asks
for them; those that only reasoning models write always do. A thought that never ends leaves no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

_BLANK: Final = r"[\s\u200b\ufeff]*"
_OWN: Final = r"think|seed:think|mm:think|longcat_think|antthinking"
_WORD: Final = r"thinking|thoughts?|reasoning|reflection|scratchpad|inner_monologue|chain_of_thought"
_OPEN = re.compile(
    rf"{_BLANK}(?:<(?P<tag>{_OWN}|{_WORD})(?:\s[^<>]*)?/?>|(?P<mark>\[THINK\]|◁think▷|<\|begin_of_thought\|>"
    r"|<\|START_THINKING\|>))",
    re.IGNORECASE,
)
_MARKS: Final = {
    "[think]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|start_thinking|>": "<|END_THINKING|>",
}
_CLOSE = re.compile(
    rf"(?:</(?P<tag>{_OWN}|{_WORD})\s*>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>)", re.IGNORECASE
)
_ORDINARY = re.compile(_WORD, re.IGNORECASE)
_MAYBE = re.compile(r"[<\[◁]/?(?:\||[a-z_:]*think|thought|reason|reflect|scratch|inner_mono|chain_of)", re.IGNORECASE)
_FINAL = re.compile(r"<\|channel\|>\s*final\b(?:(?!<\|message\|>).){0,200}<\|message\|>", re.DOTALL)
"""gpt-oss' harmony: the channel with the answer. The other channels are thoughts."""
_HARMONY = re.compile(rf"{_BLANK}(?:<\|start\|>\s*assistant\s*)?<\|channel\|>")
_HARMONY_END = re.compile(r"<\|(?:end|return|call|start)\|>")
_BARE_HARMONY = re.compile(r"\s*analysis(?=[A-Z])(?:.*?assistant\s*final)?", re.DOTALL)
"""The same from servers that drop the special tokens."""
_QUOTES: Final = "`'\"‘’“”«»"


def without_thought(text: str, prompt: Callable[[], str]) -> str:
    """The answer alone; empty where it is all thought. ``prompt`` is asked for only where there are tags."""
    if text.lstrip().startswith("analysis") and (bare := _BARE_HARMONY.match(text)):
        return text[bare.end() :].lstrip() if bare[0].endswith("final") else ""
    if not _MAYBE.search(text):
        return text
    asked = prompt()
    if "<|channel|>" in text and (_HARMONY.match(text) or (_FINAL.search(text) and "<|channel|>" not in asked)):
        return _final_channel(text)
    while (rest := _one_thought_less(text, asked)) is not None:
        text = rest
    return text


def _final_channel(text: str) -> str:
    finals = list(_FINAL.finditer(text))
    if not finals:
        return ""
    answer = text[finals[-1].end() :]
    end = _HARMONY_END.search(answer)
    return answer[: end.start()] if end else answer


def _one_thought_less(text: str, prompt: str) -> str | None:
    """The text after its first thought; ``None`` where it begins with none."""
    if opened := _OPEN.match(text):
        if (tag := opened["tag"]) and _is_asked_for(tag, prompt):
            return None
        if opened[0].endswith("/>"):
            return text[opened.end() :].lstrip()
        end = _closing(opened).search(text, opened.end())
        return text[end.end() :].lstrip() if end else ""
    for closed in _CLOSE.finditer(text):
        if _ends_a_thought(text, closed, prompt):
            return text[closed.end() :].lstrip()
    return None


def _closing(opened: re.Match[str]) -> re.Pattern[str]:
    if tag := opened["tag"]:
        return re.compile(rf"</{re.escape(tag)}\s*>", re.IGNORECASE)
    return re.compile(re.escape(_MARKS[opened["mark"].lower()]), re.IGNORECASE)


def _ends_a_thought(text: str, closed: re.Match[str], prompt: str) -> bool:
    """Whether a closing tag ends a thought whose opening tag was part of the prompt, as chat templates have it."""
    before, after = text[: closed.start()], text[closed.end() :]
    tag = closed["tag"]
    if tag and (_is_asked_for(tag, prompt) or re.search(rf"<{re.escape(tag)}\b", before, re.IGNORECASE)):
        return False
    if before.count("```") % 2 or (before[-1:] in _QUOTES and before) or (after[:1] in _QUOTES and after):
        return False
    alone = not before.rpartition("\n")[2].strip() and not after.partition("\n")[0].strip()
    return alone or not _mentions(closed[0], prompt)


def _is_asked_for(tag: str, prompt: str) -> bool:
    """Whether the prompt asks for answers with this tag; a tag that only reasoning models write is never asked for."""
    if not _ORDINARY.fullmatch(tag):
        return False
    wanted, asked = tag.lower(), prompt.lower()
    return bool(re.search(rf"</?\s*{re.escape(wanted)}\b", asked)) or ("xml" in asked and wanted in asked)


def _mentions(closing: str, prompt: str) -> bool:
    bare = re.sub(r"[^a-z_:]", "", closing.lower())
    return bool(re.search(rf"[<\[◁|]/?\s*{re.escape(bare)}", prompt.lower()))
