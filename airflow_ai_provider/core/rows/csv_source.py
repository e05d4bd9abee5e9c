"""CSV files as text columns.

Every column is read as text, so that ids keep their zeros and no block of a file is typed unlike another. An empty
cell is the empty string, never null. The delimiter is a comma, the encoding UTF-8 with or without a byte-order mark;
quoted values may hold newlines. Messages never quote a line of the file.

Neutralise text that a spreadsheet would run as a formula when it opens a CSV file.

The rule follows OWASP's page on CSV injection: an apostrophe goes before a cell that begins with ``=``, ``+``, ``-``,
``@`` (also in their full-width and small forms), behind any white space, invisible characters and quotes, and before a
cell that begins with a tab or a line break. Plain numbers such as ``-12.5`` and ``+86 138 0013 8000`` are left alone:
a spreadsheet computes nothing from digits and separators.

The rule can be reversed: remove one apostrophe from a cell whose remainder is a formula by the same rule.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from airflow_ai_provider.core.errors import SourceError
from airflow_ai_provider.core.rows.files import DataFile, combined_version, stream

BLOCK_BYTES = 1 << 20
"""First block size; a row must fit into one block."""
MAX_BLOCK_BYTES = 1 << 28
"""Largest block size tried, hence the longest row that is read: 256 MiB."""
_GROWTH = 8
_TAIL_BYTES = 4096
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_NOT_UTF8 = "is not UTF-8; convert the file, for example iconv -f LATIN1 (or GB18030, …) -t UTF-8 in.csv > out.csv"


class _RowExceedsBlock(Exception):
    """The block size is smaller than a row."""


@dataclass(frozen=True, slots=True)
class CsvSource:
    """One or more CSV files with the same columns, read one after the other."""

    uri: str
    files: Sequence[DataFile]
    selected: tuple[str, ...] | None = None
    """Columns to hand out; ``None`` for all. All are read and checked either way."""
    _known: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)
    """Columns by file, once they have been read."""

    def columns(self) -> tuple[str, ...]:
        return self.selected or self._header(self.files[0])

    def version(self) -> str:
        return combined_version(self.files)

    def select(self, columns: Sequence[str]) -> CsvSource:
        return replace(self, selected=tuple(columns))

    def batches(self, size: int) -> Iterator[pa.RecordBatch]:
        return stream(self.uri, self._blocks(), size)

    def _blocks(self) -> Iterator[pa.RecordBatch]:
        expected = self._header(self.files[0])
        for file in self.files:
            names = self._header(file)
            if sorted(names) != sorted(expected):
                difference = ", ".join(sorted(set(names) ^ set(expected)))
                raise SourceError(
                    f"{file.shown}: columns differ from {self.files[0].shown} in {difference}; "
                    "the files of one source must have the same columns"
                )
            for block in _blocks(file, names):
                yield block.select(list(self.columns()))

    def _header(self, file: DataFile) -> tuple[str, ...]:
        if file.path not in self._known:
            self._known[file.path] = _header(file)
        return self._known[file.path]


def _header(file: DataFile) -> tuple[str, ...]:
    block_bytes = BLOCK_BYTES
    while True:
        try:
            with _opened(file, (), block_bytes) as (_, reader):
                names = tuple(reader.schema.names)
            break
        except _RowExceedsBlock:
            block_bytes = _larger(file, block_bytes)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SourceError(f"{file.shown}: the header names {', '.join(repeated)} twice; rename one of the columns")
    return names


def _blocks(file: DataFile, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """All rows. If a row exceeds the block, reads again with larger blocks and passes over the rows given out."""
    block_bytes, given = BLOCK_BYTES, 0
    while True:
        try:
            for block in _after(given, _read(file, names, block_bytes)):
                given += block.num_rows
                yield block
            return
        except _RowExceedsBlock:
            block_bytes = _larger(file, block_bytes)


def _after(rows: int, blocks: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for block in blocks:
        passed = min(rows, block.num_rows)
        rows -= passed
        if passed < block.num_rows:
            yield block.slice(passed)


def _larger(file: DataFile, block_bytes: int) -> int:
    if block_bytes >= MAX_BLOCK_BYTES:
        raise SourceError(
            f"{file.shown}: a row is longer than {MAX_BLOCK_BYTES >> 20} MiB; "
            "probably a quoted value that is never closed, otherwise split the file's long values"
        )
    return min(block_bytes * _GROWTH, MAX_BLOCK_BYTES)


def _read(file: DataFile, names: tuple[str, ...], block_bytes: int) -> Iterator[pa.RecordBatch]:
    last_cell = ""
    with _opened(file, names, block_bytes) as (text, reader):
        if tuple(reader.schema.names) != names:
            raise SourceError(f"{file.shown}: changed while it was read; run again when its writer is through")
        for block in reader:
            if block.num_rows:
                last_cell = block.column(block.num_columns - 1)[block.num_rows - 1].as_py()
                yield block
    if last_cell.endswith(("\n", "\r")) and not text.closes_quote():
        raise SourceError(f"{file.shown}: a quoted value in the last row is never closed; the file may be cut short")


@contextmanager
def _opened(file: DataFile, names: tuple[str, ...], block_bytes: int) -> Iterator[tuple[_EndedText, Any]]:
    """The bytes and Arrow's reader over them, which gives ``names`` as text."""
    bad_rows: list[Any] = []

    def note(row: Any) -> Literal["error"]:
        bad_rows.append(row)
        return "error"

    with file.open() as raw, _translated(file, bad_rows):
        text = _EndedText(raw)
        # One thread: the reader is as fast, and only then knows the number of a bad row.
        with pa_csv.open_csv(
            cast("Any", text),
            read_options=pa_csv.ReadOptions(block_size=block_bytes, use_threads=False),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, null_values=[], strings_can_be_null=False
            ),
        ) as reader:
            yield text, reader


