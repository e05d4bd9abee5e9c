"""Incremental sync into a real Milvus Lite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from airflow_ai_provider.core.vectors.collection import STORED_FIELDS, Row
from airflow_ai_provider.core.vectors.documents import BadDocument, Document, parse_document
from airflow_ai_provider.core.vectors.search import search
from airflow_ai_provider.core.vectors.store import MilvusStore
from airflow_ai_provider.core.vectors.sync import sync
from airflow_ai_provider.errors import PolicyError, SourceError

PARAGRAPH = "The quick brown fox jumps over the lazy dog near the river bank every morning. " * 4


class Killed(BaseException):
    """Stands for the death of the process."""


class Watched:
    """The real store, counting writes; dies before write number ``dies_at``."""

    def __init__(self, store: MilvusStore, dies_at: int | None = None) -> None:
        self._store = store
        self._dies_at = dies_at
        self.writes: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def upsert(self, collection: str, rows: Sequence[Row]) -> None:
        if rows:
            self._count("upsert")
        self._store.upsert(collection, rows)

    def delete(self, collection: str, chunk_ids: Sequence[str]) -> None:
        if chunk_ids:
            self._count("delete")
        self._store.delete(collection, chunk_ids)

    def flush(self, collection: str) -> None:
        self._count("flush")
        self._store.flush(collection)

    def _count(self, what: str) -> None:
        if len(self.writes) == self._dies_at:
            raise Killed
        self.writes.append(what)


def _docs(**texts: str) -> list[Document | BadDocument]:
    return [parse_document(f"{name}.md", f"# {name}\n\n{text}".encode()) for name, text in texts.items()]


def _rows(store: MilvusStore, collection: str) -> dict[str, Row]:
    return {row["chunk_id"]: row for row in store.rows(collection, STORED_FIELDS)}


def test_the_first_sync_writes_everything(store: MilvusStore, collection: str) -> None:
    """Counts in the report are the rows in the collection."""
    report = sync(_docs(fox=PARAGRAPH, cat="Cats sleep."), store, collection, max_chars=200, overlap=20)
    assert (report.documents, report.added, report.changed, report.deleted, report.unchanged) == (2, 2, 0, 0, 0)
    assert report.chunks == report.written == len(_rows(store, collection)) > 2
    assert report.failed == ()


def test_an_unchanged_source_writes_nothing(store: MilvusStore, collection: str) -> None:
    """Not one write of any kind, and the rows are as they were."""
    documents = _docs(fox=PARAGRAPH, cat="Cats sleep.")
    sync(documents, store, collection)
    before = _rows(store, collection)
    watched = Watched(store)
    report = sync(reversed(documents), watched, collection)  # type: ignore[arg-type]
    assert watched.writes == []
    assert (report.unchanged, report.written, report.chunks) == (2, 0, len(before))
    assert _rows(store, collection) == before


def test_a_changed_document_replaces_its_chunks(store: MilvusStore, collection: str) -> None:
    """A shorter version leaves no chunk of the longer one; other documents keep their rows."""
    sync(_docs(fox=PARAGRAPH * 3, cat="Cats sleep."), store, collection, max_chars=200, overlap=20)
    cats = [row for row in _rows(store, collection).values() if row["doc_id"] == "cat.md"]
    report = sync(_docs(fox="Foxes now walk.", cat="Cats sleep."), store, collection, max_chars=200, overlap=20)
    assert (report.changed, report.unchanged, report.written, report.chunks) == (1, 1, 1, 2)
    rows = _rows(store, collection).values()
    assert [row for row in rows if row["doc_id"] == "cat.md"] == cats
    assert [row["text"] for row in rows if row["doc_id"] == "fox.md"] == ["# fox\n\nFoxes now walk."]


def test_a_vanished_document_is_deleted(store: MilvusStore, collection: str) -> None:
    """Unless told to keep it."""
    sync(_docs(fox="Foxes.", cat="Cats."), store, collection)
    kept = sync(_docs(cat="Cats."), store, collection, delete_missing=False)
    assert (kept.deleted, kept.chunks) == (0, 2)
    report = sync(_docs(cat="Cats."), store, collection)
    assert (report.deleted, report.unchanged, report.chunks) == (1, 1, 1)
    assert {row["doc_id"] for row in _rows(store, collection).values()} == {"cat.md"}


@pytest.mark.parametrize("source", [[], [BadDocument("fox.md", "", "not UTF-8")]])
def test_a_suddenly_empty_source_deletes_nothing(
    store: MilvusStore, collection: str, source: list[Document | BadDocument]
) -> None:
    """It is far more often a wrong path than a wish."""
    sync(_docs(fox="Foxes."), store, collection)
    with pytest.raises(SourceError, match="no readable document"):
        sync(source, store, collection)
    assert len(_rows(store, collection)) == 1


def test_a_document_that_became_unreadable_keeps_its_last_version(store: MilvusStore, collection: str) -> None:
    """It is reported, and the others go on."""
    sync(_docs(fox="Foxes.", cat="Cats."), store, collection)
    report = sync([*_docs(cat="Cats two."), BadDocument("fox.md", "", "not UTF-8")], store, collection)
    assert report.failed == (("fox.md", "not UTF-8"),)
    assert (report.changed, report.deleted, report.chunks) == (1, 0, 2)


def test_a_second_document_with_the_same_id_is_reported(store: MilvusStore, collection: str) -> None:
    """The first one counts."""
    report = sync([*_docs(fox="Foxes."), *_docs(fox="Other.")], store, collection)
    assert (report.documents, report.chunks, len(report.failed)) == (1, 1, 1)


def test_another_way_of_splitting_indexes_anew(store: MilvusStore, collection: str) -> None:
    """The fingerprint holds what decides about the chunks."""
    documents = _docs(fox=PARAGRAPH)
    sync(documents, store, collection)
    assert sync(documents, store, collection, max_chars=200, overlap=20).changed == 1
    assert sync(documents, store, collection, max_chars=200, overlap=20).changed == 0


@pytest.mark.parametrize("dies_at", range(4))
def test_a_killed_run_is_healed_by_the_next(store: MilvusStore, collection: str, dies_at: int) -> None:
    """Whichever write it dies at: gathering, new chunks, stale chunks, flush."""
    sync(_docs(fox=PARAGRAPH * 3, cat="Cats.", owl="Owls."), store, collection, max_chars=200, overlap=20)
    wanted = _docs(fox="Foxes now walk.", cat="Cats.", bee="Bees.")
    with pytest.raises(Killed):
        sync(wanted, Watched(store, dies_at), collection, max_chars=200, overlap=20)  # type: ignore[arg-type]
    assert "fox.md" in {row["doc_id"] for row in _rows(store, collection).values()}
    sync(wanted, store, collection, max_chars=200, overlap=20)
    texts = {row["doc_id"]: row["text"] for row in _rows(store, collection).values()}
    assert texts == {"fox.md": "# fox\n\nFoxes now walk.", "cat.md": "# cat\n\nCats.", "bee.md": "# bee\n\nBees."}
    watched = Watched(store)
    sync(wanted, watched, collection, max_chars=200, overlap=20)  # type: ignore[arg-type]
    assert watched.writes == []


def test_a_document_written_in_part_is_written_again(store: MilvusStore, collection: str) -> None:
    """Even though the chunks that are there have the right fingerprint."""
    documents = _docs(fox=PARAGRAPH * 3)
    whole = sync(documents, store, collection, max_chars=200, overlap=20)
    store.delete(collection, [sorted(_rows(store, collection))[1]])
    report = sync(documents, store, collection, max_chars=200, overlap=20)
    assert (report.changed, report.chunks) == (1, whole.chunks)


def test_a_changed_document_is_scored_like_the_others(store: MilvusStore, collection: str) -> None:
    """An edit that adds nothing to the point moves no score by much: word counts are those of all documents."""
    texts = {f"doc{number}": f"Common words and more number{number}." for number in range(20)}
    sync(_docs(**texts), store, collection)
    query = ["common number7"]
    (before, *_) = search(store, collection, query)[0]
    texts["doc7"] += " Edited."
    sync(_docs(**texts), store, collection)
    (after, *_) = search(store, collection, query)[0]
    assert (before.doc_id, after.doc_id) == ("doc7.md", "doc7.md")
    assert after.score > 0.7 * before.score


def test_a_foreign_collection_is_left_alone(store: MilvusStore, collection: str) -> None:
    """Its fields are named."""
    client = store._open()
    client.create_collection(collection, dimension=4)
    with pytest.raises(PolicyError, match=r"made by something else.*vector"):
        sync(_docs(fox="Foxes."), store, collection)
