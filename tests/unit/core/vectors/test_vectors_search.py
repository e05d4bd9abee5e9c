"""Search in a real Milvus Lite, in English and Chinese."""

from __future__ import annotations

import pytest
from support.corpus import ARTICLES, QUESTIONS

from airflow_ai_provider.core.vectors.documents import parse_document
from airflow_ai_provider.core.vectors.search import MAX_QUERY_CHARS, QUERIES_PER_REQUEST, Hit, context_text, search
from airflow_ai_provider.core.vectors.store import MilvusStore
from airflow_ai_provider.core.vectors.sync import sync
from airflow_ai_provider.errors import PolicyError

KB = "help_centre"


@pytest.fixture(scope="module", autouse=True)
def _help_centre(store: MilvusStore) -> None:
    sync([parse_document(doc_id, text.encode()) for doc_id, text in ARTICLES.items()], store, KB)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_right_article_comes_first(store: MilvusStore, language: str) -> None:
    """For at least nine questions in ten, in either language."""
    asked = [(question, answer) for question, answer in QUESTIONS if answer.startswith(language)]
    found = search(store, KB, [question for question, _ in asked])
    first = [hits[0].doc_id == answer for hits, (_, answer) in zip(found, asked, strict=True)]
    assert sum(first) >= 0.9 * len(asked)


def test_hits_are_ranked_with_falling_positive_scores(store: MilvusStore) -> None:
    """Milvus Lite's negative scores do not reach the caller."""
    (hits,) = search(store, KB, ["refund to card after delivery"], top_k=5)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert hits[-1].score > 0
    assert hits[0].title == "Refund policy"


def test_a_hit_names_the_headings_below_the_title(store: MilvusStore) -> None:
    """The title is not repeated."""
    ((hit, *_),) = search(store, KB, ["recovery codes for a lost phone"])
    assert (hit.title, hit.heading) == ("Two-factor authentication", "Lost phone")


def test_a_query_that_cannot_be_searched_has_no_hits(store: MilvusStore) -> None:
    """And the others of its batch have theirs."""
    queries = ["", None, "the of", "？！", "refund " * MAX_QUERY_CHARS, "gift card", "quetzalcoatlus", '"; --']
    found = search(store, KB, queries)
    assert [bool(hits) for hits in found] == [False, False, False, False, False, True, False, False]


def test_a_long_mail_is_searched_by_its_beginning(store: MilvusStore) -> None:
    """Length alone is no reason to find nothing."""
    (hits,) = search(store, KB, ["does a gift card expire? " + "lorem ipsum dolor " * 500])
    assert hits[0].doc_id == "en/gift_cards.md"


def test_batches_keep_the_order_of_the_queries(store: MilvusStore) -> None:
    """More queries than one request takes, with repeats, each get their own hits."""
    queries = [f"{question} {number}" for number in range(12) for question, _ in QUESTIONS] + ["gift card"] * 3
    assert len(queries) > QUERIES_PER_REQUEST
    together = search(store, KB, queries, top_k=1)
    for at in (0, 1, QUERIES_PER_REQUEST - 1, QUERIES_PER_REQUEST, len(queries) - 1):
        assert search(store, KB, [queries[at]], top_k=1)[0] == together[at]
    assert together[-1] == together[-2]
    assert together[-1] is not together[-2]


def test_a_filter_keeps_documents_with_these_values(store: MilvusStore) -> None:
    """Front matter decides."""
    plain, filtered, nothing = (
        search(store, KB, ["退款 card"], top_k=9, filter=wanted)[0]
        for wanted in (None, {"language": "zh", "category": "售后"}, {"language": "zh", "category": "developers"})
    )
    assert {hit.doc_id for hit in plain} > {"zh/退款.md", "en/refunds.md"}
    assert {hit.doc_id for hit in filtered} == {"zh/退款.md"}
    assert nothing == []


@pytest.mark.parametrize("value", ['x" or chunk_id != "', "back\\slash", "new\nline"])
def test_a_filter_cannot_break_out_of_its_quotes(store: MilvusStore, value: str) -> None:
    """Refused, without the value in the message."""
    with pytest.raises(PolicyError, match="filter") as caught:
        search(store, KB, ["card"], filter={"language": value})
    assert value not in str(caught.value)


def test_a_missing_collection_names_the_operator_that_fills_it(store: MilvusStore) -> None:
    """The user learns what to run first."""
    with pytest.raises(PolicyError, match=r"no collection nothing_here.*EmbedSyncOperator"):
        search(store, "nothing_here", ["x"])


@pytest.mark.parametrize("top_k", [0, 101])
def test_top_k_out_of_range_is_refused(store: MilvusStore, top_k: int) -> None:
    """Before Milvus is asked."""
    with pytest.raises(PolicyError, match="top_k"):
        search(store, KB, ["x"], top_k=top_k)


def test_context_text_numbers_the_passages() -> None:
    """Titles lead, blank lines inside a passage go."""
    hits = [Hit("a.md", "Refunds", "How long", "One.\n\n\nTwo.", 1, 3.0), Hit("b.md", "Cards", "", "Three.", 2, 1.0)]
    assert context_text(hits) == "## [1] Refunds > How long\nOne.\nTwo.\n\n## [2] Cards\nThree."
    assert context_text([]) == ""
