"""``offline/extractive``: answers with the best sentences of the context that stands in the prompt.

No model and no network: for trying the product, for tests and for air-gapped rehearsals. Answers are labelled, and
the same prompt always gets the same one. The context is what stands between ``<context>`` tags, the question what
stands between ``<question>`` tags; without them the last paragraph is the question and the rest the context.

Sentences are ranked by the share of the question's terms they hold, each weighed by its rarity among the sentences
(inverse document frequency, Spärck Jones 1972). Terms are words, and pairs of neighbouring Han characters.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache

import orjson

from airflow_ai_provider.gateway.providers.base import ModelReply, ModelRequest
from airflow_ai_provider.ledger.money import Usage

LABEL = "[offline extract]"
_SENTENCES = 2
_NOTHING = "No passage of the context answers this."
_TAGGED = {tag: re.compile(rf"<{tag}>(.*?)</{tag}>", re.DOTALL) for tag in ("context", "question")}
_SENTENCE = re.compile(r"[^。！？.!?\n]+(?:[。！？]|[.!?]+(?=\s|$)|[.!?](?=\S)[^。！？.!?\n]*)*")
_WORD = re.compile(r"[a-z0-9]+|[\u4e00-\u9fff]+")
_COMMON = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "can",
        "do",
        "does",
        "for",
        "from",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "is",
        "it",
        "me",
        "my",
        "no",
        "not",
        "of",
        "on",
        "or",
        "our",
        "so",
        "that",
        "the",
        "there",
        "this",
        "to",
        "was",
        "we",
        "what",
        "when",
        "where",
        "which",
        "who",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)


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
    wanted = _terms(question)
    sentences = _split(context)
    rarity = _rarity(sentences)
    scored = [
        (sum(rarity[term] for term in wanted & terms) / math.sqrt(len(terms) + 4), -order, sentence)
        for order, (sentence, terms) in enumerate(sentences)
        if wanted & terms
    ]
    best = sorted(sorted(scored, reverse=True)[:_SENTENCES], key=lambda item: -item[1])
    asked = _first_sentence(question)
    return f"{LABEL} “{asked}” {' '.join(sentence for _, _, sentence in best) or _NOTHING}"


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
    counts = Counter(term for _, terms in sentences for term in terms)
    return {term: math.log(1 + len(sentences) / count) for term, count in counts.items()}


def _terms(text: str) -> set[str]:
    terms: set[str] = set()
    for word in _WORD.findall(text.lower()):
        if word[0] >= "\u4e00":
            terms.update(word[i : i + 2] for i in range(max(1, len(word) - 1)))
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
