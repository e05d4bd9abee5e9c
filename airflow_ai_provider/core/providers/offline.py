"""``offline/extractive``: answers with the best sentences of the context that stands in the prompt.

No model and no network: for trying the product, for tests and for air-gapped rehearsals. Answers are labelled, and
the same prompt always gets the same one. The context is what stands between ``<context>`` tags, the question what
stands between ``<question>`` tags; without them the last paragraph is the question and the rest the context.

Sentences are ranked by the share of the question's terms they hold, each weighed by its rarity among the sentences
(inverse document frequency, Spärck Jones 1972). Terms are words, and pairs of neighbouring Han characters. Where no
sentence holds enough of the question, the answer says that the context does not answer it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache

import orjson

from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.providers.base import ModelReply, ModelRequest

LABEL = "[offline extract]"
_SENTENCES = 2
_NOTHING = "No passage of the context answers this."
_TAGGED = {tag: re.compile(rf"<{tag}>(.*?)</{tag}>", re.DOTALL) for tag in ("context", "question")}
_SENTENCE = re.compile(r"[^。！？.!?\n]+(?:[。！？]|[.!?]+(?=\s|$)|[.!?](?=\S)[^。！？.!?\n]*)*")
_WORD = re.compile(r"[a-z0-9]+|[\u4e00-\u9fff]+")
_COMMON = frozenset(
    """
    a about also am an and any are as at be been before but by can could dear did do does done for from get go got had
    has have hello help hi how i if in into is it just know like make me more much my need no not now of on one only or
    other our out over please should so still than thank thanks that the their them then there these they this to too
    up us use want was we were what when where which who why will with would you your
    请问 可以 怎么 什么 我的 你们 我们 是不 不是 没有 还是 现在 如果 这个 那个 一个 已经 能不 不能 我想 谢谢
    你好 您好 为什 么办 么样 应该 需要 知道 不知 他们 还有 所以 因为 但是 是否 怎样 一下 帮我 多久 多少 哪里
    的是 了我 我在 我要 时候 问题
    """.split()
)
"""Words, and pairs of Han characters, that stand in any question and say nothing of what it is about."""
_SHARE_ASKED = 0.35
_ENOUGH = 1.5
"""An answer holds this share of a question's weight, or this much of a long one; a term that no other sentence has
weighs 1. Chosen on 150 questions to a bank: of those with the passages that BM25 finds for them 98% are answered, of
those with passages about something else 3%."""


class ExtractiveProvider:
    """Answers from the prompt itself."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        prompt = str(request.messages[-1]["content"])
        context, question = _parts(prompt)
        text = _shortened(_answer(context, question), request.max_tokens)
        if request.output_schema is not None:
            text = orjson.dumps(_filled(request.output_schema, text)).decode()
        size = sum(len(str(m["content"]).encode()) for m in request.messages)
        return ModelReply(text, Usage(_tokens(size), _tokens(len(text.encode()))), "stop")

    async def close(self) -> None:
        return


def _tokens(size: int) -> int:
    """Tokens by the rule of thumb of four bytes each: this provider has no tokenizer, and none is needed."""
    return max(1, size // 4)


def _shortened(text: str, max_tokens: int) -> str:
    return text.encode()[: max_tokens * 4].decode(errors="ignore")


def _parts(prompt: str) -> tuple[str, str]:
    context, question = (_TAGGED[tag].search(prompt) for tag in ("context", "question"))
    if context and question:
        return context[1], question[1].strip()
    head, _, tail = prompt.rstrip().rpartition("\n\n")
    return head, (question[1] if question else tail).strip()


def _answer(context: str, question: str) -> str:
    asked = _first_sentence(question)
    return f"{LABEL} “{asked}” {' '.join(_best(_split(context), _terms(question))) or _NOTHING}"


def _best(sentences: tuple[tuple[str, frozenset[str]], ...], wanted: set[str]) -> list[str]:
    """The sentences that answer, in the order of the context; none where none holds enough of what is wanted."""
    rarity = _rarity(sentences)
    least = min(_SHARE_ASKED * sum(rarity.get(term, 1.0) for term in wanted), _ENOUGH)
    scored = []
    for order, (sentence, terms) in enumerate(sentences):
        held = sum(rarity[term] for term in wanted & terms)
        if held and held >= least:
            scored.append((held / math.sqrt(len(terms) + 4), -order, sentence))
    best = sorted(sorted(scored, reverse=True)[:_SENTENCES], key=lambda item: -item[1])
    return [sentence for _, _, sentence in best]


def _first_sentence(question: str) -> str:
    found = _SENTENCE.search(question)
    return (found[0] if found else question).strip()


@lru_cache(maxsize=64)
def _split(context: str) -> tuple[tuple[str, frozenset[str]], ...]:
    """Sentences of a context with their terms, without headings."""
    lines = [line for line in context.splitlines() if not line.lstrip().startswith("#")]
    sentences = dict.fromkeys(s.strip(" -*\t") for line in lines for s in _SENTENCE.findall(line))
    return tuple((s, frozenset(_terms(s))) for s in sentences if len(s) > 3)


def _rarity(sentences: tuple[tuple[str, frozenset[str]], ...]) -> dict[str, float]:
    """Weight of every term: 1 for one that stands in a single sentence, less the more sentences have it."""
    counts = Counter(term for _, terms in sentences for term in terms)
    most = math.log(1 + len(sentences))
    return {term: math.log(1 + len(sentences) / count) / most for term, count in counts.items()}


def _terms(text: str) -> set[str]:
    terms: set[str] = set()
    for word in _WORD.findall(text.lower()):
        if word[0] >= "\u4e00":
            terms.update({word[i : i + 2] for i in range(max(1, len(word) - 1))} - _COMMON)
        elif word not in _COMMON:
            terms.add(word.removesuffix("s"))
    return terms


def _filled(schema: object, text: str) -> object:
    """The simplest value that satisfies a plain schema, with the text where a string is wanted."""
    if not isinstance(schema, dict):
        return text
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {name: _filled(part, text) for name, part in schema.get("properties", {}).items()}
        case "array":
            return [_filled(schema.get("items", {}), text)]
        case "integer" | "number":
            return 0
        case "boolean":
            return False
        case _:
            return text
