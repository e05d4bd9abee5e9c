"""Shards as mapped tasks: ``LLMMapOperator.partial(…).expand(shard=shards(8))``."""

from __future__ import annotations

MAX_SHARDS = 1024
"""Airflow's own default limit of mapped task instances, ``[core] max_map_length``."""


def shards(count: int) -> list[str]:
    """``["0/count", …]``: what each of ``count`` mapped task instances takes. Raises ``ValueError``."""
    if not 1 <= count <= MAX_SHARDS:
        raise ValueError(f"shards {count}: expected 1 to {MAX_SHARDS}, which is what Airflow maps by default")
    return [f"{index}/{count}" for index in range(count)]


def shards_for(rows: int, *, rows_per_shard: int, max_shards: int) -> list[str]:
    """As few shards as keep each at about ``rows_per_shard`` rows; at least one, so that no rows is a run as well."""
    return shards(min(max(1, -(-rows // rows_per_shard)), max_shards))
