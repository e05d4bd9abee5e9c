"""What a response store keeps things in: bytes by key, and leases of processes on keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from airflow_ai_provider.errors import StoreUnavailable

OWNER_SECONDS = 15.0
"""How long an owner is believed to live after it was last heard of: a killed one's leases are free after that."""
LEASE_SECONDS = 86400
"""How long a lease is remembered; those of the dead are no longer counted long before they are forgotten."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer on its way into a store."""

    key: bytes
    value: bytes
    """Sealed."""
    team: str
    created_at: int
    """Unix seconds."""
    ttl: int
    """Seconds to keep it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A key as it is at one moment."""

    value: bytes | None
    leased: bool
    """By somebody who is alive; where this was asked by claiming: by somebody else."""


@dataclass(frozen=True, slots=True)
class Heading:
    """What is known of an entry without opening it."""

    key: bytes
    team: str | None
    """``None``: not in the form of this package's entries."""
    created_at: int
    size: int
    """Bytes of its value."""


class StoreRefused(StoreUnavailable):
    """The store answers and refuses: it is not worth asking again soon."""


class ResponseBackend(Protocol):
    """Where answers are kept, by key; shared by processes. Every method raises ``StoreUnavailable``.

    An *owner* is a process' run of a task. It lives for ``OWNER_SECONDS`` after each ``claim`` and ``stay``. A lease is
    on a key, has one owner, and counts while that one lives.
    """

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    async def finish(self, entries: Sequence[Entry], released: Sequence[bytes], owner: str) -> None:
        """Keep answers, and give up ``owner``'s leases on their keys and on ``released``, in one step.

        What is kept outlives this process on return.
        """
        ...

    async def claim(self, keys: Sequence[bytes], owner: str) -> list[Seen]:
        """Lease what nobody else has leased to ``owner``, and see what is there, in one step."""
        ...

    async def look(self, keys: Sequence[bytes]) -> list[Seen]: ...

    async def stay(self, owner: str) -> None:
        """``owner`` lives."""
        ...

    async def succeed(self, task: str, owner: str) -> None:
        """``owner`` runs ``task`` from now on: whoever did before has ended, and what that one had leased is free."""
        ...

    async def leave(self, owner: str) -> None:
        """``owner`` has ended: whatever it had leased is free."""
        ...

    def scan(self, *, team: str | None = None, before: int | None = None) -> AsyncIterator[list[Heading]]:
        """Everything, in groups of a thousand or so, expired or not; of one team, or created before a moment."""
        ...

    async def delete(self, keys: Sequence[bytes]) -> int:
        """Remove answers; how many were there."""
        ...

    async def tidy(self) -> None:
        """Remove what has expired, and what removed answers have left behind."""
        ...

    async def close(self) -> None: ...
