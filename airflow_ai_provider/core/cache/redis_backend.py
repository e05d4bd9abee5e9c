"""Redis, shared by all workers: one MGET for a group of look-ups, one script for a group of anything else.

A pipeline costs ten times as much of the client's CPU per key as a script over many keys. The scripts go to keys that
they work out themselves, so this is for one server or a replicated one, not for Redis Cluster.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airflow_ai_provider.core.cache.backend import (
    HEADING_BYTES,
    LEASE_SECONDS,
    OWNER_SECONDS,
    Entry,
    Heading,
    Seen,
    StoreRefused,
    heading_of,
)
from airflow_ai_provider.core.errors import StoreUnavailable
from airflow_ai_provider.core.redis_errors import refusal_of

if TYPE_CHECKING:
    from redis.commands.core import AsyncScript

_ANSWER, _LEASE, _OWNER, _TASK = b"ai:response:", b"ai:lease:", b"ai:owner:", b"ai:task:"
_CHUNK = 250
"""Keys of one command: Redis does nothing else meanwhile."""
_CHUNK_BYTES = 8 * 2**20
_SCANNED = 1000
_CONNECTIONS = 8
_OWNER_MS = int(OWNER_SECONDS * 1000)


class RedisResponses:
    """A ``ResponseBackend`` on Redis."""

    def __init__(self, url: str) -> None:
        """Raises ``StoreUnavailable`` for what is no URL; connects when it is first asked."""
        import redis.asyncio
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        # Everything here may be done twice: a connection that was cut is made anew, once, and at once.
        options: dict[str, Any] = {"socket_timeout": 5, "socket_connect_timeout": 3, "retry": Retry(NoBackoff(), 1)}
        try:
            # However many ask at once, Redis sees few of them, and none is refused for it.
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url, max_connections=_CONNECTIONS, timeout=None, **options
            )
        except ValueError:
            raise StoreUnavailable("response store: not a Redis URL; check the connection of cache_conn_id") from None
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._claim, self._look, self._finish, self._heads = map(self._script, ("claim", "look", "finish", "heads"))

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = []
        with _translated():
            for chunk in _chunks(keys):
                found += cast("list[bytes | None]", await self._redis.mget([_ANSWER + key for key in chunk]))
        return found

    async def finish(self, entries: Sequence[Entry], released: Sequence[bytes], owner: str) -> None:
        with _translated():
            for kept in _bounded(entries):
                await self._finished(kept, (), owner)
            for freed in _chunks(released):
                await self._finished((), freed, owner)

    async def claim(self, keys: Sequence[bytes], owner: str) -> list[Seen]:
        seen: list[Seen] = []
        alive = _OWNER + owner.encode()
        with _translated():
            for chunk in _chunks(keys):
                names = [alive, *(_LEASE + key for key in chunk), *(_ANSWER + key for key in chunk)]
                others, values = await self._claim(names, [owner, _OWNER_MS, LEASE_SECONDS, _OWNER])
                seen += map(_seen, values, others)
        return seen

    async def look(self, keys: Sequence[bytes]) -> list[Seen]:
        seen: list[Seen] = []
        with _translated():
            for chunk in _chunks(keys):
                names = [*(_LEASE + key for key in chunk), *(_ANSWER + key for key in chunk)]
                leased, values = await self._look(names, [_OWNER])
                seen += map(_seen, values, leased)
        return seen

    async def stay(self, owner: str) -> None:
        with _translated():
            await self._redis.set(_OWNER + owner.encode(), 1, px=_OWNER_MS)

    async def succeed(self, task: str, owner: str) -> None:
        name = _TASK + task.encode()
        with _translated():
            before = cast("bytes | None", await self._redis.getset(name, owner))
            await self._redis.expire(name, LEASE_SECONDS)
            if before is not None and before != owner.encode():
                await self._redis.delete(_OWNER + before)

    async def leave(self, owner: str) -> None:
        with _translated():
            await self._redis.delete(_OWNER + owner.encode())

    async def scan(self, *, team: str | None = None, before: int | None = None) -> AsyncIterator[list[Heading]]:
        with _translated():
            cursor = 0
            while True:
                cursor, names = await self._redis.scan(cursor, match=_ANSWER + b"*", count=_SCANNED)
                found = cast("list[bytes]", names)
                headings = [heading for chunk in _chunks(found) for heading in await self._headings(chunk)]
                yield [heading for heading in headings if _is_asked_for(heading, team, before)]
                if not cursor:
                    return

    async def delete(self, keys: Sequence[bytes]) -> int:
        with _translated():
            return sum([await self._redis.unlink(*(_ANSWER + key for key in chunk)) for chunk in _chunks(keys)])

    async def tidy(self) -> None:
        """Redis does so itself."""

    async def close(self) -> None:
        await self._redis.aclose()

    def _script(self, name: str) -> AsyncScript:
        return self._redis.register_script(_source(name))

    async def _finished(self, kept: Sequence[Entry], freed: Sequence[bytes], owner: str) -> None:
        leases = [*(_LEASE + entry.key for entry in kept), *(_LEASE + key for key in freed)]
        answers = [_ANSWER + entry.key for entry in kept]
        values = [part for entry in kept for part in (entry.value, entry.ttl)]
        await self._finish([*leases, *answers], [owner, len(leases), *values])

    async def _headings(self, names: Sequence[bytes]) -> list[Heading]:
        found = await self._heads(names, [HEADING_BYTES])
        return [_heading(name, head, size) for name, (head, size) in zip(names, found, strict=True)]


@cache
def _source(name: str) -> str:
    return Path(__file__).with_name(f"{name}.lua").read_text(encoding="ascii")


@contextmanager
def _translated() -> Iterator[None]:
    import redis

    try:
        yield
    except redis.RedisError as error:
        if (refusal := refusal_of(error)) is not None:
            raise StoreRefused(f"response store: {refusal}") from None
        raise StoreUnavailable(f"response store on Redis: {type(error).__name__}") from None


def _seen(value: bytes | None, leased: int) -> Seen:
    return Seen(value, bool(leased))


def _heading(name: bytes, head: bytes, size: int) -> Heading:
    team, created_at = heading_of(head) or (None, 0)
    return Heading(name.removeprefix(_ANSWER), team, created_at, size)


def _is_asked_for(heading: Heading, team: str | None, before: int | None) -> bool:
    if heading.team is None:
        return team is None and before is None
    return (team is None or heading.team == team) and (before is None or heading.created_at < before)


def _chunks(items: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _bounded(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Entries in groups that Redis takes in at a time."""
    group: list[Entry] = []
    size = 0
    for entry in entries:
        if group and (len(group) >= _CHUNK or size + len(entry.value) > _CHUNK_BYTES):
            yield group
            group, size = [], 0
        group.append(entry)
        size += len(entry.value)
    if group:
        yield group
