"""Make a collection hold exactly the documents of a folder, and touch only what changed.

What is there is read from the collection itself; there is no second record that could disagree with it. A document
counts as unchanged only if all its chunks are there with its present fingerprint. New chunks are written before old
ones are deleted, so that a reader never misses a document, and a run that was killed is finished by the next one.

One thing is peculiar to Milvus Lite: it scores each segment with the word counts of that segment alone, so that the
few chunks of one changed document, in a segment of their own, would get scores that say little. Before the first
change it therefore copies the stored rows into the segment that the change will be in. They are not split or
embedded again. Done first, it needs no record of its own: until the change is in, the next run sees it and starts
over. A Milvus server counts words over the whole collection and gets none of this.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from airflow_ai_provider.core.errors import SourceError
from airflow_ai_provider.core.vectors.chunks import split
from airflow_ai_provider.core.vectors.collection import STORED_FIELDS, Row, fingerprint, rows_of
from airflow_ai_provider.core.vectors.documents import BadDocument, Document
from airflow_ai_provider.core.vectors.store import MilvusStore

log = logging.getLogger(__name__)

WRITE_BATCH = 500
"""Rows per write: about 10 MB at 1,200 Chinese characters a chunk, a sixth of a server's default request limit."""
LITE_COMFORT_CHUNKS = 50_000
"""Above this, searches in Milvus Lite take noticeable time; a server does not mind."""
_STATE_FIELDS = ("chunk_id", "doc_id", "doc_sha256", "doc_chunks")


@dataclass(frozen=True, slots=True)
class SyncReport:
    documents: int
    """Readable documents in the source: added + changed + unchanged."""
    added: int
    changed: int
    deleted: int
    unchanged: int
    chunks: int
    """In the collection after the run."""
    written: int
    """Chunks that were split and written by this run."""
    seconds: float
    failed: tuple[tuple[str, str], ...]
    """(doc_id, reason) of documents that could not be read; an earlier version of theirs stays."""


@dataclass(slots=True)
class _Stored:
    """What the collection holds of one document."""

    chunk_ids: set[str] = field(default_factory=set)
    made_as: set[tuple[str, int]] = field(default_factory=set)
    """(fingerprint, number of chunks) found on its chunks: one if it is whole."""

    def is_whole(self, doc_sha256: str) -> bool:
        return self.made_as == {(doc_sha256, len(self.chunk_ids))}


def sync(
    documents: Iterable[Document | BadDocument],
    store: MilvusStore,
    collection: str,
    *,
    delete_missing: bool = True,
    max_chars: int = 1200,
    overlap: int = 120,
) -> SyncReport:
    """Bring ``collection`` up to date with ``documents``; one sync per collection at a time.

    With ``delete_missing`` documents that are no longer in the source are removed. Raises SourceError, and changes
    nothing, when the source holds no readable document; StoreUnavailable when Milvus cannot be reached.
    """
    started = time.monotonic()
    run = _Run(store, collection, max_chars, overlap)
    for document in documents:
        run.take(document)
    run.finish(delete_missing)
    return run.report(time.monotonic() - started)


