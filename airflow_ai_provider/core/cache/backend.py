"""The storage interface of the response cache, and the form in which answers are stored.

What a response store keeps things in: bytes by key, and leases of processes on keys.

An answer as it is stored, and its sealed form.

    "A" | created_at (8 bytes) | length of team (2 bytes) | team | ciphertext of a JSON array     big-endian

What stands before the ciphertext can be read without a key, so that answers of a team or of an age are found without
opening each. It is authenticated with the ciphertext and bound to the key that the answer is found by.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import orjson

from airflow_ai_provider.core.errors import KeyringError, PrivacyError, StoreUnavailable
from airflow_ai_provider.core.privacy.crypto.cipher import Sealer, key_id_of
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.core.providers.finish_reasons import ending_of, is_whole

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
    """True if another live process holds the lease."""


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
        """Lease free keys to ``owner`` and read the stored answers, in one atomic step."""
        ...

    async def look(self, keys: Sequence[bytes]) -> list[Seen]: ...

    async def stay(self, owner: str) -> None:
        """``owner`` lives."""
        ...

    async def succeed(self, task: str, owner: str) -> None:
        """Register ``owner`` as the process of ``task``; leases of its predecessor are free."""
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


MOST_BYTES = 4 * 2**20
"""Of a sealed answer; a larger one is not kept, and not read."""
HEADING_BYTES = 11
"""Before the team."""

_PURPOSE = "responses"
_MARK = b"A"
_FORMAT = 2
"""Raised when the array gets other fields: what has another number is a miss."""


class Stored(NamedTuple):
    """An answer as it is stored: masked, with what it cost.

    A tuple, since one is made for every row that is found: a frozen dataclass takes five times as long to make.
    """

    text: str
    deployment: str
    finish_reason: str
    """In the words of ``endings``."""
    input_tokens: int
    output_tokens: int
    cost_nano: int
    run: str
    """Tag of the run that paid."""
    created_at: int
    """Unix seconds."""
    cached_input_tokens: int = 0
    """Part of ``input_tokens``."""
    team: str = ""
    """Who paid."""
    tokens: tuple[str, ...] = ()
    """Masking tokens of the row that was asked, by which a person's answers are found."""
    scope: str = ""
    """What those tokens are confined to."""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    """As the vendor sent them, masked."""

    def good_for(self, *, run: str, ttl: int, now: float) -> bool:
        """Whether a run may have this answer: the one that paid for it always, another one only a whole answer.

        A run finds its own answers that were cut, filtered, refused or empty, so that a retry does not pay again.
        """
        return self.run == run or (now - self.created_at < ttl and is_whole(ending_of(self.finish_reason)))


_TYPES = [int, str, str, str, int, int, int, str, int, int, str, list, str, list]
"""Of the array: the format, and the fields of ``Stored`` in order."""
_TOKENS, _CALLS = 11, 13
"""Where in it those stand that are arrays themselves."""


class Codec:
    """Seals answers and opens them."""

    def __init__(self, keyring: Keyring) -> None:
        self._sealer = Sealer(keyring, _PURPOSE)

    def seal(self, key: bytes, stored: Stored) -> bytes | None:
        """``None`` for an answer that is no UTF-8: half of a surrogate pair."""
        try:
            array = orjson.dumps((_FORMAT, *stored))
        except orjson.JSONEncodeError:
            return None
        team = stored.team.encode()
        heading = _MARK + stored.created_at.to_bytes(8, "big") + len(team).to_bytes(2, "big") + team
        return heading + self._sealer.seal(array, heading + key)

    def open(self, key: bytes, value: bytes) -> Stored | None:
        """``None`` for whatever is not an answer that was stored under ``key``, of this format, with a key we have."""
        try:
            return self.read(key, value)
        except (PrivacyError, KeyringError):
            return None

    def read(self, key: bytes, value: bytes) -> Stored:
        """Raises ``KeyringError`` where the key is not to be had, ``PrivacyError`` for what is no answer."""
        if value[:1] != _MARK or len(value) > MOST_BYTES:
            raise PrivacyError("not a stored answer of this format")
        heading = value[: HEADING_BYTES + int.from_bytes(value[9:HEADING_BYTES], "big")]
        payload = self._sealer.open(value[len(heading) :], heading + key)
        try:
            fields = orjson.loads(payload)
        except orjson.JSONDecodeError:
            fields = None
        if not _is_ours(fields):  # also what is authentic may be of another release
            raise PrivacyError("not a stored answer of this format")
        fields[_TOKENS], fields[_CALLS] = tuple(fields[_TOKENS]), tuple(fields[_CALLS])
        return Stored._make(fields[1:])


def heading_of(value: bytes) -> tuple[str, int] | None:
    """Team and time of a sealed answer, of which its beginning is enough; ``None`` if it is none. Nothing is proven."""
    end = HEADING_BYTES + int.from_bytes(value[9:HEADING_BYTES], "big")
    if value[:1] != _MARK or len(value) < end:
        return None
    try:
        return value[HEADING_BYTES:end].decode(), int.from_bytes(value[1:9], "big")
    except UnicodeDecodeError:
        return None


def sealed_with(value: bytes) -> str:
    """Id of the key that a sealed answer was closed with. Raises ``PrivacyError``."""
    return key_id_of(value[HEADING_BYTES + int.from_bytes(value[9:HEADING_BYTES], "big") :])


def _is_ours(fields: Any) -> bool:
    return (
        type(fields) is list
        and list(map(type, fields)) == _TYPES
        and fields[0] == _FORMAT
        and {str}.issuperset(map(type, fields[_TOKENS]))
        and {dict}.issuperset(map(type, fields[_CALLS]))
    )
