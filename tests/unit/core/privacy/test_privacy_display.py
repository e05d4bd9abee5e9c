"""What can be shown to people who need not see all of a value."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.privacy.crypto.redaction import generalise, mask, redact
from airflow_ai_provider.errors import PrivacyError


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("Ann", "****"),
        ("", "****"),
        ("1234567", "****"),
        ("12345678", "****78"),
        ("4111 1111 1111 1234", "****1234"),
        ("+1 (---------) -12", "****"),
        ("张伟张伟张伟张伟", "****张伟"),
        (4111111111111234, "****1234"),
        (b"4111111111111234", "****1234"),
        (Decimal("12.5"), "****"),
        (True, "****"),
        (None, None),
        ({"a": ["Ann", ("4111111111111234", None)]}, {"a": ["****", ("****1234", None)]}),
    ],
)
def test_a_display_never_shows_a_short_value(value: Any, shown: Any) -> None:
    """``value[:3] + '***' + value[-3:]`` shows ``Ann`` whole, twice."""
    assert mask(value) == shown


@given(st.text(max_size=40))
def test_a_display_shows_at_most_a_quarter(value: str) -> None:
    shown = mask(value).removeprefix("****")
    letters = sum(map(str.isalnum, value))
    assert len(shown) <= min(4, letters // 4, len(value) // 4)
    assert not shown or letters >= 8
    assert "".join(filter(str.isalnum, value)).endswith(shown)


def test_what_is_redacted_says_nothing_but_that_it_is() -> None:
    assert redact("x") == redact(7) == redact({"name": ["x"]}) == "[REDACTED]"
    assert redact(None) is None


@pytest.mark.parametrize(
    ("value", "to", "coarse"),
    [
        (34, 10, "30..39"),
        ("34", 10, "30..39"),
        (-5, 10, "-10..-1"),
        (-10, 10, "-10..-1"),
        (0, 5, "0..4"),
        (34.5, 10, "30..<40"),
        (Decimal("-0.0"), 10, "0..<10"),
        ("34.50", 10, "30..<40"),
        (date(2024, 1, 31), "month", "2024-01"),
        (datetime(2024, 1, 31, 8), "year", "2024"),
        ("2024-01-31", "month", "2024-01"),
        ("2024/01/31 08:30", "year", "2024"),
        ("SW1A 1AA", "prefix:3", "SW1*"),
        ("100084", "prefix:5", "100*"),
        ("A", "prefix:1", "*"),
        ("203.0.113.45", "network", "203.0.113.0/24"),
        ("2001:db8:1:2::3", "network", "2001:db8:1::/48"),
        ("::ffff:203.0.113.45", "network", "203.0.113.0/24"),
        ([34, {"age": 51}, None], 10, ["30..39", {"age": "50..59"}, None]),
    ],
)
def test_a_coarse_value_is_what_many_have_in_common(value: Any, to: int | str, coarse: Any) -> None:
    assert generalise(value, to) == coarse


@given(st.integers(-(10**15), 10**15), st.integers(1, 10**6))
def test_a_number_lies_in_its_range(value: int, width: int) -> None:
    low, high = map(int, generalise(value, width).split(".."))
    assert low <= value <= high
    assert high - low == width - 1
    assert low % width == 0


@pytest.mark.parametrize(
    ("value", "to"),
    [
        ("secret", 10), (float("nan"), 10), ("inf", 10), ("1e400", 10), (10**40, 10), (True, 10), (b"\xff", 10),
        ("secret", "month"), ("2024-02-30", "year"), ("secret", "network"), ("10.0.0.0/8", "network"),
        ("secret", "decade"), ("secret", 0), ("secret", "prefix:0"), (3, True),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_without_being_quoted(value: Any, to: Any) -> None:
    with pytest.raises(PrivacyError) as caught:
        generalise(value, to)
    assert "secret" not in str(caught.value)
