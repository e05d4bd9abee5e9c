"""Open a URI as a source of rows.

    data/in.csv · file:///data/in.jsonl.gz · s3://bucket/in.parquet     one file, by its suffix
    s3://bucket/in/*.csv                                                files of one format, sorted by name
    s3://bucket/folder                                                  the same, or a sink: the parts of its manifest
    sql://conn_id?query=SELECT… · sql://conn_id/table                   a query or a table

Batch ``i`` of size ``n`` is the same rows on every read as long as ``version`` is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from airflow_ai_provider.errors import SourceError
from airflow_ai_provider.rows.csv_source import CsvSource
from airflow_ai_provider.rows.files import SUFFIXES, DataFile, format_of
from airflow_ai_provider.rows.fs import list_folder, name_of, resolve, shown, translated
from airflow_ai_provider.rows.jsonl_source import JsonlSource
from airflow_ai_provider.rows.manifest import MANIFEST, is_ours, load_manifest
from airflow_ai_provider.rows.parquet_source import ParquetSource
from airflow_ai_provider.rows.sql_source import sql_source


class Source(Protocol):
    """Rows as Arrow record batches, in a stable order."""

    @property
    def uri(self) -> str: ...

    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""

    def version(self) -> str | None:
        """Changes when the content does; ``None`` if that cannot be known."""

    def batches(self, size: int) -> Iterator[pa.RecordBatch]:
        """Batches of exactly ``size`` rows, the last one shorter. Raises ``SourceError`` if there is no row."""


@runtime_checkable
class SelectableSource(Source, Protocol):
    """A source that can read fewer columns than it has."""

    def select(self, columns: Sequence[str]) -> Source: ...


def open_source(
    uri: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    database: Callable[[str], Any] | None = None,
) -> Source:
    """Open a URI. ``database`` gives the DB-API connection of a connection id.

    Raises ``SourceError`` if there is nothing to read, or its format is unknown.
    """
    if uri.startswith("sql://"):
        return sql_source(uri, database)
    filesystem, path = resolve(uri, storage_options)
    with translated(uri, SourceError):
        filesystem.invalidate_cache()
        if filesystem.isfile(path):
            return _of_files(uri, filesystem, [path])
        if filesystem.isdir(path):
            return _of_folder(uri, filesystem, path)
        if any(mark in path for mark in "*?["):
            return _of_glob(uri, filesystem, path)
    raise SourceError(f"{shown(uri)}: does not exist; expected a file, a folder, or a pattern such as data/*.csv")


def _of_glob(uri: str, filesystem: Any, path: str) -> Source:
    found = filesystem.glob(path, detail=True)
    paths = sorted(name for name, entry in found.items() if entry["type"] == "file" and _visible(name))
    if not paths:
        raise SourceError(f"{shown(uri)}: no file matches; check the pattern")
    return _of_files(uri, filesystem, paths)


def _of_folder(uri: str, filesystem: Any, path: str) -> Source:
    entries = [entry for entry in list_folder(filesystem, path) if _visible(entry["name"])]
    names = {name_of(entry["name"]) for entry in entries}
    if MANIFEST in names:
        return open_sink(uri, filesystem, path)
    if any(is_ours(name) for name in names):
        raise SourceError(f"{shown(uri)}: is a sink that is not finished; run the task that writes it to its end")
    folders = [name_of(entry["name"]) for entry in entries if entry["type"] == "directory"]
    if folders:
        raise SourceError(f"{shown(uri)}: holds the folder {folders[0]}; name the files: {shown(uri)}/**/*.parquet")
    if not entries:
        raise SourceError(f"{shown(uri)}: the folder is empty; expected files ending in {SUFFIXES}")
    return _of_files(uri, filesystem, [entry["name"] for entry in entries])


def open_sink(uri: str, filesystem: Any, path: str) -> ParquetSource:
    """The parts that a sink's manifest lists, and only those."""
    manifest = load_manifest(uri, filesystem, path)
    return ParquetSource(
        uri,
        [DataFile(filesystem, f"{path}/{part.name}") for part in manifest.parts],
        remedy="delete it and run the task that wrote it again, which makes this part anew",
        content=manifest.digest,
        expected_rows=manifest.rows,
        known_schema=manifest.schema,
    )


def _of_files(uri: str, filesystem: Any, paths: Sequence[str]) -> Source:
    files, formats = [], {}
    for path in paths:
        known = format_of(path)
        if known is None:
            raise SourceError(f"{shown(uri)}: format of {name_of(path)} unknown; expected a name ending in {SUFFIXES}")
        formats[known[0]] = path
        files.append(DataFile(filesystem, path, known[1]))
    if len(formats) > 1:
        raise SourceError(f"{shown(uri)}: holds {' and '.join(sorted(formats))}; choose one with a pattern: *.csv")
    match next(iter(formats)):
        case "csv":
            return CsvSource(uri, files)
        case "jsonl":
            return JsonlSource(uri, files)
        case _:
            return ParquetSource(uri, files)


def _visible(path: str) -> bool:
    """Hidden files and marks such as ``_SUCCESS`` are no rows."""
    return not name_of(path).startswith((".", "_"))
