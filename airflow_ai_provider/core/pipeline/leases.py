"""One request for equal rows: of this process by waiting for each other, of all processes by a lease in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_ai_provider.core.cache import ResponseStore, Stored
from airflow_ai_provider.core.pipeline.in_flight import in_time
from airflow_ai_provider.core.pipeline.job_context import CacheScope
from airflow_ai_provider.core.pipeline.row import AnyRow


@dataclass(slots=True, eq=False)
class Lease:
    """The right of one row to ask a vendor for its answer."""

    key: bytes
    done: asyncio.Future[Stored | None]
    """Resolved with the answer, or ``None``, for equal rows of this process."""
    claimed: bool = False
    """Whether the store has a lease that must be freed."""


class Leases:
    """The leases of one job's rows, for one event loop."""

    def __init__(self, store: ResponseStore, scope: CacheScope) -> None:
        self._store = store
        self._scope = scope
        self._asked: dict[bytes, asyncio.Future[Stored | None]] = {}

    async def acquire(self, row: AnyRow) -> Stored | None:
        """Return the row's answer once an equal row has it; ``None`` once this row is the one to ask.

        The row then has a lease: ``end`` it. Raises ``TimeoutError`` at the row's deadline.
        """
        assert row.routed is not None
        key = row.routed.keys[0]
        while (asked := self._asked.get(key)) is not None:
            stored = await in_time(asyncio.shield(asked), row.deadline)
            if stored is not None:
                return stored
        lease = row.lease = Lease(key, asyncio.get_running_loop().create_future())
        self._asked[key] = lease.done
        if not self._scope.shared:
            return await self._find(row.routed.keys)
        if (stored := await in_time(self._claim(lease), row.deadline)) is not None:
            return stored
        return await self._find(row.routed.keys[1:])

    async def end(self, row: AnyRow) -> None:
        """Give the answer, if there is one, to equal rows, and free the lease if the row has one."""
        lease, row.lease = row.lease, None
        if lease is None:
            return
        stored = row.answered.stored if row.step == "answered" and row.answered else None
        try:
            if lease.claimed and not _kept_under_lease(row):
                await asyncio.shield(self._store.release(lease.key))
        finally:
            del self._asked[lease.key]
            lease.done.set_result(stored)

    async def _claim(self, lease: Lease) -> Stored | None:
        """The answer of another process that has the lease; ``None`` once this one has it."""
        run, ttl = self._scope.run, self._scope.ttl
        while not await self._store.claim(lease.key, run=run, ttl=ttl):
            stored = await self._store.answer_of_another(lease.key, run=run, ttl=ttl)
            if stored is not None:
                return stored
        lease.claimed = True
        return None

    async def _find(self, keys: Sequence[bytes]) -> Stored | None:
        return await self._store.find(keys, run=self._scope.run, ttl=self._scope.ttl) if keys else None


def _kept_under_lease(row: AnyRow) -> bool:
    """Whether an answer was stored under the leased key, which frees the lease."""
    assert row.routed is not None
    answered = row.answered
    return (
        row.step == "answered"
        and answered is not None
        and not answered.reused
        and answered.deployment is row.routed.deployments[0]
    )
