"""Anthropic's exports: sums by day and, where grouped so, by model. They name no request and count none.

Usage: ``GET /v1/organizations/usage_report/messages``; tokens read from and written to the cache stand beside
``uncached_input_tokens``. Costs: ``GET /v1/organizations/cost_report``; ``amount`` is a decimal string in cents
(``"123.45"`` is 1.2345 USD), without the Priority Tier; grouped by description it has a model.
(https://platform.claude.com/docs/en/api/admin-api/usage-cost/get-messages-usage-report and …/get-cost-report)

The Console's Usage and Cost pages export CSV with the columns ``usage_date_utc, model_version, …,
usage_input_tokens_no_cache, usage_input_tokens_cache_write_5m, …_1h, usage_input_tokens_cache_read,
usage_output_tokens``, and ``usage_date_utc, model, …, token_type, cost_usd`` with amounts in USD.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from airflow_ai_provider.core.ledger.reconcile.invoices.line import Format, InvoiceLine, Place, added

_INPUT = "uncached_input_tokens"


def format_of_columns(columns: Collection[str]) -> Format | None:
    """By the columns of a CSV export."""
    if {"usage_date_utc", "model_version", "usage_input_tokens_no_cache", "usage_output_tokens"} <= set(columns):
        return "anthropic-usage"
    return "anthropic-costs" if {"usage_date_utc", "model", "cost_usd"} <= set(columns) else None


def format_of_result(result: Mapping[str, Any]) -> Format | None:
    """By one result of a JSON export."""
    if _INPUT in result:
        return "anthropic-usage"
    return "anthropic-costs" if "amount" in result and "currency" in result else None


def usage(place: Place, number: int, bucket: Mapping[str, Any], result: Mapping[str, Any]) -> InvoiceLine:
    if _INPUT not in result:
        place.wrong(f"{_INPUT}: expected a messages usage report")
    writes = place.mapping("cache_creation", result.get("cache_creation") or {})
    return _usage_line(
        place,
        number,
        day=_day(place, bucket),
        model=result.get("model"),
        fresh=(_INPUT, result[_INPUT]),
        cached=("cache_read_input_tokens", result.get("cache_read_input_tokens")),
        written=[(f"cache_creation.{name}", writes[name]) for name in sorted(writes)],
        output=("output_tokens", result.get("output_tokens")),
    )


def usage_row(place: Place, number: int, row: Mapping[str, str]) -> InvoiceLine:
    """One row of the usage as CSV."""
    writes = sorted(name for name in row if name.startswith("usage_input_tokens_cache_write"))
    read = "usage_input_tokens_cache_read"
    return _usage_line(
        place,
        number,
        day=place.day("usage_date_utc", row["usage_date_utc"]),
        model=row["model_version"],
        fresh=("usage_input_tokens_no_cache", row["usage_input_tokens_no_cache"]),
        cached=(read, row.get(read)),
        written=[(name, row[name]) for name in writes],
        output=("usage_output_tokens", row["usage_output_tokens"]),
    )


def costs(place: Place, number: int, bucket: Mapping[str, Any], result: Mapping[str, Any]) -> InvoiceLine:
    """A line without a model that is for no tokens, such as web searches, goes by its kind."""
    place.currency("currency", result.get("currency"))
    kind = result.get("cost_type")
    name = result.get("model") or (kind if kind != "tokens" else None)
    cost = place.cents("amount", result.get("amount"))
    return InvoiceLine(number=number, day=_day(place, bucket), model=_optional(name), cost=cost)


def costs_row(place: Place, number: int, row: Mapping[str, str]) -> InvoiceLine:
    """One row of the costs as CSV; amounts are in USD there."""
    return InvoiceLine(
        number=number,
        day=place.day("usage_date_utc", row["usage_date_utc"]),
        model=_optional(row["model"] or row.get("cost_type")),
        cost=place.usd("cost_usd", row["cost_usd"]),
    )


def _usage_line(
    place: Place,
    number: int,
    *,
    day: Any,
    model: object,
    fresh: tuple[str, object],
    cached: tuple[str, object],
    written: list[tuple[str, object]],
    output: tuple[str, object],
) -> InvoiceLine:
    read, writes = place.count(*cached), added(*(place.count(*count) for count in written))
    return InvoiceLine(
        number=number,
        day=day,
        model=_optional(model),
        input_tokens=added(place.count(*fresh), read, writes),
        output_tokens=place.count(*output),
        cached_input_tokens=read,
        cache_write_tokens=writes,
    )


def _day(place: Place, bucket: Mapping[str, Any]) -> Any:
    return place.bucket_day(("starting_at", bucket.get("starting_at")), ("ending_at", bucket.get("ending_at")))


def _optional(name: object) -> str | None:
    return str(name or "").strip() or None
