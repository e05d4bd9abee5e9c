"""Find the passages that answer a batch of questions.

A question that cannot be searched (empty, nothing but stop words, far too long) gets no hits; it never fails its
batch. Equal questions are searched once, and a few hundred go in one request: a request costs far more than a query.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airflow_ai_provider.core.errors import PolicyError
from airflow_ai_provider.core.vectors.collection import metadata_filter, terms
from airflow_ai_provider.core.vectors.store import MilvusStore

MAX_TOP_K = 100
MAX_QUERY_CHARS = 20_000
"""A longer text is a document, not a question: it gets no hits."""
MAX_QUERY_TERMS = 512
"""The first so many terms are searched; the tail of a long mail adds noise and time."""
QUERIES_PER_REQUEST = 256

_HIT_FIELDS = ("doc_id", "title", "heading", "text")
_BLANK_LINES = re.compile(r"\n\s*\n+")


@dataclass(frozen=True, slots=True)
class Hit:
    doc_id: str
    title: str
    heading: str
    """Headings above the passage, below the title, joined by `` > ``."""
    text: str
    rank: int
    """1 for the best."""
    score: float
    """BM25, above 0; comparable within one query only."""


def search(
    store: MilvusStore,
    collection: str,
    queries: Sequence[str | None],
    top_k: int = 3,
    filter: Mapping[str, str] | None = None,
) -> list[list[Hit]]:
    """Up to ``top_k`` passages per query, in the order of ``queries``.

    ``filter`` keeps passages of documents whose metadata has all these values: ``{"language": "en"}``. Raises
    PolicyError when there is no such collection, StoreUnavailable when Milvus cannot be reached.
    """
    if not 1 <= top_k <= MAX_TOP_K:
        raise PolicyError(f"top_k is {top_k}: expected 1 to {MAX_TOP_K}")
    expression = metadata_filter(filter)
    if not store.has_collection(collection):
        raise PolicyError(
            f"vector store {store.place} has no collection {collection}: fill it with an EmbedSyncOperator first, "
            "or correct the name"
        )
    asked = [query_terms(query) for query in queries]
    distinct = [text for text in dict.fromkeys(asked) if text]
    found: dict[str, list[Hit]] = {"": []}
    for at in range(0, len(distinct), QUERIES_PER_REQUEST):
        batch = distinct[at : at + QUERIES_PER_REQUEST]
        answers = store.search(collection, batch, top_k=top_k, fields=_HIT_FIELDS, expression=expression)
        found.update(zip(batch, map(_hits, answers), strict=True))
    return [list(found[text]) for text in asked]


def query_terms(query: str | None) -> str:
    """What Milvus is asked for; empty when there is nothing to ask."""
    if not query or len(query) > MAX_QUERY_CHARS:
        return ""
    return " ".join(terms(query)[:MAX_QUERY_TERMS])


def _hits(rows: list[tuple[float, dict[str, str]]]) -> list[Hit]:
    ranked = enumerate((pair for pair in rows if pair[0] > 0), start=1)
    return [Hit(row["doc_id"], row["title"], row["heading"], row["text"], rank, score) for rank, (score, row) in ranked]


def context_text(hits: Sequence[Hit]) -> str:
    """Numbered passages under their titles as Markdown headings, for a prompt; empty when there are no hits."""
    return "\n\n".join(f"## [{hit.rank}] {_label(hit)}\n{_compact(hit.text)}" for hit in hits)


def _compact(text: str) -> str:
    return _BLANK_LINES.sub("\n", text)


def _label(hit: Hit) -> str:
    return f"{hit.title} > {hit.heading}" if hit.heading else hit.title