class _EndedText(io.RawIOBase):
    """The file with a newline at its end, remembering how it ended: Arrow accepts a quote that is never closed."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._tail = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        if not self._tail and data.startswith(_UTF16_MARKS):
            raise UnicodeDecodeError("utf-8", data[:2], 0, 2, "a UTF-16 byte-order mark")
        if data:
            self._tail = data[-_TAIL_BYTES:] if len(data) >= _TAIL_BYTES else (self._tail + data)[-_TAIL_BYTES:]
            return data
        if self._ended or not self._tail or self._tail.endswith(b"\n"):
            return b""
        self._ended = True
        return b"\n"

    def closes_quote(self) -> bool:
        """Whether a last value that ends in a newline has a quote after it."""
        return re.search(rb'[\r\n]"[\r\n]*$', self._tail) is not None


@contextmanager
def _translated(file: DataFile, bad_rows: list[Any]) -> Iterator[None]:
    """Arrow's parse errors quote the row, so their text is dropped and the row's number told instead."""
    try:
        yield
    except UnicodeDecodeError:
        raise SourceError(f"{file.shown}: the header {_NOT_UTF8}") from None
    except pa.ArrowInvalid as exc:
        text = str(exc)
        if "straddles two block boundaries" in text:
            raise _RowExceedsBlock from None
        raise SourceError(f"{file.shown}: {_reason(text, bad_rows)}") from None


def _reason(text: str, bad_rows: list[Any]) -> str:
    if bad_rows:
        row = bad_rows[0]
        return (
            f"row {row.number} has {row.actual_columns} values, expected {row.expected_columns} "
            "(the header is row 1); mend it, and look for a stray quote or comma"
        )
    if "Empty CSV" in text:
        return "is empty or has no whole line; expected a header line and at least one row"
    if "UTF8" in text:
        at = re.search(r"Row #(\d+)", text)
        return f"row {at[1]} {_NOT_UTF8}" if at else _NOT_UTF8
    return "is not CSV; expected comma-separated values with a header line"


Formulas = Literal["neutralise", "keep"]

_BEFORE = (
    r"""[\s\pZ\p{Cc}\p{Cf}\x{34F}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{2800}\x{3164}\x{FE00}-\x{FE0F}\x{FFA0}"""
    r""""'\p{Pi}\p{Pf}\x60\xB4\x{2BC}\x{201A}\x{201E}\x{2032}\x{2033}\x{FF02}\x{FF07}]*"""
)
"""White space, control and invisible characters, and quotes of all kinds."""
_SIGNS = r"[=+\-@\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}\x{FE66}\x{FE62}\x{FE63}\x{FE6B}\x{2212}]"
_FORMULA = rf"""\A(?:['"]*[\t\r\n]|{_BEFORE}{_SIGNS})"""
_NUMBER = r"\A[+-]?\d+(?:[ .,\x{A0}\x{202F}]\d+)*(?:[eE][+-]?\d+)?[ \x{A0}]?%?\z"


def is_text(kind: pa.DataType) -> bool:
    """Whether cells of this type can hold a formula."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def neutralised(column: Any) -> Any:
    """A text column with an apostrophe before each formula; the column itself where it holds none."""
    text: Any = column.cast(pa.large_string())
    formula = pc.and_not(pc.match_substring_regex(text, _FORMULA), pc.match_substring_regex(text, _NUMBER))
    if not pc.any(formula).as_py():
        return column
    quoted = pc.replace_substring_regex(text, r"\A", "'", max_replacements=1)
    return pc.if_else(formula, quoted, text).cast(column.type)


def neutralised_name(name: str) -> str:
    """The same for the name of a column, which is a cell of the header."""
    return str(neutralised(pa.array([name]))[0].as_py())