class _Run:
    """One pass over the documents, and what it found so far."""

    def __init__(self, store: MilvusStore, collection: str, max_chars: int, overlap: int) -> None:
        self._store = store
        self._collection = collection
        self._max_chars = max_chars
        self._overlap = overlap
        self._stored: dict[str, _Stored] | None = None
        self._seen: set[str] = set()
        self._failed: list[tuple[str, str]] = []
        self._stale: list[str] = []
        self._pending: list[Row] = []
        self._added = self._changed = self._deleted = self._written = self._new = 0

    def take(self, document: Document | BadDocument) -> None:
        if isinstance(document, BadDocument):
            self._fail(document.doc_id, document.reason)
        elif document.doc_id in self._seen:
            self._fail(document.doc_id, "a second document has the same id: rename one of the two")
        else:
            self._take_good(document)

    def _take_good(self, document: Document) -> None:
        self._seen.add(document.doc_id)
        doc_sha256 = fingerprint(document, self._max_chars, self._overlap)
        stored = self._before().get(document.doc_id)
        if stored is not None and stored.is_whole(doc_sha256):
            return
        chunks = split(document.text, max_chars=self._max_chars, overlap=self._overlap)
        rows = list(rows_of(document, chunks, doc_sha256))
        old_ids = stored.chunk_ids if stored else set()
        new_ids = {row["chunk_id"] for row in rows}
        self._stale.extend(old_ids - new_ids)
        self._new += len(new_ids - old_ids)
        if stored is None:
            self._added += 1
        else:
            self._changed += 1
        self._write(rows)

    def _before(self) -> dict[str, _Stored]:
        """What the collection held when the run began. Read, or the collection made, at the first good document."""
        if self._stored is None:
            self._store.ensure_collection(self._collection)
            self._stored = _stored_documents(self._store, self._collection)
        return self._stored

    def _write(self, rows: list[Row]) -> None:
        if self._written == 0 and self._store.is_lite and self._before():
            self._gather_segments()
        self._written += len(rows)
        self._pending.extend(rows)
        while len(self._pending) >= WRITE_BATCH:
            self._store.upsert(self._collection, self._pending[:WRITE_BATCH])
            del self._pending[:WRITE_BATCH]

    def _gather_segments(self) -> None:
        """Copy the stored rows as they are; see the module's docstring."""
        chunk_ids = [chunk_id for stored in self._before().values() for chunk_id in stored.chunk_ids]
        for at in range(0, len(chunk_ids), WRITE_BATCH):
            rows = self._store.get(self._collection, chunk_ids[at : at + WRITE_BATCH], STORED_FIELDS)
            self._store.upsert(self._collection, rows)

    def finish(self, delete_missing: bool) -> None:
        """Write what is pending, then delete what is stale."""
        if not self._seen:
            raise SourceError(self._nothing_readable())
        self._store.upsert(self._collection, self._pending)
        if delete_missing:
            self._forget_missing()
        self._store.delete(self._collection, self._stale)
        if self._written or self._stale:
            self._store.flush(self._collection)

    def _forget_missing(self) -> None:
        kept = self._seen | {doc_id for doc_id, _ in self._failed}
        for doc_id, stored in self._before().items():
            if doc_id not in kept:
                self._stale.extend(stored.chunk_ids)
                self._deleted += 1

    def report(self, seconds: float) -> SyncReport:
        stored = sum(len(document.chunk_ids) for document in self._before().values())
        chunks = stored + self._new - len(self._stale)
        if self._store.is_lite and chunks > LITE_COMFORT_CHUNKS:
            log.warning(
                "collection %s holds %d chunks; Milvus Lite is comfortable up to %d: consider a Milvus server",
                self._collection,
                chunks,
                LITE_COMFORT_CHUNKS,
            )
        return SyncReport(
            documents=len(self._seen),
            added=self._added,
            changed=self._changed,
            deleted=self._deleted,
            unchanged=len(self._seen) - self._added - self._changed,
            chunks=chunks,
            written=self._written,
            seconds=seconds,
            failed=tuple(self._failed),
        )

    def _fail(self, doc_id: str, reason: str) -> None:
        log.warning("document %s is left out: %s", doc_id, reason)
        self._failed.append((doc_id, reason))

    def _nothing_readable(self) -> str:
        first = "".join(f"; {doc_id}: {reason}" for doc_id, reason in self._failed[:3])
        return (
            f"collection {self._collection}: the source holds no readable document ({len(self._failed)} unreadable"
            f"{first}). Nothing was changed. Check the source, or drop the collection if it is meant to be empty"
        )


def _stored_documents(store: MilvusStore, collection: str) -> dict[str, _Stored]:
    """What the collection holds, by doc_id."""
    found: dict[str, _Stored] = {}
    for row in store.rows(collection, _STATE_FIELDS):
        document = found.setdefault(row["doc_id"], _Stored())
        document.chunk_ids.add(row["chunk_id"])
        document.made_as.add((row["doc_sha256"], row["doc_chunks"]))
    return found
