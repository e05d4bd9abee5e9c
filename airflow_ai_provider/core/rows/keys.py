"""Row keys: the text that names a row, and the proof that each names one row only.

The proof holds 8 bytes a row: the keys' 64-bit hashes, sorted. Equal hashes are suspects, which a second pass over
the source compares by their text; without suspects, which is the rule, there is no second pass.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa

from airflow_ai_provider.core.errors import SourceError

ROW_NUMBER_KEY = "#row"
"""In place of a column: the key of a row is its number from 0 over the whole source."""

_SUSPECTS_AT_ONCE = 1000
"""Hashes that a second pass follows; bounds its memory if every key is there twice."""
_ROWS_NAMED = 5
_KEYS_NAMED = 3


def key_values(batch: pa.RecordBatch, key: str, first_row: int) -> list[str]:
    """The keys of a batch whose first row has the number ``first_row``, from 0 over the whole source.

    Raises ``SourceError`` if the column is missing or not of plain values, or a key is null or empty.
    """
    if key == ROW_NUMBER_KEY:
        return [str(row) for row in range(first_row, first_row + batch.num_rows)]
    if key not in batch.schema.names:
        raise SourceError(f"key column {key} is missing; columns are {', '.join(batch.schema.names)}")
    column = batch.column(key)
    try:
        values: list[str | None] = column.cast(pa.string()).to_pylist()
    except pa.ArrowException:
        raise SourceError(f"key column {key} holds {column.type}; expected text or numbers") from None
    for offset, value in enumerate(values):
        if not value or "\0" in value:
            kind = "null" if value is None else "with a NUL character" if value else "empty"
            raise SourceError(
                f"row {first_row + offset + 1} (the first row is 1): its key, column {key}, is {kind}; "
                f"give every row a key of its own, or use the key {ROW_NUMBER_KEY}"
            )
    return values  # type: ignore[return-value]  # no null is left


def keys_digest(keys: Iterable[str]) -> str:
    """32 hex digits that name the keys of a batch, in order: a part is good only for the rows it was made of."""
    return hashlib.sha256("\n".join(keys).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def rows_digest(batch: pa.RecordBatch) -> str:
    """32 hex digits that name the content of a batch, for rows without a key: equal digests are equal rows."""
    return hashlib.sha256(batch.serialize()).hexdigest()[:32]


def check_keys(place: str, key: str, batches: Callable[[], Iterator[pa.RecordBatch]]) -> int:
    """The number of rows, each with a key of its own. ``batches`` is called once, or again if keys may repeat.

    Raises ``SourceError`` for a null, empty or repeated key.
    """
    if key == ROW_NUMBER_KEY:
        return sum(batch.num_rows for batch in batches())
    hashes = array("q")
    for keys in _keys(place, key, batches()):
        hashes.extend(map(hash, keys))
    rows = len(hashes)
    _refuse_repeated(place, key, hashes, batches)
    return rows


def _keys(place: str, key: str, batches: Iterable[pa.RecordBatch]) -> Iterator[list[str]]:
    first_row = 0
    for batch in batches:
        try:
            yield key_values(batch, key, first_row)
        except SourceError as exc:
            raise SourceError(f"{place}: {exc}") from exc
        first_row += batch.num_rows


def _refuse_repeated(place: str, key: str, hashes: array[int], batches: Callable[[], Iterator[pa.RecordBatch]]) -> None:
    suspects = _repeated(hashes)
    for start in range(0, len(suspects), _SUSPECTS_AT_ONCE):
        followed = frozenset(suspects[start : start + _SUSPECTS_AT_ONCE].tolist())
        found = _occurrences(_keys(place, key, batches()), followed)
        repeated = [one for one in found.values() if one.count > 1]
        if repeated:
            named = "; ".join(str(one) for one in repeated[:_KEYS_NAMED])
            more = f"; and {len(suspects) - _KEYS_NAMED} more keys" if len(suspects) > _KEYS_NAMED else ""
            raise SourceError(
                f"{place}: keys in column {key} are not unique: {named}{more} (the first row is 1); "
                f"choose a unique column, or the key {ROW_NUMBER_KEY}"
            )


def _repeated(hashes: array[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Hashes that are there more than once. Sorts in place: another copy would double the memory."""
    values = np.frombuffer(hashes, dtype=np.int64) if hashes else np.empty(0, np.int64)
    values.sort()
    return np.unique(values[1:][values[1:] == values[:-1]])


@dataclass(slots=True)
class _Occurrences:
    key: str
    count: int = 0
    rows: list[int] = field(default_factory=list)
    """Numbers of the first rows, from 1."""

    def add(self, row: int) -> None:
        self.count += 1
        if len(self.rows) < _ROWS_NAMED:
            self.rows.append(row)

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.rows) else ""
        return f"{self.key!r} in rows {', '.join(map(str, self.rows))}{more}"


def _occurrences(keys: Iterable[list[str]], followed: frozenset[int]) -> dict[str, _Occurrences]:
    """Where the keys with these hashes are."""
    found: dict[str, _Occurrences] = {}
    for row, value in enumerate(chain.from_iterable(keys), 1):
        if hash(value) in followed:
            found.setdefault(value, _Occurrences(value)).add(row)
    return found
