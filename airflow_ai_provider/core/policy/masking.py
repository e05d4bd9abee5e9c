"""The masking and privacy sections of the policy, and the patterns that users write in them.

Patterns that users write: compiled by RE2, which takes linear time, and bounded in size and memory.

``policy.yaml`` is checked with this before anything runs, and the rooms that search with such patterns compile them
with it again.

What is masked, and who may see personal values again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import re2
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from airflow_ai_provider.core.policy.fields import Section, listed

MAX_CHARACTERS = 500
MAX_PROGRAM = 4_000
"""RE2 instructions. In the worst case a search takes time proportional to their number times the text's length."""
MEMORY = 1 << 20
"""Bytes that RE2 may use for one pattern; a search that needs more goes on more slowly."""


def bounded_options() -> re2.Options:
    """Options for patterns of users: Unicode text, little memory."""
    options = re2.Options()
    options.max_mem = MEMORY
    options.log_errors = False
    return options


def compile_pattern(pattern: str) -> re2._Regexp:
    """Compile a user's pattern. Raises ``ValueError`` that says what is wrong with it, and does not quote it."""
    if not 1 <= len(pattern) <= MAX_CHARACTERS:
        raise ValueError(f"expected a pattern of 1 to {MAX_CHARACTERS} characters")
    try:
        compiled = re2.compile(pattern, options=bounded_options())
    except re2.error as error:
        raise ValueError(
            f"not a pattern of RE2: {_reason(error)} (RE2 has no lookaround and no backreferences)"
        ) from None
    if compiled.programsize > MAX_PROGRAM:
        raise ValueError(f"the pattern is too large ({compiled.programsize} of {MAX_PROGRAM} steps): repeat less")
    if compiled.search("") is not None:
        raise ValueError("the pattern matches the empty text")
    return compiled


def _reason(error: Exception) -> str:
    """RE2's reason without the part of the pattern that it quotes."""
    raw = error.args[0] if error.args else ""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    return text.partition(":")[0] or "it does not compile"


EntityName = Literal[
    "standard",
    "all",
    "email",
    "phone",
    "card",
    "cn_id",
    "iban",
    "ip",
    "secret",
    "ssn",
    "passport",
    "driver_license",
    "bank_account",
    "cn_plate",
    "mac",
    "birth_date",
    "date",
    "url",
    "address",
]
TypeName = Annotated[str, Field(pattern=r"^[A-Z][A-Z_]{0,18}[A-Z]$")]
"""What a token says it stands for, such as ``PERSON``."""
NO_MASKING = "off"


def _usable(pattern: str) -> str:
    """Raises ``ValueError`` that says why a user's pattern cannot be used."""
    compile_pattern(pattern)
    return pattern


def _usable_entry(entry: str) -> str:
    if len(entry) > 2 and entry[0] == entry[-1] == "/":
        _usable(entry[1:-1])
    if not entry.strip():
        raise ValueError("expected a value, or a pattern between slashes")
    return entry


class MaskingProfile(Section):
    """What is masked: kinds of values found anywhere, and columns whose value is masked wherever it stands."""

    detect: Annotated[tuple[EntityName, ...], BeforeValidator(listed)] = ()
    columns: dict[str, TypeName] = Field(default_factory=dict)
    confidence: Literal["validated", "context"] = "context"
    """``context`` also takes what fails its check but stands next to a word that names it."""
    patterns: dict[TypeName, Annotated[str, AfterValidator(_usable)]] = Field(default_factory=dict, max_length=50)
    allow: tuple[Annotated[str, AfterValidator(_usable_entry)], ...] = Field(default=(), max_length=1000)
    skip: tuple[str, ...] = ()
    names: Annotated[str, Field(pattern=r"^(?:presidio|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")] | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.detect or self.columns or self.patterns or self.names):
            raise ValueError("masks nothing: name kinds under detect or columns, or set the route's masking to off")
        if both := sorted(self.columns.keys() & set(self.skip)):
            raise ValueError(f"column {both[0]!r} stands under columns and under skip; take it out of one")
        return self


class Grant(Section):
    """Who may: the tasks of one DAG, on behalf of one team."""

    dag: str = Field(min_length=1)
    team: str = Field(min_length=1)
    columns: tuple[str, ...] | None = None
    """``None`` is every column."""

    def covers(self, columns: Sequence[str] | None) -> bool:
        return self.columns is None or (columns is not None and {*columns} <= {*self.columns})


class Privacy(Section):
    """Who may restore personal values: no one unless listed here."""

    restore: tuple[Grant, ...] = ()
    """Who may put values back in place of the tokens of a masked table."""
    decrypt: tuple[Grant, ...] = ()
    """Who may decrypt columns."""
