"""The parts of one installation, opened from its settings: the one place that opens ledger, trail, keyring and stores.

Each part is opened at its first use, once, and closed with the installation. A job reads its policy once: whatever
happens to the file meanwhile, its plan, its approval and its calls follow the same policy. A keyring is used once it is
known to be the one that all hosts on the ledger use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from airflow_ai_provider.core.errors import KeyringError
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.installation_checks import (
    KEYRING,
    HostKeys,
    check_keys,
    current_key,
    explain,
    registered_keys,
)
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring, open_keyring
from airflow_ai_provider.core.settings import Settings

if TYPE_CHECKING:
    from airflow_ai_provider.core.audit.trail.trail import Trail
    from airflow_ai_provider.core.cache.backend import ResponseBackend
    from airflow_ai_provider.core.job import Caller
    from airflow_ai_provider.core.policy.loading import LoadedPolicy
    from airflow_ai_provider.core.rows.shard import Shard
    from airflow_ai_provider.core.rows.sink import PartSink
    from airflow_ai_provider.core.rows.source import Source
    from airflow_ai_provider.core.vectors.store import MilvusStore


class Installation:
    """``with Installation(settings) as installation:``"""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    @cached_property
    def policy(self) -> LoadedPolicy:
        """The policy that applies, as it was when it was first asked for. Raises ``PolicyError``."""
        return self.settings.load_policy()

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger's database. Raises ``LedgerUnavailable``."""
        from airflow_ai_provider.core.ledger import open_ledger

        return self._closing.enter_context(open_ledger(self.settings.ledger_url, self.settings.home))

    def keyring(self, *, create: bool = True, register: bool = True) -> Keyring:
        """The keyring, compared with the one that is registered in the ledger.

        A file is made where there is none and no other host has one (``create``); new keys are registered
        (``register``). Raises ``KeyringError`` where the keyring cannot be opened or is not the installation's, and
        ``LedgerUnavailable``.
        """
        settings = self.settings
        current = current_key(registered_keys(self.ledger, KEYRING))  # before a file is looked for, and made
        if create and current is not None and not self.has_keyring:
            mismatch = f"there is none, and host {current.host} writes with key {current.key_id}"
            raise KeyringError(explain(KEYRING, mismatch, _keyring_remedy(settings)))
        keyring = open_keyring(settings.keyring, settings.home, create=create)
        check_keys(self.ledger, self.host_keys(keyring), register=register)
        return keyring

    def host_keys(self, keyring: Keyring) -> HostKeys:
        """A keyring of this host, as it is compared with other hosts'."""
        return HostKeys(KEYRING, keyring.fingerprints(), keyring.active, _keyring_remedy(self.settings))

    def own_keyring(self) -> Keyring:
        """This host's keyring, compared with no other host's. Raises ``KeyringError`` where there is none."""
        return open_keyring(self.settings.keyring, self.settings.home, create=False)

    def existing_keyring(self) -> Keyring | None:
        """The keyring where the installation has one; makes and registers none."""
        if not self.has_keyring and not registered_keys(self.ledger, KEYRING):
            return None
        return self.keyring(create=False, register=False)

    @property
    def has_keyring(self) -> bool:
        """Whether this host has a keyring."""
        return bool(self.settings.keyring) or (self.settings.home / "keyring.json").exists()

    @contextmanager
    def trail(self, caller: Caller | None = None, team: str | None = None) -> Iterator[Trail]:
        """The audit trail, for events on behalf of a caller. Raises ``AuditError`` and ``LedgerUnavailable``."""
        from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
        from airflow_ai_provider.core.audit.trail.trail import Trail
        from airflow_ai_provider.core.pipeline.audit_log import context_of

        context = None if caller is None else context_of(caller, team)
        spool, store = self.settings.audit_spool(), LedgerAuditStore(self.ledger)
        with Trail(spool, store, context=context, clock=self.ledger.now) as trail:
            yield trail

    def record(self, action: str, caller: Caller, *, outcome: str = "ok", **fields: Any) -> None:
        """Write one event, durably. Raises ``AuditError`` and ``LedgerUnavailable``."""
        with self.trail(caller) as trail:
            trail.emit(action, outcome, **fields)

    @property
    def has_responses(self) -> bool:
        """Whether there is a response store; an embedded one is made at the first answer."""
        from airflow_ai_provider.core.cache import FILE_NAME

        return bool(self.settings.cache_url) or (self.settings.home / FILE_NAME).exists()

    def responses(self) -> ResponseBackend:
        """The response store, which the caller closes. Raises ``StoreUnavailable``."""
        from airflow_ai_provider.core.cache import open_responses

        return open_responses(self.settings.cache_url, self.settings.home)

    def vectors(self) -> MilvusStore:
        """The vector store, not yet entered: a local one serves one process at a time, so enter it late."""
        from airflow_ai_provider.core.vectors.store import MilvusStore

        return MilvusStore(self.settings.vectors_uri or self.settings.home / "vectors", self.settings.vectors_token)

    def source(self, uri: str, defaults: Mapping[str, str] | None = None) -> Source:
        """The rows at a URI; ``defaults`` are columns that they get where they lack them. Raises ``SourceError``."""
        from airflow_ai_provider.core.rows.source import DefaultedSource, open_source

        settings = self.settings
        source = open_source(uri, storage_options=settings.storage_options, database=settings.database)
        return DefaultedSource(source, defaults) if defaults else source

    def sink(self, uri: str, fingerprint: str, shard: Shard) -> PartSink:
        """The parts at a URI. Raises ``SinkError``."""
        from airflow_ai_provider.core.rows.sink import PartSink

        return PartSink(uri, fingerprint=fingerprint, shard=shard, storage_options=self.settings.storage_options)


@contextmanager
def opened(where: Settings | Installation) -> Iterator[Installation]:
    """An installation that is open already as it is, or one that is opened from settings and closed again."""
    if isinstance(where, Installation):
        yield where
        return
    with Installation(where) as installation:
        yield installation


def _keyring_remedy(settings: Settings) -> str:
    return (
        "Give all hosts the same keyring: name one connection in [ai] keyring_conn_id, or copy that host's keyring.json"
        f" to {settings.home / 'keyring.json'}. Only where that key is lost for good: airflow ai keys adopt keyring"
    )
