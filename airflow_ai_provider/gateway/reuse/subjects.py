"""Whose data an answer was made of: by masking tokens, or by the values that those stand for.

No index of tokens is kept. A token cannot be turned back into its value, but a value gives the same token again: from
the keyring's key that was active when the answer was stored, the answer's team, the scope of its tokens and their type.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from airflow_ai_provider.errors import PrivacyError
from airflow_ai_provider.gateway.reuse.stored import Stored
from airflow_ai_provider.privacy import tokens
from airflow_ai_provider.privacy.keyring import Keyring
from airflow_ai_provider.privacy.known import folded
from airflow_ai_provider.privacy.variants import variants

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
