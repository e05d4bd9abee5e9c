"""Field functions without a key: less of a value, for people who need not see all of it. Nothing here can be undone.

``mask`` shows the end of a value: at most a quarter of its letters and digits, and nothing of a value with fewer than
eight. Signs between them count as nothing, or ``+1 (···) -12`` would be shown half.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from itertools import accumulate
from typing import Any

from airflow_ai_provider.core.errors import PrivacyError

REDACTED = "[REDACTED]"
_HIDDEN = "****"
"""Says nothing of the length of what it hides."""
_SHORTEST = 8
_MOST_SHOWN = 4
_INTEGER = re.compile(r"[+-]?\d{1,30}")
_DATE = re.compile(r"(\d{4})([-/.]?)(\d{2})\2(\d{2})(?:[T ].*)?")


def over_leaves(change: Callable[[Any], Any], value: Any) -> Any:
    """``change`` on every text, number and other leaf of a value. Null and names of members stay as they are."""
    match value:
        case None:
            return None
        case Mapping():
            return {key: over_leaves(change, part) for key, part in value.items()}
        case list():
            return [over_leaves(change, part) for part in value]
        case tuple():
            return tuple(over_leaves(change, part) for part in value)
        case _:
            return change(value)


def text_of(value: Any) -> str:
    """A leaf as text. Bytes that are no UTF-8 are shown as the replacement character."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def mask(value: Any) -> Any:
    """``****1111`` of a card number, ``****`` of a short value; inside lists and mappings, every leaf."""
    return over_leaves(lambda leaf: _masked(text_of(leaf)), value)


def redact(value: Any) -> Any:
    """``[REDACTED]`` for anything but null."""
    return None if value is None else REDACTED


def generalise(value: Any, to: int | str) -> Any:
    """A coarser value: what many have in common instead of what one has.

    ``to`` is the width of a range for numbers (``10``: 34 becomes ``30..39``), ``month`` or ``year`` for dates
    (``2024-01``), ``prefix:N`` for postcodes and the like (``SW1*``), or ``network`` for IP addresses (/24 and /48).
    Raises ``PrivacyError``, without the value, for one that does not fit ``to``.
    """
    return over_leaves(lambda leaf: _generalised(leaf, to), value)


def _masked(text: str) -> str:
    counted = list(accumulate(map(str.isalnum, text), initial=0))
    total = counted[-1]
    shown = min(_MOST_SHOWN, total // 4) if total >= _SHORTEST else 0
    if not shown:
        return _HIDDEN
    start = next(index for index, count in enumerate(counted) if count > total - shown) - 1
    return _HIDDEN + "".join(filter(str.isalnum, text[start:]))


def _generalised(value: Any, to: int | str) -> str:
    match to:
        case bool():
            pass
        case int() if to > 0:
            return _range(value, to)
        case "month" | "year":
            year, month = _year_and_month(value)
            return f"{year}-{month}" if to == "month" else year
        case "network":
            return _network(text_of(value))
        case str() if (found := re.fullmatch(r"prefix:([1-9]\d?)", to)) is not None:
            return _prefix(text_of(value).strip(), int(found[1]))
    raise PrivacyError(f"generalise to {to!r}: expected a whole number, month, year, prefix:N or network")


def _range(value: Any, width: int) -> str:
    number = _number(value)
    low = number // width * width + 0  # the sum has no negative zero
    if number < low:
        low -= width  # Decimal divides towards zero
    if number == number.to_integral_value() and not isinstance(value, float | Decimal):
        return f"{low:f}..{low + width - 1:f}"
    return f"{low:f}..<{low + width:f}"


def _number(value: Any) -> Decimal:
    text = text_of(value).strip()
    if not isinstance(value, bool) and (isinstance(value, int | float | Decimal | str | bytes)):
        try:
            number = Decimal(int(text)) if _INTEGER.fullmatch(text) else Decimal(text)
        except (InvalidOperation, ValueError):
            number = Decimal("NaN")
        if number.is_finite() and number.adjusted() < 20:
            return number
    raise PrivacyError(f"generalise: expected a number, got {type(value).__name__}")


def _year_and_month(value: Any) -> tuple[str, str]:
    if isinstance(value, date):
        return f"{value.year:04}", f"{value.month:02}"
    found = _DATE.fullmatch(text_of(value).strip())
    if found is None or not _is_date(found[1], found[3], found[4]):
        raise PrivacyError(f"generalise: expected a date such as 2024-01-31, got {type(value).__name__}")
    return found[1], found[3]


def _is_date(year: str, month: str, day: str) -> bool:
    try:
        datetime(int(year), int(month), int(day))
    except ValueError:
        return False
    return True


def _network(text: str) -> str:
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        address = None
    if address is None:
        raise PrivacyError("generalise: expected an IP address")
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return str(ipaddress.ip_network(f"{address}/{24 if address.version == 4 else 48}", strict=False))


def _prefix(text: str, length: int) -> str:
    """At most ``length`` characters, and never more than half of the value."""
    return text[: min(length, len(text) // 2)] + "*"
