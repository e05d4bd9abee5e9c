"""Delays as vendors state them, in headers, fields and phrases: read alike, and never a reason to fail."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.providers.quotas import LONGEST_SECONDS, body_delay, seconds_until

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DELAYS = st.integers(0, 20 * 86_400)
"""Whole seconds."""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360),
        ("820ms", 0.82),
        ("500µs", 0.0005),
        ("1h2m", 3720),
        ("12 seconds", 12),
        ("1 minute, 30 seconds", 90),
        ("1 hour and 5 minutes", 3900),
        ("PT6S", 6),
        ("pt1m", 60),
        ("P1DT2H", 93_600),
        ("PT", None),
        ("P", None),
        ("00:00:06.5", 6.5),
        ("2026-03-01T12:00:30.123456789Z", 30.123456),
        ("Sun Mar 01 2026 12:00:30 GMT+0000 (Coordinated Universal Time)", 30),
        ('"6s"', 6),
        (" 6 ", 6),
        (6, 6),
        (6.5, 6.5),
        (10**400, LONGEST_SECONDS),
        (math.nan, None),
        (math.inf, LONGEST_SECONDS),
        (True, None),
        (None, None),
        ([6], None),
        ("6 bananas", None),
        ("1_000", None),
        ("٦", None),
        ("9" * 30, LONGEST_SECONDS),
        ("9" * 200, None),
        ("-5", 0),
        ("0", 0),
    ],
)
def test_forms_of_a_delay(text: object, seconds: float | None) -> None:
    assert seconds_until(text, NOW) == (None if seconds is None else pytest.approx(seconds))


@given(DELAYS, st.sampled_from([1, 1000, 10**6, 10**9]))
def test_a_unix_time_is_a_moment_in_whatever_unit(delay: int, unit: int) -> None:
    moment = int(NOW.timestamp()) + delay
    assert seconds_until(str(moment * unit), NOW) == pytest.approx(delay, abs=0.001)
    assert seconds_until(moment * unit, NOW) == pytest.approx(delay, abs=0.001)


@given(DELAYS)
def test_every_form_of_a_date_is_the_same_moment(delay: int) -> None:
    moment = NOW + timedelta(seconds=delay)
    forms = [
        format_datetime(moment, usegmt=True),
        moment.strftime("%A, %d-%b-%y %H:%M:%S GMT"),
        moment.strftime("%a %b %e %H:%M:%S %Y"),
        moment.isoformat(),
    ]
    assert [seconds_until(form, NOW) for form in forms] == [delay] * 4


@given(DELAYS)
def test_the_past_is_now(delay: int) -> None:
    moment = NOW - timedelta(seconds=delay)
    for form in (format_datetime(moment, usegmt=True), moment.isoformat(), str(int(moment.timestamp()))):
        assert seconds_until(form, NOW) == 0


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Rate limit reached. Please try again in 6m0s. Visit https://example.com", 360),
        ("Limit 3, Used 3. Please try again in 20ms.", 0.02),
        ("Requests have exceeded the limit. Please retry after 43 seconds.", 43),
        ("Retry after 12 seconds", 12),
        ("You exceeded your quota. Please retry in 34.074824224s.", 34.074824224),
        ("Please wait for 3 minutes and 2 seconds before the next call", 182),
        ("please try your request again in 1h2m3.5s", 3723.5),
        ("The quota resets in 1 hour", 3600),
        ("The engine is overloaded, please try again later", None),
        ("retry in 5 sequences", None),
        ("it took 12 seconds", None),
        ("", None),
    ],
)
def test_phrases(message: str, seconds: float | None) -> None:
    assert body_delay(None, message, NOW) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"}]}, 34),
        ({"details": [{"reason": "x"}, {"retryDelay": {"seconds": "3", "nanos": 500_000_000}}]}, 3.5),
        ({"retry_after": 5}, 5),
        ({"retry_after_ms": 250}, 0.25),
        ({"retryAfter": "2026-03-01T12:00:30Z"}, 30),
        ({"retry_after": "soon", "details": "none"}, None),
        ({"details": [None, 3, {"retryDelay": []}]}, None),
        ([], None),
    ],
)
def test_fields_of_a_body(body: Any, seconds: float | None) -> None:
    assert body_delay(body, "", NOW) == (None if seconds is None else pytest.approx(seconds))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["retry_after", "retry_after_ms", "details", "retryDelay", "seconds"]), inner)
    ),
    max_leaves=12,
)


@given(JSON, st.text(max_size=80), st.sampled_from([1.0, 1e-3]))
def test_nothing_is_a_reason_to_fail_and_every_delay_is_finite(body: Any, text: str, unit: float) -> None:
    for seconds in (seconds_until(body, NOW), seconds_until(text, NOW, unit=unit), body_delay(body, text, NOW)):
        assert seconds is None or 0 <= seconds <= LONGEST_SECONDS
