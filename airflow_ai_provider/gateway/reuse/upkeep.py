"""What an operator does with stored answers: count them, and remove those of a team, of an age or of a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from airflow_ai_provider.errors import KeyringError, PrivacyError
from airflow_ai_provider.gateway.reuse.backend import Heading, ResponseBackend
from airflow_ai_provider.gateway.reuse.stored import Codec, sealed_with
from airflow_ai_provider.gateway.reuse.subjects import Subjects
from airflow_ai_provider.privacy.keyring import Keyring

_OPENED = 250
"""Answers that are in memory at a time while they are opened."""


@dataclass(slots=True)
class TeamStats:
    """The stored answers of one team."""

    team: str | None
    """``None``: entries in no form that this package knows."""
    answers: int = 0
    size: int = 0
    """Bytes, sealed."""
    oldest: int = 0
    """Unix seconds."""
    newest: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """What to remove: answers that meet everything that is said here."""

    team: str | None = None
    before: int | None = None
    """Unix seconds; answers that were created earlier."""
    subjects: Subjects | None = None
    """Answers of one of these persons."""
    unreadable: bool = False
    """Also what cannot be opened, and so cannot be told whose it is; without ``subjects``, only that."""

    @property
    def opens(self) -> bool:
        """Whether answers have to be opened."""
        return self.subjects is not None or self.unreadable


@dataclass(slots=True)
class Purged:
    """What came of a removal."""

    seen: int = 0
    """Answers of the team and age."""
    removed: int = 0
    size: int = 0
    """Bytes of those."""
    unreadable: int = 0
    """Could not be opened, and were left."""


async def count(backend: ResponseBackend, team: str | None = None) -> list[TeamStats]:
    """Stored answers by team, by name, what is in no known form last. Raises ``StoreUnavailable``."""
    teams: dict[str | None, TeamStats] = {}
    async for headings in backend.scan(team=team):
        for heading in headings:
            found = teams.setdefault(heading.team, TeamStats(heading.team, oldest=heading.created_at))
            found.answers += 1
            found.size += heading.size
            found.oldest = min(found.oldest, heading.created_at)
            found.newest = max(found.newest, heading.created_at)
    return sorted(teams.values(), key=lambda found: (found.team is None, found.team or ""))


async def purge(
    backend: ResponseBackend,
    selection: Selection,
    keyring: Keyring | None,
    done: Purged,
    *,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Remove, or with ``dry_run`` count, what is selected. ``keyring`` is needed where answers have to be opened.

    ``done`` is counted up on the way: where this raises ``StoreUnavailable``, it holds what was removed until then.
    """
    opener = _Opener(backend, selection, keyring, done) if selection.opens and keyring else None
    if selection.opens and opener is None:
        raise KeyringError("answers can be told apart by person only with the keyring that they were sealed with")
    async for headings in backend.scan(team=selection.team, before=selection.before):
        done.seen += len(headings)
        chosen = headings if opener is None else await opener.chosen(headings)
        keys = [heading.key for heading in chosen]
        done.removed += len(keys) if dry_run else await backend.delete(keys)
        done.size += sum(heading.size for heading in chosen)
        progress(done.seen)
    if not dry_run:
        await backend.tidy()


class _Opener:
    """Opens answers to see whose they are."""

    def __init__(self, backend: ResponseBackend, selection: Selection, keyring: Keyring, done: Purged) -> None:
        self._backend, self._selection, self._done = backend, selection, done
        self._codec = Codec(keyring)

    async def chosen(self, headings: Sequence[Heading]) -> list[Heading]:
        found: list[Heading] = []
        for start in range(0, len(headings), _OPENED):
            group = headings[start : start + _OPENED]
            values = await self._backend.get_many([heading.key for heading in group])
            pairs = zip(group, values, strict=True)
            found += [heading for heading, value in pairs if value is not None and self._is_chosen(heading.key, value)]
        return found

    def _is_chosen(self, key: bytes, value: bytes) -> bool:
        try:
            stored, key_id = self._codec.read(key, value), sealed_with(value)
        except (PrivacyError, KeyringError):
            self._done.unreadable += not self._selection.unreadable
            return self._selection.unreadable
        return self._selection.subjects is not None and self._selection.subjects.are_in(stored, key_id)
