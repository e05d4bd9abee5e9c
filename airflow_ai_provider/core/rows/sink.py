"""Write a job's rows as Parquet parts, so that a retry goes on where the last try ended.

- A part is complete or absent, and its footer holds the job's fingerprint: a part of another job, or of the same job
  over other rows, is never taken for finished.
- A batch number decides the owner: shard ``i`` of ``n`` looks after every batch ``b`` with ``b % n == i``, whatever
  shard wrote it before. So a job that runs again with more or fewer shards keeps what it has finished.
- No reader sees a mixture: ``manifest.json`` goes before the first stale part does, and comes back when all shards
  are through.
- Nothing else is touched: a folder with a file that no sink writes is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa

from airflow_ai_provider.core.errors import SinkError, SourceError
from airflow_ai_provider.core.rows import manifest as manifests
from airflow_ai_provider.core.rows.files import DataFile, format_of
from airflow_ai_provider.core.rows.filesystem import (
    is_local,
    is_object_store,
    list_folder,
    name_of,
    protocol_of,
    resolve,
    shown,
    temporary_name,
    translated,
    write_atomic,
)
from airflow_ai_provider.core.rows.manifest import MANIFEST, Manifest, ShardManifest
from airflow_ai_provider.core.rows.parts import PartSummary, encode, read_footer
from airflow_ai_provider.core.rows.shard import Shard

_T = TypeVar("_T")

_ROUND_TRIPS_AT_ONCE = 16
"""Footers read from, and parts removed from, an object store side by side."""
_NEWER_TRIES = 3
"""How many newer tries may begin while one part is written."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class PartSink:
    """One shard's hand on a sink. Call ``begin``, then ``finished`` or ``write`` for every batch, then ``commit``.

    ``fingerprint`` names the job and the rows it is over; all shards of one job pass the same string.
    """

    def __init__(
        self,
        uri: str,
        *,
        fingerprint: str,
        shard: Shard,
        storage_options: Mapping[str, Any] | None = None,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        if protocol_of(uri) == "sql" or format_of(uri) is not None:
            raise SinkError(f"{shown(uri)}: expected a folder, into which the parts are written; gather makes one file")
        self.uri = uri
        self.fingerprint = fingerprint
        self.shard = shard
        self._filesystem, self._path = resolve(uri, storage_options, error=SinkError)
        self._now = now
        self._parts: dict[int, PartSummary] | None = None
        """This shard's parts by batch."""
        self._used: set[int] = set()
        """Batches that this try has asked for or written; the manifest lists no other."""

    def begin(self) -> None:
        """Make the folder ready: remove what is stale, so that only parts of this fingerprint remain in this shard.

        Raises ``SinkError`` if the folder holds other files or cannot be written to.
        """
        with translated(self.uri, SinkError):
            self._make_folder()
            names = self._names()
            foreign = sorted(name for name in names if not name.startswith(".") and not manifests.is_ours(name))
            if foreign:
                raise SinkError(
                    f"{shown(self.uri)}: holds {foreign[0]}, which no sink wrote; choose an empty or a new folder"
                )
            self._check_writable()
            for name in names:
                if self._is_stale_manifest(name) or self._is_leftover(name):
                    self._remove(name)
            self._parts = self._scan(remove_stale=True)

    def finished(self, batch_index: int) -> PartSummary | None:
        """The part of a batch if it is whole, of this fingerprint, and none of its rows is to be tried again."""
        if self._parts is None:
            with translated(self.uri, SinkError):
                self._parts = self._scan(remove_stale=False)
        self._used.add(self._owned(batch_index))
        part = self._parts.get(batch_index)
        return part if part is not None and part.final else None

    def write(self, batch_index: int, table: pa.Table, *, summary: Mapping[str, Any], final: bool) -> None:
        """Write the part of a batch, in place of an earlier one. On return it is durable.

        ``summary`` is kept in the part's footer. ``final`` is false if some rows are to be tried again.
        """
        parts = self._begun()
        name = manifests.part_name(self.shard.index, self._owned(batch_index))
        data, part = encode(table, name, batch_index, fingerprint=self.fingerprint, summary=summary, final=final)
        with translated(self.uri, SinkError):
            self._write_part(name, data)
            earlier = parts.get(batch_index)
            if earlier is not None and earlier.name != name:
                self._remove(earlier.name)
        parts[batch_index] = part
        self._used.add(batch_index)

    def commit(self, summary: Mapping[str, Any]) -> None:
        """Declare this shard through; the last shard to do so writes ``manifest.json``.

        Raises ``SinkError`` if a batch was passed over, or parts do not fit together.
        """
        parts = self._begun()
        self._check_no_gap(parts)
        with translated(self.uri, SinkError):
            for batch in sorted(set(parts) - self._used):
                # The source has become shorter since they were written.
                self._remove(parts.pop(batch).name)
            own = ShardManifest(
                fingerprint=self.fingerprint,
                shard=self.shard,
                parts=tuple(parts[batch].entry() for batch in sorted(parts)),
                schema=self._schema(parts),
                summary=summary,
                created_at=self._now().isoformat(timespec="seconds"),
            )
            self._write(manifests.shard_manifest_name(self.shard), own.to_json())
            shards = self._committed_shards()
            if shards is not None:
                self._write(MANIFEST, manifests.merge(shown(self.uri), shards).to_json())

    # What a folder holds

    def _names(self) -> dict[str, int]:
        """Names in the folder, with their sizes in bytes."""
        return {name_of(entry["name"]): int(entry["size"] or 0) for entry in list_folder(self._filesystem, self._path)}

    def _scan(self, *, remove_stale: bool) -> dict[int, PartSummary]:
        """This shard's parts of this fingerprint, by batch; of two for one batch, the final one."""
        sizes = self._names()
        names = [name for name in sizes if self._owns(name)]
        parts: dict[int, PartSummary] = {}
        stale: list[str] = []
        for name, part in zip(names, self._footers(names, sizes), strict=True):
            if part is None or part.fingerprint != self.fingerprint:
                stale.append(name)
            elif part.batch not in parts or part.final:
                stale += [parts[part.batch].name] if part.batch in parts else []
                parts[part.batch] = part
            else:
                stale.append(name)
        if remove_stale:
            self._side_by_side(self._remove, stale)
        return parts

    def _footers(self, names: list[str], sizes: Mapping[str, int]) -> Iterable[PartSummary | None]:
        def read(name: str) -> PartSummary | None:
            batch = manifests.batch_of(name)
            assert batch is not None
            try:
                return read_footer(DataFile(self._filesystem, f"{self._path}/{name}"), name, batch, sizes[name])
            except SourceError as exc:
                raise SinkError(str(exc)) from exc

        return self._side_by_side(read, names)

    def _side_by_side(self, act: Callable[[str], _T], names: list[str]) -> list[_T]:
        """``act`` on every name: at once where each is a round trip."""
        if is_local(self._filesystem):
            return [act(name) for name in names]
        with ThreadPoolExecutor(_ROUND_TRIPS_AT_ONCE) as pool:
            return list(pool.map(act, names))

    def _owns(self, name: str) -> bool:
        batch = manifests.batch_of(name)
        return batch is not None and self.shard.owns(batch)

    def _owned(self, batch_index: int) -> int:
        if not self.shard.owns(batch_index):
            raise SinkError(f"{shown(self.uri)}: batch {batch_index} is not of shard {self.shard}")
        return batch_index

    # Manifests

    def _is_stale_manifest(self, name: str) -> bool:
        try:
            if name == MANIFEST:
                whole = self._load(name, Manifest.from_json)
                return whole.fingerprint != self.fingerprint or whole.shards != self.shard.count
            shard = manifests.shard_of(name)
            if shard is None or shard.count != self.shard.count:
                return shard is not None
            return shard == self.shard and self._load(name, ShardManifest.from_json).fingerprint != self.fingerprint
        except FileNotFoundError:
            # Another shard of this job has just cleared it away.
            return False

    def _committed_shards(self) -> list[ShardManifest] | None:
        """The manifests of all shards of this job; ``None`` while one is missing."""
        names = self._names()
        wanted = [manifests.shard_manifest_name(Shard(index, self.shard.count)) for index in range(self.shard.count)]
        if not all(name in names for name in wanted):
            return None
        shards = [self._load(name, ShardManifest.from_json) for name in wanted]
        return shards if all(one.fingerprint == self.fingerprint for one in shards) else None

    def _load(self, name: str, parse: Callable[[bytes], _T]) -> _T:
        try:
            return parse(self._filesystem.cat_file(f"{self._path}/{name}"))
        except (ValueError, KeyError, TypeError) as exc:
            raise SinkError(
                f"{shown(self.uri)}/{name}: is not the manifest of a sink; choose an empty or a new folder"
            ) from exc

    def _schema(self, parts: Mapping[int, PartSummary]) -> pa.Schema | None:
        schemas = _distinct(part.schema for part in parts.values())
        return manifests.unified(shown(self.uri), schemas) if schemas else None

    def _check_no_gap(self, parts: Mapping[int, PartSummary]) -> None:
        for position, batch in enumerate(sorted(self._used)):
            expected = self.shard.index + position * self.shard.count
            if batch != expected or batch not in parts:
                raise SinkError(
                    f"{shown(self.uri)}: batch {min(batch, expected)} was not written; write it, then commit"
                )

    # The folder itself

    def _make_folder(self) -> None:
        # Object stores have no folders, and some libraries would make a bucket instead.
        if not is_object_store(self._filesystem):
            self._filesystem.makedirs(self._path, exist_ok=True)

    def _check_writable(self) -> None:
        probe = temporary_name(f"{self._path}/probe")
        self._filesystem.pipe_file(probe, b"")
        self._filesystem.rm_file(probe)

    def _is_leftover(self, name: str) -> bool:
        """A temporary file of one of this shard's parts, left by a process that was killed."""
        return name.startswith(".part-") and name.endswith(".tmp") and self._owns(name[1:].rsplit(".", 2)[0])

    def _write_part(self, name: str, data: bytes) -> None:
        """Write a part, again where a newer try's ``begin`` took its temporary file for that of a killed process.

        Whether this try was superseded is for the ledger to say; what was paid for is written until then.
        """
        for _ in range(_NEWER_TRIES):
            with suppress(FileNotFoundError):
                return self._write(name, data)
        return self._write(name, data)

    def _write(self, name: str, data: bytes) -> None:
        write_atomic(self._filesystem, f"{self._path}/{name}", data)

    def _remove(self, name: str) -> None:
        # Another shard may have removed it: all of them clear away stale manifests.
        with suppress(FileNotFoundError):
            self._filesystem.rm_file(f"{self._path}/{name}")

    def _begun(self) -> dict[int, PartSummary]:
        if self._parts is None:
            raise SinkError(f"{shown(self.uri)}: nothing can be written before begin()")
        return self._parts


def _distinct(schemas: Iterable[pa.Schema]) -> list[pa.Schema]:
    """Each schema once: the parts of a sink have one or two between them."""
    seen: list[pa.Schema] = []
    for schema in schemas:
        if schema not in seen:
            seen.append(schema)
    return seen
