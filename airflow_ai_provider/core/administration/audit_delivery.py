"""Where the trail of an installation is delivered to: its archive and its index.

[ai] archive_uri             sealed segments and signed manifests: a folder or a bucket; home/audit/archive by default
[ai] search_conn_id          the index over the trail: Elasticsearch or OpenSearch; home/audit/search.db by default
[ai] home/audit/delivery.db  how far the deliveries to both have got
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_ai_provider.core.errors import AuditError
from airflow_ai_provider.core.settings import Settings

if TYPE_CHECKING:
    from airflow_ai_provider.core.audit.sinks.archive import Archive
    from airflow_ai_provider.core.audit.sinks.deliver import DeliveryReport, SinkReport
    from airflow_ai_provider.core.audit.sinks.progress import Cursor, DeadLetter
    from airflow_ai_provider.core.audit.sinks.s3_archive import S3Archive
    from airflow_ai_provider.core.audit.sinks.search import SearchIndex
    from airflow_ai_provider.core.audit.trail.spool import Spool

    _Fill = Callable[[Spool, Archive, SearchIndex, Cursor, datetime], SinkReport]


def open_archive(settings: Settings, *, checked: bool = False) -> Archive:
    """The archive; ``checked`` makes sure, before something is written, that a bucket can keep its lock."""
    from airflow_ai_provider.core.audit.sinks.archive import FolderArchive

    uri = (settings.archive_uri or str(settings.home / "audit" / "archive")).removeprefix("file://")
    if uri.startswith("s3://"):
        archive = open_bucket(settings)
        if checked:
            archive.check()
        return archive
    if "://" in uri:
        raise AuditError(f"audit archive {uri}: expected a folder or s3://CONN_ID@bucket/prefix")
    return FolderArchive(Path(uri).expanduser())


def open_bucket(settings: Settings) -> S3Archive:
    """The archive where it is in S3. ``AuditError`` where it is not, or its lock is not said."""
    from airflow_ai_provider.core.audit.sinks.s3_archive import LOCKS, Lock, S3Archive, s3_client

    uri, mode = settings.archive_uri or "", (settings.archive_lock or "").upper()
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise AuditError(f"audit archive {uri or 'of this installation'}: expected s3://CONN_ID@bucket/prefix")
    if mode not in (*LOCKS, "NONE"):
        raise AuditError("audit archive in S3: set archive_lock in section ai to compliance, governance or none")
    lock = Lock(mode, settings.archive_retention_days) if mode in LOCKS else None
    return S3Archive(s3_client(settings.storage_options), bucket, prefix, lock)


def deliver_audit(settings: Settings) -> DeliveryReport:
    """Bring what is sealed to the archive and into the index. A sink that is down is in the report, not raised.

    Raises ``AuditError`` where this host's own files cannot be used.
    """
    from airflow_ai_provider.core.audit.sinks.deliver import DeliveryReport, deliver_to_archive, deliver_to_index
    from airflow_ai_provider.core.audit.sinks.progress import Cursor

    spool, report = _spool(settings), DeliveryReport()
    with Cursor(_cursor(settings)) as cursor, cursor.holding() as held:
        report.busy = not held
        if held:
            report.deliver("archive", lambda: deliver_to_archive(spool, open_archive(settings, checked=True), cursor))
            report.deliver("index", lambda: _index(settings, spool, cursor, deliver_to_index))
    return report


def spool_alarm(settings: Settings, now: datetime) -> str:
    """What to do something about on this host, empty if nothing: a disk that fills up, segments that wait too long."""
    from airflow_ai_provider.core.audit.sinks.deliver import spool_state

    return spool_state(_spool(settings)).alarm(now)


def rebuild_audit_index(settings: Settings) -> SinkReport:
    """Empty the index and fill it from the archive. Raises ``AuditError`` and ``StoreUnavailable``."""
    from airflow_ai_provider.core.audit.sinks.deliver import rebuild_index
    from airflow_ai_provider.core.audit.sinks.progress import Cursor

    with Cursor(_cursor(settings)) as cursor, cursor.holding() as held:
        if not held:
            raise AuditError("a delivery of the audit trail is running; try again when it is done")
        return _index(settings, _spool(settings), cursor, rebuild_index)


def dead_letters(settings: Settings) -> list[DeadLetter]:
    """Records that the index refused for good. Raises ``AuditError`` and ``StoreUnavailable``."""
    from airflow_ai_provider.core.audit.sinks.deliver import index_sink
    from airflow_ai_provider.core.audit.sinks.progress import Cursor

    with Cursor(_cursor(settings)) as cursor, open_index(settings) as index:
        return cursor.dead_letters(index_sink(index))


def open_index(settings: Settings) -> SearchIndex:
    """The index over the trail, to ask it questions; close it, or use it in a ``with`` statement.

    Raises ``AuditError`` and ``StoreUnavailable``.
    """
    if settings.search is not None:
        from airflow_ai_provider.core.audit.sinks.elastic_index import ElasticIndex

        return ElasticIndex(settings.search)
    from airflow_ai_provider.core.audit.sinks.sqlite_index import SqliteIndex

    return SqliteIndex(settings.home / "audit" / "search.db")


def _index(settings: Settings, spool: Spool, cursor: Cursor, fill: _Fill) -> SinkReport:
    with open_index(settings) as index:
        index.prepare()
        return fill(spool, open_archive(settings), index, cursor, datetime.now(UTC))


def _spool(settings: Settings) -> Spool:
    from airflow_ai_provider.core.audit.trail.spool import Spool

    return Spool(settings.home / "audit" / "spool")


def _cursor(settings: Settings) -> Path:
    return settings.home / "audit" / "delivery.db"
