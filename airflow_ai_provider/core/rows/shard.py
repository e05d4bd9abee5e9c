"""A shard: every n-th batch of a source, so that mapped tasks share it without talking to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_ai_provider.core.errors import SourceError


@dataclass(frozen=True, slots=True)
class Shard:
    """Batches ``i`` of a source with ``i % count == index``."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise SourceError(f"shard {self.index}/{self.count}: expected 0 ≤ index < count, for example 0/4")

    def owns(self, batch_index: int) -> bool:
        return batch_index % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(value: Shard | Mapping[str, Any] | str | None) -> Shard:
    """Read ``"1/4"``, ``{"index": 1, "count": 4}``, or ``None`` for the whole source.

    Raises ``SourceError`` for anything else.
    """
    match value:
        case None:
            return Shard(0, 1)
        case Shard():
            return value
        case str() if value.count("/") == 1 and all(part.isdigit() for part in value.split("/")):
            index, count = value.split("/")
            return Shard(int(index), int(count))
        case Mapping() if set(value) == {"index", "count"}:
            return Shard(int(value["index"]), int(value["count"]))
    raise SourceError(f'shard {value!r}: expected "INDEX/COUNT" or {{"index": …, "count": …}}')
