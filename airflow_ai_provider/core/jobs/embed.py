"""Make a collection hold exactly the documents of a folder, and say so in the audit trail.

Not a job of the runner: documents are not rows, they have no shards and no parts. ``vectors.sync`` compares them with
what the collection holds, which is also where a retry goes on from, and writes new chunks before it deletes old ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from logging import Logger
from typing import Any

from airflow_ai_provider.core.installation import Installation, opened
from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.settings import Settings
from airflow_ai_provider.core.vectors.documents import read_documents
from airflow_ai_provider.core.vectors.sync import sync


@dataclass(frozen=True, slots=True)
class EmbedSync:
    """Which documents go into which collection."""

    source: str
    collection: str
    team: str
    """On whose behalf, as the audit trail records it."""
    delete_missing: bool
    """Whether documents that are no longer in the source are removed."""
    max_chars: int
    """Length of a chunk, at most."""
    overlap: int
    """Characters that neighbouring chunks share."""


def sync_collection(
    job: EmbedSync, caller: Caller, where: Settings | Installation, *, log: Logger | Any
) -> dict[str, Any]:
    """Bring a collection up to date; returns counts, and the documents that could not be read, with reasons.

    Raises ``SourceError``, ``StoreUnavailable``, ``AuditError`` and ``LedgerUnavailable``.
    """
    with opened(where) as installation:
        documents = read_documents(job.source, installation.settings.storage_options)
        with installation.vectors() as store:
            report = sync(
                documents,
                store,
                job.collection,
                delete_missing=job.delete_missing,
                max_chars=job.max_chars,
                overlap=job.overlap,
            )
            place = store.place
        log.info(
            "collection %s at %s: %d documents, %d chunks; %d added, %d changed, %d deleted, %d unreadable",
            job.collection,
            place,
            report.documents,
            report.chunks,
            report.added,
            report.changed,
            report.deleted,
            len(report.failed),
        )
        counts: dict[str, Any] = {
            "documents": report.documents,
            "documents_added": report.added,
            "documents_changed": report.changed,
            "documents_removed": report.deleted,
            "chunks": report.chunks,
        }
        installation.record("documents.synced", caller, team=job.team, collection=job.collection, **counts)
    return {**asdict(report), "failed": [{"doc_id": doc_id, "reason": why} for doc_id, why in report.failed]}
