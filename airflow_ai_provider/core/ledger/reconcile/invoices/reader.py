"""Opens an export: which format it is, and its lines as a stream.

CSV is read line by line. A JSON export is one page of a vendor's API or several, one after the other or in a list;
they are small, since a page holds at most a month of days.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, BinaryIO

from airflow_ai_provider.core.errors import SourceError
from airflow_ai_provider.core.ledger.reconcile.invoices import anthropic, openai
from airflow_ai_provider.core.ledger.reconcile.invoices import line as plain
from airflow_ai_provider.core.ledger.reconcile.invoices.line import FORMATS, Format, InvoiceLine, Place

_Row = Mapping[str, str]
_BUCKET_READERS: Mapping[Format, Callable[[Place, int, Mapping[str, Any], Mapping[str, Any]], InvoiceLine | None]] = {
    "openai-usage": openai.usage,
    "openai-costs": openai.costs,
    "anthropic-usage": anthropic.usage,
    "anthropic-costs": anthropic.costs,
}
_ROW_READERS: Mapping[Format, Callable[[Place, int, _Row], InvoiceLine | None]] = {
    "csv": plain.line,
    "openai-usage": openai.usage_row,
    "openai-costs": openai.costs_row,
    "anthropic-usage": anthropic.usage_row,
    "anthropic-costs": anthropic.costs_row,
}
_KNOWN = (
    "expected our plain CSV (model, cost_usd, at or day, …), or a usage or cost export of OpenAI or Anthropic; "
    f"name it with --format {'|'.join(FORMATS)}"
)


@dataclass(frozen=True, slots=True)
class Invoice:
    """An export that was opened. ``lines`` can be read once, and raises ``SourceError`` at the first bad one."""

    name: str
    digest: str
    """SHA-256 of the file, 64 hex digits: the same file is the same invoice."""
    format: Format
    by_request: bool
    """Its lines are requests with ids, not sums."""
    lines: Iterator[InvoiceLine] = field(repr=False)

    @property
    def provider(self) -> str | None:
        """Whose models it is about; ``None`` for the plain CSV, which may be anybody's."""
        return None if self.format == "csv" else self.format.partition("-")[0]


def open_invoice(file: BinaryIO, name: str, wanted: Format | None = None) -> Invoice:
    """Read the beginning of a seekable ``file``; ``name`` is what messages call it.

    Raises ``SourceError`` where it is in no known format, or not in the ``wanted`` one.
    """
    digest = _digest(file)
    head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    if not head:
        raise SourceError(f"{name}: is empty; {_KNOWN}")
    if head[:1] in (b"{", b"["):
        pages = _pages(text, name)
        found = wanted or _format_of_pages(pages)
        if found is None or found not in _BUCKET_READERS:
            raise SourceError(f"{name}: is JSON of no known kind; {_KNOWN}")
        return Invoice(name, digest, found, by_request=False, lines=_from_pages(pages, name, found))
    rows = _rows(text, name)
    columns = [column.strip() for column in next(rows)[1]]
    found = wanted or _format_of_columns(columns)
    if found is None:
        raise SourceError(f"{name}:1: its columns belong to no known format; {_KNOWN}")
    _require_columns(name, columns, found)
    by_request = found == "csv" and plain.has_ids(columns)
    return Invoice(name, digest, found, by_request=by_request, lines=_from_rows(rows, columns, name, found))


def _digest(file: BinaryIO) -> str:
    found = hashlib.sha256()
    file.seek(0)
    while block := file.read(1 << 20):
        found.update(block)
    file.seek(0)
    return found.hexdigest()


def _format_of_columns(columns: Sequence[str]) -> Format | None:
    # The plain CSV comes last: Anthropic's costs have a model and a cost, too.
    found = openai.format_of_columns(columns) or anthropic.format_of_columns(columns)
    return found or ("csv" if plain.is_plain(columns) else None)


def _require_columns(name: str, columns: Sequence[str], wanted: Format) -> None:
    if len(set(columns)) != len(columns):
        raise SourceError(f"{name}:1: a column stands there twice")
    fits = plain.is_plain(columns) if wanted == "csv" else _format_of_columns(columns) == wanted
    if not fits:
        raise SourceError(f"{name}:1: its columns are not those of format {wanted}; {_KNOWN}")


def _rows(text: io.TextIOWrapper, name: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of a CSV file, the header first; empty lines are left out."""
    reader = csv.reader(text, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error:
        raise SourceError(f"{name}:{reader.line_num}: is no CSV, or was cut short; nothing was changed") from None
    except UnicodeDecodeError:
        raise SourceError(f"{name}:{reader.line_num + 1}: is not UTF-8; nothing was changed") from None


def _from_rows(
    rows: Iterator[tuple[int, list[str]]], columns: Sequence[str], name: str, found: Format
) -> Iterator[InvoiceLine]:
    read = _ROW_READERS[found]
    for number, cells in rows:
        place = Place(name, str(number))
        if len(cells) != len(columns):
            place.wrong(f"expected {len(columns)} fields")
        if (line := read(place, number, dict(zip(columns, cells, strict=True)))) is not None:
            yield line


def _pages(text: io.TextIOWrapper, name: str) -> list[Any]:
    """The JSON values of a file; numbers with a point stay decimals."""
    try:
        rest = text.read()
    except UnicodeDecodeError:
        raise SourceError(f"{name}: is not UTF-8; nothing was changed") from None
    decoder, pages, at = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_constant), list[Any](), 0
    blank = re.compile(r"\s*")
    while (at := blank.match(rest, at).end()) < len(rest):  # type: ignore[union-attr]
        try:
            page, at = decoder.raw_decode(rest, at)
        except (ValueError, RecursionError) as error:
            number = rest.count("\n", 0, getattr(error, "pos", at)) + 1
            raise SourceError(f"{name}:{number}: is no JSON, or was cut short; nothing was changed") from None
        pages += page if isinstance(page, list) else [page]
    return pages


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def _format_of_pages(pages: Sequence[Any]) -> Format | None:
    for page in pages:
        for bucket in page.get("data") or () if isinstance(page, dict) else ():
            for result in bucket.get("results") or () if isinstance(bucket, dict) else ():
                if isinstance(result, dict):
                    return openai.format_of_result(result) or anthropic.format_of_result(result)
    return None


def _from_pages(pages: Sequence[Any], name: str, found: Format) -> Iterator[InvoiceLine]:
    read, number = _BUCKET_READERS[found], 0
    for index, page in enumerate(pages):
        at = Place(name, f"page {index + 1}")
        page = at.mapping("page", page)
        for where, bucket in enumerate(at.listed("data", page.get("data"))):
            bucket = at.mapping(f"data[{where}]", bucket)
            for which, result in enumerate(at.listed(f"data[{where}].results", bucket.get("results"))):
                number += 1
                place = Place(name, f"page {index + 1}: data[{where}].results[{which}]")
                if (line := read(place, number, bucket, place.mapping("result", result))) is not None:
                    yield line
    if pages and isinstance(pages[-1], dict) and pages[-1].get("has_more") is True:
        raise SourceError(
            f"{name}: has_more is true on its last page: the rest of the export is missing; "
            "fetch next_page and put it behind"
        )
