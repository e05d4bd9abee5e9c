"""What the double charges: one line for every answer it produced, whether or not the client got it.

Amounts are integer nano-dollars (10⁻⁹ USD), computed in exact decimals from prices in USD per million tokens and
rounded half up once per line. A line is in the file, past this process, before the answer is sent: the invoice
survives a kill of either side.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from io import FileIO
from pathlib import Path

import orjson

NANO_PER_TOKEN = 1000
"""One USD per million tokens is 1,000 nano-dollars per token."""


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens, as decimal strings."""

    input: str
    output: str
    cached_input: str | None = None
    """Of the input tokens the vendor had cached; ``None``: as other input."""
    cache_write: str | None = None
    """Of the input tokens that the vendor put into its cache; ``None``: as other input."""

    def __post_init__(self) -> None:
        for text in (self.input, self.output, self.cached_input, self.cache_write):
            if text is not None and not _is_price(text):
                raise ValueError(f"price {text!r}: expected USD per million tokens as a decimal string, such as '0.15'")

    def nano_per_token(self) -> NanoRates:
        cached = self.input if self.cached_input is None else self.cached_input
        written = self.input if self.cache_write is None else self.cache_write
        return NanoRates(*(Decimal(text) * NANO_PER_TOKEN for text in (self.input, self.output, cached, written)))


@dataclass(frozen=True, slots=True)
class NanoRates:
    """A price in nano-dollars per token."""

    input: Decimal
    output: Decimal
    cached_input: Decimal
    cache_write: Decimal

    def cost(self, usage: Usage) -> int:
        fresh = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
        exact = fresh * self.input + usage.cached_tokens * self.cached_input + usage.completion_tokens * self.output
        exact += usage.cache_write_tokens * self.cache_write
        return int(exact.quantize(Decimal(1), ROUND_HALF_UP))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. ``cached_tokens`` and ``cache_write_tokens`` are two parts of ``prompt_tokens``."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """One answer that was charged for."""

    request_id: str
    """The vendor's own, as in the answer's ``x-request-id``."""
    endpoint: str
    """``chat`` or ``embeddings``."""
    model: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nanodollars: int
    outcome: str
    """What happened to the answer: ``ok``, or the fault's name."""
    at: float
    """Unix time in seconds."""
    idempotency_key: str | None
    """``Idempotency-Key`` of the request."""
    client_request_id: str | None
    """``X-Client-Request-Id`` or ``X-Request-Id`` of the request."""
    cache_write_tokens: int = 0


class Invoice:
    """Every line since the start or the last reset, in memory and, where asked, appended to a JSONL file."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._out: FileIO | None = None
        self._lines: list[InvoiceLine] = []
        self.total_nanodollars = 0

    def add(self, line: InvoiceLine) -> None:
        if self._file is not None:
            self._out = self._out or open_for_appending(self._file)
            self._out.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self._lines.append(line)
        self.total_nanodollars += line.cost_nanodollars

    def lines(self) -> list[InvoiceLine]:
        return self._lines.copy()

    def __len__(self) -> int:
        return len(self._lines)

    def reset(self) -> None:
        """Forget the lines in memory. The file keeps them."""
        self._lines.clear()
        self.total_nanodollars = 0

    def close(self) -> None:
        if self._out is not None:
            self._out.close()
            self._out = None


def read_invoice(file: Path) -> list[InvoiceLine]:
    """The lines of an invoice file. A last line cut short by a kill is an error: lines are written whole."""
    return [InvoiceLine(**orjson.loads(line)) for line in file.read_bytes().splitlines()]


def answer_id(request_id: str) -> str:
    """The ``id`` in the body of a chat answer."""
    return f"chatcmpl-{request_id.removeprefix('req_')}"


def write_csv(lines: Iterable[InvoiceLine], file: Path) -> None:
    """Write lines as a vendor's export, one request a line, in the form that ``airflow ai ledger reconcile`` reads."""
    with file.open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out, lineterminator="\n")
        tokens = ("input_tokens", "output_tokens", "cached_input_tokens")
        rows.writerow(("attempt_id", "vendor_request_id", "at", "model", *tokens, "cost_usd"))
        for line in lines:
            at = datetime.fromtimestamp(line.at, UTC).isoformat()
            counts = (line.prompt_tokens, line.completion_tokens, line.cached_tokens)
            usd = f"{Decimal(line.cost_nanodollars).scaleb(-9):f}"
            rows.writerow((line.idempotency_key or "", answer_id(line.request_id), at, line.model, *counts, usd))


def price_list(prices: Mapping[str, Price]) -> dict[str, NanoRates]:
    return {model: price.nano_per_token() for model, price in prices.items()}


def open_for_appending(file: Path) -> FileIO:
    """Unbuffered: one ``write`` is one line handed to the operating system."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileIO(file, "a")


def _is_price(text: str) -> bool:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        return False
    return amount.is_finite() and amount >= 0
