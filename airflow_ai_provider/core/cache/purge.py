"""Count stored answers, and remove those of a team, an age or a person.

Whose data an answer was made of: by masking tokens, or by the values that those stand for.

No index of tokens is kept. A token cannot be turned back into its value, but a value gives the same token again: from
the keyring's key that was active when the answer was stored, the answer's team, the scope of its tokens and their type.

What an operator does with stored answers: count them, and remove those of a team, of an age or of a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from airflow_ai_provider.core.cache.backend import Codec, Heading, ResponseBackend, Stored, sealed_with
from airflow_ai_provider.core.errors import KeyringError, PrivacyError
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.core.privacy.masking import tokens
from airflow_ai_provider.core.privacy.masking.known_values import folded, variants

_CASES = (str, str.lower, str.upper, str.title)
_REMEMBERED = 4096
"""Sets of codes: one for each type of token in each scope."""


class Subjects:
    """Persons, named by tokens of theirs or by values as they stand in rows."""

    def __init__(self, keyring: Keyring, *, named: Iterable[str] = (), values: Iterable[str] = ()) -> None:
        """``named`` are tokens as ``[EMAIL_7K2QM]``. Raises ``PrivacyError`` for what is none."""
        self._keyring = keyring
        self._named = frozenset(named)
        for token in self._named:
            if not tokens.is_token(token):
                raise PrivacyError(f"{token!r} is no token: expected one as it stands in a masked text, [EMAIL_7K2QM]")
        given = {value for value in values if value.strip()}
        self._forms = frozenset(form for value in given for form in forms(value))
        self.count = len(self._named) + len(given)
        """Of tokens and values."""
        self._codes = lru_cache(maxsize=_REMEMBERED)(self._codes_uncached)

    def are_in(self, stored: Stored, key_id: str) -> bool:
        """Whether an answer that was sealed with the key ``key_id`` is of one of these persons."""
        return any(token in self._named or self._is_theirs(token, stored, key_id) for token in stored.tokens)

    def _is_theirs(self, token: str, stored: Stored, key_id: str) -> bool:
        if not self._forms or not tokens.is_token(token):
            return False
        code = tokens.code_of(token)
        codes = self._codes(key_id, stored.team, stored.scope, tokens.type_of(token))
        return any(symbols.startswith(code) for symbols in codes.get(code[: tokens.SHORTEST], ()))

    def _codes_uncached(self, key_id: str, team: str, scope: str, entity: str) -> dict[str, list[str]]:
        """What the codes of all values' tokens begin with, by their shortest form."""
        key = self._keyring.derive(tokens.PURPOSE, team, key_id=key_id)
        codes: dict[str, list[str]] = {}
        for form in self._forms:
            symbols = tokens.code_symbols(key, scope, entity, form)
            codes.setdefault(symbols[: tokens.SHORTEST], []).append(symbols)
        return codes


def forms(value: str) -> set[str]:
    """How a value may stand in a text: as given, in other cases, without accents, and the other forms of a name."""
    return {value, value.strip(), *(case(form) for form in _spellings(" ".join(value.split())) for case in _CASES)}


def _spellings(value: str) -> Iterator[str]:
    for form in (value, folded(value)):
        yield form
        yield from variants(form.lower())


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
