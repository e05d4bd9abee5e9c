"""What a sink's folder says of itself.

    part-00000-000003.parquet   batch 3, written by shard 0
    manifest-0-of-2.json        what shard 0 of 2 has written; there when the shard is through
    manifest.json               all of it; there when all shards are through

A reader trusts ``manifest.json`` alone: a folder without it is not finished. Merging is pure, so two shards that end
at once write the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from airflow_ai_provider.core.errors import SinkError, SourceError
from airflow_ai_provider.core.rows.filesystem import list_folder, name_of, resolve, shown, translated
from airflow_ai_provider.core.rows.shard import Shard

VERSION = 1
MANIFEST = "manifest.json"
_PART = re.compile(r"part-(\d{5,})-(\d{6,})\.parquet")
_SHARD_MANIFEST = re.compile(r"manifest-(\d+)-of-(\d+)\.json")


def part_name(shard: int, batch: int) -> str:
    return f"part-{shard:05d}-{batch:06d}.parquet"


def batch_of(name: str) -> int | None:
    """The batch that a part's name tells; ``None`` for another file."""
    match = _PART.fullmatch(name)
    return int(match[2]) if match else None


def shard_manifest_name(shard: Shard) -> str:
    return f"manifest-{shard.index}-of-{shard.count}.json"


def shard_of(name: str) -> Shard | None:
    """The shard that a shard manifest's name tells; ``None`` for another file."""
    match = _SHARD_MANIFEST.fullmatch(name)
    return Shard(int(match[1]), int(match[2])) if match and int(match[1]) < int(match[2]) else None


def is_ours(name: str) -> bool:
    """Whether a sink may have written a file of this name."""
    return name == MANIFEST or batch_of(name) is not None or shard_of(name) is not None


