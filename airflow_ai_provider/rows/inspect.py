"""Look a source over before any money is spent: one pass that finds what would go wrong later."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from airflow_ai_provider.errors import SourceError
from airflow_ai_provider.rows.fs import shown
from airflow_ai_provider.rows.keys import ROW_NUMBER_KEY, check_keys, key_values
from airflow_ai_provider.rows.source import SelectableSource, Source

__all__ = ["ROW_NUMBER_KEY", "Inspection", "inspect", "key_values"]

_INSPECTION_ROWS = 4096
"""Rows of the key column held at once."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a look over a source found."""

    rows: int
    columns: tuple[str, ...]
    version: str | None
    """The source's version before the look; it was the same after it."""


def inspect(source: Source, *, key: str, columns: Iterable[str] = ()) -> Inspection:
    """Read the whole source once, of its columns only the key where the format allows it.

    Raises ``SourceError`` for a missing column (``columns`` are those that a prompt names), a null, empty or repeated
    key, a source without rows, or one that changes while it is read.
    """
    version = source.version()
    known = source.columns()
    wanted = [] if key == ROW_NUMBER_KEY else [key]
    require_columns(source.uri, known, {"key": wanted, "prompt": list(columns)})
    narrow = _narrowed(source, wanted or list(known[:1]))

    def batches() -> Iterator[pa.RecordBatch]:
        return narrow.batches(_INSPECTION_ROWS)

    rows = check_keys(_place(source.uri), key, batches)
    if source.version() != version:
        raise SourceError(f"{_place(source.uri)}: changed while it was read; run again when its writer is through")
    return Inspection(rows, known, version)


def require_columns(uri: str, known: Sequence[str], wanted: dict[str, Sequence[str]]) -> None:
    """Raise ``SourceError`` for names that are not columns; ``wanted`` is names by what asks for them."""
    missing = [
        f"the {role} names column {name}{_nearest(name, known)}"
        for role, names in wanted.items()
        for name in names
        if name not in known
    ]
    if missing:
        raise SourceError(f"{_place(uri)}: {'; '.join(missing)}; its columns are {', '.join(known)}{_delimiter(known)}")


def _delimiter(known: Sequence[str]) -> str:
    """A hint for a file that is not separated by commas: it has one column with a long name."""
    odd = len(known) == 1 and any(mark in known[0] for mark in ";\t|")
    return "; separate the values by commas" if odd else ""


def _narrowed(source: Source, columns: Sequence[str]) -> Source:
    return source.select(columns) if isinstance(source, SelectableSource) else source


def _nearest(name: str, known: Sequence[str]) -> str:
    folded = {column.casefold(): column for column in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f", which is missing (did you mean {folded[close[0]]}?)" if close else ", which is missing"


def _place(uri: str) -> str:
    """The URI without a query, which may hold values."""
    return shown(uri.split("?", 1)[0]) if uri.startswith("sql://") else shown(uri)
