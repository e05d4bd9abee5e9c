"""Figures as people read them."""

from __future__ import annotations

from decimal import Decimal

from airflow_ai_provider.ledger.money import usd_from_nano

_FINEST = 9


def usd(nano: int, *, digits: int = 3) -> str:
    """An amount in USD: cents from a dollar on, ``digits`` figures that count below it."""
    amount = usd_from_nano(nano)
    if amount == 0:
        return "0"
    if abs(amount) >= 1:
        return f"{amount:,.2f}"
    places = min(_FINEST, digits - 1 - amount.adjusted())
    return f"{amount.quantize(Decimal(1).scaleb(-places)):f}"


def count(number: int) -> str:
    return f"{number:,}"


def percent(part: int, whole: int) -> str:
    """``12 %``; empty where there is no whole."""
    return f"{Decimal(100 * part) / whole:.0f} %" if whole else ""


def clipped(text: str, most: int) -> str:
    """The text in one line of at most ``most`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
