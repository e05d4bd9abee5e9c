"""The response store of an installation, for those who look after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_ai_provider.core.administration.audit import record
from airflow_ai_provider.core.cache.backend import ResponseBackend
from airflow_ai_provider.core.cache.purge import Purged, Selection, TeamStats, count, purge
from airflow_ai_provider.core.installation import Installation
from airflow_ai_provider.core.settings import Settings

if TYPE_CHECKING:
    from airflow_ai_provider.core.cache.purge import Subjects
    from airflow_ai_provider.core.privacy.crypto.keyring import Keyring

_Result = TypeVar("_Result")


def reuse_stats(settings: Settings, team: str | None = None) -> list[TeamStats]:
    """Stored answers by team. Raises ``StoreUnavailable``."""
    return _with_store(settings, lambda backend: count(backend, team), empty=[])


def subjects_of(settings: Settings, *, named: Iterable[str], values: Iterable[str]) -> Subjects:
    """Persons by tokens and by values, as this installation's keyring makes tokens of them.

    Raises ``KeyringError`` and ``PrivacyError``.
    """
    from airflow_ai_provider.core.cache.purge import Subjects

    return Subjects(_keyring(settings), named=named, values=values)


def purge_reuse(
    settings: Settings, selection: Selection, *, dry_run: bool, progress: Callable[[int], None] = lambda _: None
) -> Purged:
    """Remove stored answers, and say so in the trail; with ``dry_run`` only count them.

    Raises ``StoreUnavailable``, ``KeyringError``, ``AuditError`` and ``LedgerUnavailable``.
    """
    keyring = _keyring(settings) if selection.opens else None
    done, outcome = Purged(), "error"
    try:
        _with_store(
            settings,
            lambda backend: purge(backend, selection, keyring, done, dry_run=dry_run, progress=progress),
            empty=None,
        )
        outcome = "ok"
    finally:
        if not dry_run:
            _record_purge(settings, selection, done, outcome)
    return done


def _keyring(settings: Settings) -> Keyring:
    with Installation(settings) as installation:
        return installation.keyring(create=False)


def _record_purge(settings: Settings, selection: Selection, done: Purged, outcome: str) -> None:
    said: dict[str, Any] = {"answers": done.removed, "bytes": done.size, "findings": done.unreadable}
    if selection.team is not None:
        said["team"] = selection.team
    if selection.subjects is not None:
        said["subjects"] = selection.subjects.count
    record(settings, "reuse.purged", None, outcome=outcome, **said)


def _with_store(settings: Settings, work: Callable[[ResponseBackend], Awaitable[_Result]], empty: _Result) -> _Result:
    """Work with the store; a file that is not there is not made."""
    installation = Installation(settings)
    if not installation.has_responses:
        return empty

    async def run() -> _Result:
        backend = installation.responses()
        try:
            return await work(backend)
        finally:
            await backend.close()

    return asyncio.run(run())
