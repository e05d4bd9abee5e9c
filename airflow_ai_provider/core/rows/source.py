"""Sources of rows: opening them, filling in missing columns, inspecting them before a job.

Open a URI as a source of rows.

    data/in.csv · file:///data/in.jsonl.gz · s3://bucket/in.parquet     one file, by its suffix
    s3://bucket/in/*.csv                                                files of one format, sorted by name
    s3://bucket/folder                                                  the same, or a sink: the parts of its manifest
    sql://conn_id?query=SELECT… · sql://conn_id/table                   a query or a table

Batch ``i`` of size ``n`` is the same rows on every read as long as ``version`` is the same.

A source with columns it lacks: the same text in every row.

Look a source over before any money is spent: one pass that finds what would go wrong later.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from airflow_ai_provider.core.errors import SourceError
from airflow_ai_provider.core.rows.csv_source import CsvSource
from airflow_ai_provider.core.rows.files import SUFFIXES, DataFile, format_of
from airflow_ai_provider.core.rows.filesystem import list_folder, name_of, resolve, shown, translated
from airflow_ai_provider.core.rows.jsonl_source import JsonlSource
from airflow_ai_provider.core.rows.keys import ROW_NUMBER_KEY, check_keys, key_values
from airflow_ai_provider.core.rows.manifest import MANIFEST, is_ours, load_manifest
from airflow_ai_provider.core.rows.parquet_source import ParquetSource
from airflow_ai_provider.core.rows.sql_source import sql_source


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


class DefaultedSource:
    """A source whose rows have further columns. A column that the source has itself stays as it is."""

    def __init__(self, source: Source, defaults: Mapping[str, str]) -> None:
        self._source = source
        self._defaults = {name: value for name, value in defaults.items() if name not in source.columns()}

    @property
    def uri(self) -> str:
        return self._source.uri

    def columns(self) -> tuple[str, ...]:
        return (*self._source.columns(), *self._defaults)

    def version(self) -> str | None:
        return self._source.version()

    def select(self, columns: Sequence[str]) -> Source:
        """Of the source itself no more columns than these; all defaults."""
        own = [name for name in columns if name not in self._defaults]
        if own and isinstance(self._source, SelectableSource):
            return DefaultedSource(self._source.select(own), self._defaults)
        return self

    def batches(self, size: int) -> Iterator[pa.RecordBatch]:
        for batch in self._source.batches(size):
            arrays = [pa.array([value] * batch.num_rows, pa.string()) for value in self._defaults.values()]
            names = [*batch.schema.names, *self._defaults]
            yield pa.RecordBatch.from_arrays([*batch.columns, *arrays], names=names)


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
