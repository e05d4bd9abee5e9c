"""The settings of an installation: plain values and resolvers, filled in by the caller.

The Airflow surface fills this from the ``[ai]`` section and connections; a notebook fills it by hand. Everything
left ``None`` is the embedded default inside ``home``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.core.audit.trail.spool import SEAL_WITHIN, SPOOL_BYTES, Spool
from airflow_ai_provider.core.policy.loading import LoadedPolicy, load_governing

if TYPE_CHECKING:
    from airflow_ai_provider.core.audit.sinks.search import SearchAddress

RETENTION_DAYS = 2555
"""Seven years."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How to reach a model vendor. ``api_key`` never shows in ``repr``."""

    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Further keyword arguments of the adapter, such as ``api_version`` or ``aws_region_name``."""
    unused: tuple[str, ...] = ()
    """Fields of the connection's extra that other operators use and this package decides elsewhere, by name."""


def no_connections(conn_id: str) -> Endpoint:
    """The resolver of an installation without connections: any use is an error."""
    raise LookupError(f"connection {conn_id!r} cannot be resolved here: no connections are configured")


def no_kms(conn_id: str) -> Any:
    """The resolver of an installation without connections: any use is an error."""
    raise LookupError(f"KMS connection {conn_id!r} cannot be resolved here: no connections are configured")


@dataclass(frozen=True, slots=True)
class Settings:
    """The parts of one installation."""

    home: Path
    """Folder of the embedded defaults: ``ledger.db``, ``responses.db``, ``audit/``, ``vectors/``, ``keyring.json``."""
    policy_path: Path
    """The governing policy."""
    dag_policy_path: Path | None = None
    """A file of the DAG's own that narrows it."""
    ledger_url: str | None = field(default=None, repr=False)
    """SQLAlchemy URL; ``None`` is SQLite in ``home``."""
    cache_url: str | None = field(default=None, repr=False)
    """``redis://…`` or ``rediss://…``; ``None`` is SQLite in ``home``."""
    archive_uri: str | None = None
    """Folder of the audit archive, or ``s3://bucket/prefix``; ``None`` is ``home/audit/archive``."""
    archive_lock: str | None = None
    """Object Lock of an archive in S3: ``compliance``, ``governance`` or ``none``. In S3 it has to be said."""
    archive_retention_days: int = RETENTION_DAYS
    """How long that lock holds."""
    search: SearchAddress | None = None
    """Elasticsearch or OpenSearch with the audit index; ``None`` is SQLite in ``home/audit``."""
    audit_spool_bytes: int = SPOOL_BYTES
    """What the audit spool may hold before calls stop."""
    audit_seal_within: timedelta = SEAL_WITHIN
    """How long events may wait for their manifest before sealing counts as stopped."""
    audit_signing_key: str | None = None
    """Folder of the sealer's key, or ``kms://CONN_ID/KEY``; ``None`` is ``home/audit/keys``."""
    vectors_uri: str | None = field(default=None, repr=False)
    """Milvus server ``http(s)://…``; ``None`` is Milvus Lite in ``home/vectors``."""
    vectors_token: str | None = field(default=None, repr=False)
    keyring: Mapping[str, Any] | None = field(default=None, repr=False)
    """Contents of a keyring; ``None`` is the 0600 file in ``home``."""
    endpoint: Callable[[str], Endpoint] = no_connections
    """Resolves the ``connection`` of a deployment."""
    kms: Callable[[str], Any] = no_kms
    """Opens a client of AWS KMS by connection id, for the signing key."""
    database: Callable[[str], Any] | None = None
    """Opens a DB-API connection by connection id, for ``sql://`` sources."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Passed to fsspec for object stores."""

    def load_policy(self) -> LoadedPolicy:
        """Read the policy that applies. Raises ``PolicyError``."""
        return load_governing(self.policy_path, self.dag_policy_path)

    def audit_spool(self) -> Spool:
        """The folder in which this host's audit segments wait for the archive."""
        return Spool(self.home / "audit" / "spool", limit_bytes=self.audit_spool_bytes)
