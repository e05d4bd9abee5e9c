"""One line of an invoice, and the plain CSV format.

One line of an invoice, and how its fields are read.

The plain CSV: one line per request, for any vendor, proxy or log that can name its requests.

``attempt_id`` (or ``idempotency_key``), ``vendor_request_id``, ``model``, ``at`` or ``day``, ``cost_usd``,
``input_tokens``, ``output_tokens``, ``cached_input_tokens``, ``cache_write_tokens``, ``requests``. Required are
``model``, ``cost_usd`` and one of ``at`` and ``day``; without a column of ids a line is a sum of a day and model.
Other columns are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_CEILING, Context, Decimal, InvalidOperation
from typing import Any, Literal, NoReturn, get_args

from airflow_ai_provider.core.errors import SourceError

Format = Literal["csv", "openai-usage", "openai-costs", "anthropic-usage", "anthropic-costs"]
FORMATS: tuple[Format, ...] = get_args(Format)

_EXACT = Context(prec=100)
"""More digits than any amount has: nothing is rounded on the way to nano-dollars."""
_AMOUNT = re.compile(r"[0-9]{1,12}(\.[0-9]{0,60})?([eE]-?[0-9]{1,2})?")
_COUNT = re.compile(r"[0-9]{1,18}(\.0*)?")
_MOST_USD = 10**9
_A_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """What a vendor says it charged: for one request, or for all of a day and model. ``None`` is not said."""

    number: int
    """Line of the file, or number of the result in a JSON export, from 1."""
    day: date
    """UTC."""
    model: str | None
    """As the vendor spells it; ``None`` is every model."""
    attempt_id: str | None = None
    """The ``Idempotency-Key`` the request came with: the ledger's ``attempt_id``."""
    vendor_request_id: str | None = None
    requests: int | None = None
    input_tokens: int | None = None
    """All of them, those read from and written to the vendor's cache included."""
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    cost: Decimal | None = None
    """Nano-dollars, exact: an amount finer than one is kept as it is."""

    @property
    def cost_nano(self) -> int:
        """Whole nano-dollars, rounded up as the ledger rounds a request's cost."""
        return 0 if self.cost is None else int(self.cost.to_integral_value(rounding=ROUND_CEILING))


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file something is read. Messages name the place and what was expected, never the value."""

    file: str
    where: str

    def wrong(self, expected: str) -> NoReturn:
        raise SourceError(f"{self.file}:{self.where}: {expected}; nothing was changed")

    def count(self, name: str, value: object) -> int | None:
        """A number of tokens or requests; ``None`` for an empty field. Some exports write ``10.0``."""
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not _COUNT.fullmatch(str(value)):
            self.wrong(f"{name}: expected a whole number, 0 or more")
        return int(Decimal(str(value)))

    def usd(self, name: str, value: object) -> Decimal:
        """An amount in USD, in nano-dollars."""
        return self._amount(name, value, 9)

    def cents(self, name: str, value: object) -> Decimal:
        """An amount in cents, in nano-dollars."""
        return self._amount(name, value, 7)

    def _amount(self, name: str, value: object, shift: int) -> Decimal:
        try:
            text = str(value)
            amount = Decimal(text) if _AMOUNT.fullmatch(text) else Decimal("NaN")
        except InvalidOperation:  # pragma: no cover - the pattern lets only numbers through
            amount = Decimal("NaN")
        if not amount.is_finite() or amount >= _MOST_USD:
            self.wrong(f"{name}: expected an amount as a decimal number, 0 or more, such as 0.000123")
        return _EXACT.scaleb(amount, shift)

    def text(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            self.wrong(f"{name}: expected a text")
        return value.strip()

    def currency(self, name: str, value: object) -> None:
        if not isinstance(value, str) or value.upper() != "USD":
            self.wrong(f"{name}: expected USD; the ledger knows no other currency")

    def moment(self, name: str, value: object) -> datetime:
        """A time in ISO 8601 or RFC 3339, or Unix seconds; without a zone it is UTC. Returns UTC."""
        try:
            if isinstance(value, int) or re.fullmatch(r"[0-9]{1,12}(\.0*)?", str(value)):
                return datetime.fromtimestamp(int(Decimal(str(value))), UTC)
            read = datetime.fromisoformat(str(value))
            return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)
        except (ValueError, OverflowError, OSError):
            self.wrong(f"{name}: expected a time such as 2025-01-31T12:00:00Z")

    def day(self, name: str, value: object) -> date:
        try:
            return date.fromisoformat(str(value))
        except ValueError:
            self.wrong(f"{name}: expected a day such as 2025-01-31")

    def bucket_day(self, start: tuple[str, object], end: tuple[str, object]) -> date:
        """The UTC day of a time bucket, which must not be wider."""
        first, last = self.moment(*start), self.moment(*end)
        if not first < last <= first.replace(hour=0, minute=0, second=0, microsecond=0) + _A_DAY:
            self.wrong(f"{start[0]}, {end[0]}: expected a bucket within one UTC day; export with a bucket width of 1d")
        return first.date()

    def mapping(self, name: str, value: object) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self.wrong(f"{name}: expected an object")
        return value

    def listed(self, name: str, value: object) -> list[Any]:
        if not isinstance(value, list):
            self.wrong(f"{name}: expected a list")
        return value


def added(*counts: int | None) -> int | None:
    """The sum of what is said; ``None`` if nothing is."""
    said = [count for count in counts if count is not None]
    return sum(said) if said else None


IDS = ("attempt_id", "idempotency_key", "vendor_request_id")
_MOST_ID = 100


def is_plain(columns: Collection[str]) -> bool:
    return {"model", "cost_usd"} <= set(columns) and bool({"at", "day"} & set(columns))


def has_ids(columns: Collection[str]) -> bool:
    return bool(set(IDS) & set(columns))


def line(place: Place, number: int, row: Mapping[str, str]) -> InvoiceLine:
    """Raises ``SourceError`` for a field that cannot be read."""
    by_request = has_ids(row)
    requests = place.count("requests", row.get("requests"))
    if by_request and requests not in (None, 1):
        place.wrong("requests: a line with an id is one request; expected 1 or nothing")
    return InvoiceLine(
        number=number,
        day=place.moment("at", row["at"]).date() if row.get("at") else place.day("day", row.get("day")),
        model=place.text("model", row["model"]),
        attempt_id=_id(place, "attempt_id", row.get("attempt_id") or row.get("idempotency_key")),
        vendor_request_id=_id(place, "vendor_request_id", row.get("vendor_request_id")),
        requests=1 if by_request else requests,
        input_tokens=place.count("input_tokens", row.get("input_tokens")),
        output_tokens=place.count("output_tokens", row.get("output_tokens")),
        cached_input_tokens=place.count("cached_input_tokens", row.get("cached_input_tokens")),
        cache_write_tokens=place.count("cache_write_tokens", row.get("cache_write_tokens")),
        cost=place.usd("cost_usd", row["cost_usd"]),
    )


def _id(place: Place, name: str, value: str | None) -> str | None:
    text = (value or "").strip()
    if len(text) > _MOST_ID or not text.isprintable():
        place.wrong(f"{name}: expected at most {_MOST_ID} printable characters")
    return text or None
