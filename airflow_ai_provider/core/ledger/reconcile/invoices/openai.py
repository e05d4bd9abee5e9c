"""OpenAI's exports: sums by day and, where grouped so, by model or line item. They name no request.

Usage: ``GET /v1/organization/usage/completions`` and ``…/embeddings``; ``input_tokens`` includes cached ones.
Costs: ``GET /v1/organization/costs``, amounts in USD; grouped by line item, one is called ``<model>, <kind>``.
(https://platform.openai.com/docs/api-reference/usage)

The usage dashboard's Export gives the same as CSV (https://help.openai.com/en/articles/8554956), with the bucket's
times in each row; days without usage are rows without figures.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from airflow_ai_provider.core.ledger.reconcile.invoices.line import Format, InvoiceLine, Place

_USAGE = ("organization.usage.completions.result", "organization.usage.embeddings.result")
_COSTS = "organization.costs.result"


def format_of_columns(columns: Collection[str]) -> Format | None:
    """By the columns of a CSV export."""
    if {"start_time", "end_time", "amount_value"} <= set(columns):
        return "openai-costs"
    if {"start_time", "end_time", "num_model_requests"} <= set(columns):
        return "openai-usage"
    return None


def format_of_result(result: Mapping[str, Any]) -> Format | None:
    """By one result of a JSON export."""
    kind = str(result.get("object", ""))
    if kind == _COSTS:
        return "openai-costs"
    return "openai-usage" if kind.startswith("organization.usage.") else None


def usage(place: Place, number: int, bucket: Mapping[str, Any], result: Mapping[str, Any]) -> InvoiceLine:
    if result.get("object") not in _USAGE:
        place.wrong("object: expected the usage of completions or embeddings; other kinds have no tokens to compare")
    if result.get("num_model_requests") is None:
        place.wrong("num_model_requests: expected a whole number")
    return _usage_line(place, number, bucket, result)


def usage_row(place: Place, number: int, row: Mapping[str, str]) -> InvoiceLine | None:
    """One row of the usage as CSV."""
    return _usage_line(place, number, row, row) if row["num_model_requests"] else None


def costs(place: Place, number: int, bucket: Mapping[str, Any], result: Mapping[str, Any]) -> InvoiceLine | None:
    if result.get("object") != _COSTS:
        place.wrong(f"object: expected {_COSTS}")
    return _costs_line(place, number, bucket, result)


def _usage_line(place: Place, number: int, bucket: Mapping[str, Any], result: Mapping[str, Any]) -> InvoiceLine:
    return InvoiceLine(
        number=number,
        day=_day(place, bucket),
        model=_optional(result.get("model")),
        requests=place.count("num_model_requests", result["num_model_requests"]),
        input_tokens=place.count("input_tokens", result.get("input_tokens")),
        output_tokens=place.count("output_tokens", result.get("output_tokens")),
        cached_input_tokens=place.count("input_cached_tokens", result.get("input_cached_tokens")),
    )


def _costs_line(place: Place, number: int, bucket: Mapping[str, Any], result: Mapping[str, Any]) -> InvoiceLine | None:
    amount = result.get("amount")
    if amount is None:
        return None
    amount = place.mapping("amount", amount)
    place.currency("amount.currency", amount.get("currency"))
    cost = place.usd("amount.value", amount.get("value"))
    return InvoiceLine(number=number, day=_day(place, bucket), model=_item(result.get("line_item")), cost=cost)


def costs_row(place: Place, number: int, row: Mapping[str, str]) -> InvoiceLine | None:
    """One row of the costs as CSV: the amount is flat there."""
    if not row["amount_value"]:
        return None
    amount = {"value": row["amount_value"], "currency": row.get("amount_currency")}
    return _costs_line(place, number, row, {"amount": amount, "line_item": row.get("line_item")})


def _day(place: Place, bucket: Mapping[str, Any]) -> Any:
    return place.bucket_day(("start_time", bucket.get("start_time")), ("end_time", bucket.get("end_time")))


def _item(name: object) -> str | None:
    """``gpt-4o-mini`` of ``gpt-4o-mini, input``."""
    return _optional(str(name or "").partition(",")[0])


def _optional(name: object) -> str | None:
    return str(name or "").strip() or None
