"""The plain CSV: one line per request, for any vendor, proxy or log that can name its requests.

``attempt_id`` (or ``idempotency_key``), ``vendor_request_id``, ``model``, ``at`` or ``day``, ``cost_usd``,
``input_tokens``, ``output_tokens``, ``cached_input_tokens``, ``cache_write_tokens``, ``requests``. Required are
``model``, ``cost_usd`` and one of ``at`` and ``day``; without a column of ids a line is a sum of a day and model.
Other columns are passed over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from airflow_ai_provider.ledger.invoices.line import InvoiceLine, Place

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