@dataclass(frozen=True, slots=True)
class PartEntry:
    """One part as a manifest lists it."""

    name: str
    batch: int
    rows: int
    bytes: int
    digest: str
    """SHA-256 of the rows."""
    final: bool
    """False if some of its rows are to be tried again."""

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """What one shard has written."""

    fingerprint: str
    shard: Shard
    parts: tuple[PartEntry, ...]
    schema: pa.Schema | None
    """``None`` if the shard had no batch."""
    summary: Mapping[str, Any]
    created_at: str

    def to_json(self) -> bytes:
        return _json(
            {
                "version": VERSION,
                "fingerprint": self.fingerprint,
                "shard": {"index": self.shard.index, "count": self.shard.count},
                "rows": sum(part.rows for part in self.parts),
                "parts": [part.to_dict() for part in self.parts],
                **_schema_to_dict(self.schema),
                "summary": dict(self.summary),
                "created_at": self.created_at,
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> ShardManifest:
        """Raises ``ValueError``, ``KeyError`` or ``TypeError`` if it is not one."""
        value = _versioned(data)
        return cls(
            fingerprint=value["fingerprint"],
            shard=Shard(**value["shard"]),
            parts=tuple(PartEntry(**part) for part in value["parts"]),
            schema=_schema_from_dict(value),
            summary=value["summary"],
            created_at=value["created_at"],
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a whole sink holds."""

    fingerprint: str
    shards: int
    """Number of shards that wrote it."""
    parts: tuple[PartEntry, ...]
    """In the order of batches, which is the order of the source's rows."""
    schema: pa.Schema
    totals: Mapping[str, Any]
    """The integers of the shards' summaries, added up."""
    summaries: tuple[Mapping[str, Any], ...]
    """The shards' summaries, in the order of shards."""
    created_at: str
    """When the last shard was through, ISO 8601 in UTC."""

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.schema.names)

    @property
    def final(self) -> bool:
        """False if some rows are to be tried again."""
        return all(part.final for part in self.parts)

    @property
    def digest(self) -> str:
        """Hash of the content: the rows and their order, not when or by how many shards they were written."""
        return "sha256:" + hashlib.sha256("\n".join(part.digest for part in self.parts).encode()).hexdigest()

    def to_json(self) -> bytes:
        return _json(
            {
                "version": VERSION,
                "fingerprint": self.fingerprint,
                "digest": self.digest,
                "rows": self.rows,
                "final": self.final,
                "created_at": self.created_at,
                "totals": dict(self.totals),
                **_schema_to_dict(self.schema),
                "parts": [part.to_dict() for part in self.parts],
                "shards": self.shards,
                "summaries": [dict(summary) for summary in self.summaries],
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Raises ``ValueError``, ``KeyError`` or ``TypeError`` if it is not one."""
        value = _versioned(data)
        return cls(
            fingerprint=value["fingerprint"],
            shards=value["shards"],
            parts=tuple(PartEntry(**part) for part in value["parts"]),
            schema=_schema_from_dict(value) or pa.schema([]),
            totals=value["totals"],
            summaries=tuple(value["summaries"]),
            created_at=value["created_at"],
        )


def merge(place: str, shards: Sequence[ShardManifest]) -> Manifest:
    """The manifest of a sink from those of all its shards.

    Raises ``SinkError`` if a batch is missing between them, or a column has two types.
    """
    ordered = sorted(shards, key=lambda one: one.shard.index)
    parts = sorted((part for one in ordered for part in one.parts), key=lambda part: part.batch)
    missing = next((index for index, part in enumerate(parts) if part.batch != index), None)
    if missing is not None:
        raise SinkError(f"{place}: batch {missing} is missing; did the source change between shards? Run all of them")
    return Manifest(
        fingerprint=ordered[0].fingerprint,
        shards=len(ordered),
        parts=tuple(parts),
        schema=unified(place, [one.schema for one in ordered if one.schema is not None]),
        totals=add_up(one.summary for one in ordered),
        summaries=tuple(one.summary for one in ordered),
        created_at=max(one.created_at for one in ordered),
    )


def unified(place: str, schemas: Sequence[pa.Schema]) -> pa.Schema:
    """One schema for all parts. Only a column that is all null in a part may have another type there."""
    if any(set(schema.names) != set(schemas[0].names) for schema in schemas):
        raise SinkError(f"{place}: parts differ in their columns; write every batch with the same schema")
    try:
        return pa.unify_schemas(list(schemas)) if schemas else pa.schema([])
    except pa.ArrowException as exc:
        raise SinkError(f"{place}: a column has two types; write every batch with the same schema") from exc


def add_up(summaries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of the integer fields, also of those in nested mappings; other fields are left out."""
    totals: dict[str, Any] = {}
    for summary in summaries:
        for name, value in summary.items():
            if isinstance(value, Mapping):
                totals[name] = add_up([totals.get(name, {}), value])
            elif isinstance(value, int) and not isinstance(value, bool):
                totals[name] = totals.get(name, 0) + value
    return totals


def read_manifest(uri: str, storage_options: Mapping[str, Any] | None = None) -> Manifest | None:
    """The manifest of a sink; ``None`` if there is none yet. Raises ``SourceError`` if it is not one of ours."""
    filesystem, path = resolve(uri, storage_options)
    with translated(uri, SourceError):
        if MANIFEST not in {name_of(entry["name"]) for entry in list_folder(filesystem, path)}:
            return None
        return load_manifest(uri, filesystem, path)


def load_manifest(uri: str, filesystem: Any, path: str) -> Manifest:
    """Read the manifest that is there."""
    try:
        return Manifest.from_json(filesystem.cat_file(f"{path}/{MANIFEST}"))
    except (ValueError, KeyError, TypeError) as exc:
        raise SourceError(
            f"{shown(uri)}/{MANIFEST}: is not the manifest of a sink; name the files: {shown(uri)}/*.parquet"
        ) from exc


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1, default=str).encode()


def _versioned(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise ValueError(f"expected version {VERSION}")
    return value


def _schema_to_dict(schema: pa.Schema | None) -> dict[str, Any]:
    if schema is None:
        return {"columns": [], "schema": None}
    return {
        "columns": [{"name": field.name, "type": str(field.type)} for field in schema],
        "schema": base64.b64encode(schema.serialize().to_pybytes()).decode(),
    }


def _schema_from_dict(value: Mapping[str, Any]) -> pa.Schema | None:
    if value["schema"] is None:
        return None
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(value["schema"])))
