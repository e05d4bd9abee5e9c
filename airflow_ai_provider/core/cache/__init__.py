"""The response store: answers that were paid for, found again by what was asked.

*Cache* and *resume* are one mechanism. An answer is good for anyone in its scope until the route's ``ttl`` is over,
and for the run that paid for it for as long as it is kept, so that a retry or a clear pays nothing twice. Values are
encrypted and bound to their key.

Two invariants that must not be relaxed: a store that fails costs reuse, never correctness, so every question to it has
an answer without it; and an entry that cannot be read is a miss.
"""

from __future__ import annotations

from pathlib import Path

from airflow_ai_provider.core.cache.backend import ResponseBackend, Stored
from airflow_ai_provider.core.cache.store import ResponseStore

__all__ = ["FILE_NAME", "ResponseStore", "Stored", "open_responses"]

FILE_NAME = "responses.db"
"""Of the embedded store, in ``[ai] home``."""


def open_responses(cache_url: str | None, home: Path) -> ResponseBackend:
    """Redis at ``cache_url``, or SQLite in ``home``. Raises ``StoreUnavailable`` where neither can be used."""
    if cache_url:
        from airflow_ai_provider.core.cache.redis_backend import RedisResponses

        return RedisResponses(cache_url)
    from airflow_ai_provider.core.cache.sqlite_backend import SqliteResponses

    return SqliteResponses(home / FILE_NAME)
