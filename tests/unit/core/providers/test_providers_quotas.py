"""Quota headers: read as they are documented, and never a reason to fail."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.providers.base import RateLimits
from airflow_ai_provider.core.providers.quotas import count, exhausted_until, read_limits, retry_after, until

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("120ms", 0.12),
        ("2m59.56s", 179.56),
        ("1h2m3s", 3723),
        ("1d", 86400),
        ("0s", 0),
        ("17", 17),
        ("0.25", 0.25),
        ("2026-03-01T12:00:30Z", 30),
        ("2026-03-01T14:00:30+02:00", 30),
        ("2026-03-01T12:00:30", 30),
        ("2026-03-01T11:00:00Z", 0),
        ("9999-01-01T00:00:00Z", 31 * 86400),
        ("1e9", None),
        ("nan", None),
        ("soon", None),
        ("-1s", None),
        ("", None),
        (None, None),
    ],
)
def test_when_a_quota_is_full_again(text: str | None, seconds: float | None) -> None:
    assert until(text, NOW) == (None if seconds is None else pytest.approx(seconds))


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=20)))
def test_a_duration_reads_as_what_it_says(length: timedelta) -> None:
    hours, rest = divmod(length // timedelta(milliseconds=1), 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    seconds, milliseconds = divmod(rest, 1000)
    text = f"{hours}h{minutes}m{seconds}s{milliseconds}ms"
    assert until(text, NOW) == pytest.approx(length.total_seconds(), abs=0.001)
    assert until((NOW + length).isoformat(), NOW) == pytest.approx(length.total_seconds(), abs=0.001)


IETF = {"ratelimit-policy": '"default";q=100;w=60'}
AT = 1772366400
"""``NOW`` as a Unix time."""


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        ({**IETF, "ratelimit": '"default";r=0;t=30'}, RateLimits(100, 0, 30.0, at_once=True)),
        ({"ratelimit": "default;r=50;t=30"}, RateLimits(None, 50, 30.0, at_once=True)),
        ({"ratelimit": '"minute";r=0;t=12, "day";r=100;t=86400'}, RateLimits(None, 0, 12.0, at_once=True)),
        (
            {"ratelimit": '"tpm";r=0;t=3', "ratelimit-policy": '"tpm";q=9;qu="tokens"'},
            RateLimits(tokens=9, tokens_remaining=0, tokens_reset=3.0, at_once=True),
        ),
        ({"ratelimit": "limit=100, remaining=0, reset=30"}, RateLimits(100, 0, 30.0, at_once=True)),
        (
            {"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "1", "ratelimit-reset": "6"},
            RateLimits(100, 1, 6.0, at_once=True),
        ),
        (
            {"x-ratelimit-limit": "10", "x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{AT + 6}000"},
            RateLimits(10, 0, 6.0, at_once=True),
        ),
        (
            {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": f"{AT + 6}"},
            RateLimits(None, 0, 6.0),
        ),
        (
            {
                "anthropic-ratelimit-tokens-remaining": "900",
                "anthropic-ratelimit-input-tokens-limit": "1000",
                "anthropic-ratelimit-input-tokens-remaining": "20",
                "anthropic-ratelimit-input-tokens-reset": "2026-03-01T12:00:09Z",
            },
            RateLimits(tokens=1000, tokens_remaining=20, tokens_reset=9.0),
        ),
        (
            {"ratelimitbysize-limit": "500", "ratelimitbysize-remaining": "499", "ratelimitbysize-reset": "28"},
            RateLimits(tokens=500, tokens_remaining=499, tokens_reset=28.0, at_once=True),
        ),
        ({"x-ratelimit-remaining-req-minute": "59"}, RateLimits(None, 59, at_once=True)),
        ({"x-ratelimit-limit": "10", "x-ratelimit-reset": "5"}, None),
        ({"x-ratelimit-remaining": "plenty"}, None),
        ({"ratelimit": "abnormal"}, None),
        ({"ratelimit": '"' * 2000}, None),
    ],
)
def test_quotas_by_the_headers_of_each_vendor(headers: dict[str, str], limits: RateLimits | None) -> None:
    assert read_limits(headers.get, NOW) == limits


def test_moments_are_on_the_vendors_clock() -> None:
    """Its clock is four seconds ahead of ours: what it calls six seconds away is that by its own date."""
    headers = {"date": "Sun, 01 Mar 2026 12:00:04 GMT", "x-ratelimit-remaining": "0", "x-ratelimit-reset": str(AT + 10)}
    limits = read_limits(headers.get, NOW)
    assert limits
    assert limits.requests_reset == 6
    assert retry_after({**headers, "retry-after": "Sun, 01 Mar 2026 12:00:09 GMT"}.get, NOW) == 5
    years_off = {**headers, "date": "Thu, 01 Jan 1970 00:00:00 GMT"}
    assert exhausted_until(years_off.get, NOW) == 10


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "6"}, 6),
        ({"retry-after": "86400"}, 600),
        ({"retry-after": "Sun, 01 Mar 2026 12:00:30 GMT"}, 30),
        ({"retry-after": "Sunday, 01-Mar-26 12:00:30 GMT"}, 30),
        ({"retry-after": "Sun Mar  1 12:00:30 2026"}, 30),
        ({"retry-after": str(AT + 7)}, 7),
        ({"retry-after": "5, 10"}, 10),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"x-ms-retry-after-ms": "00:00:00.033"}, 0.033),
        ({"retry-after": ""}, None),
    ],
)
def test_when_to_come_back(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers.get, NOW) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6s"}, 6),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "7.66s"}, 7.66),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "7.66s"}, None),
        ({"x-ratelimit-reset": str(AT + 8)}, 8),
        ({"ratelimit": '"day";r=0;t=86400'}, 600),
        ({}, None),
    ],
)
def test_when_a_used_up_quota_is_back(headers: dict[str, str], seconds: float | None) -> None:
    assert exhausted_until(headers.get, NOW) == seconds


NAMES = [
    *("ratelimit", "ratelimit-policy", "date", "retry-after", "retry-after-ms", "x-ms-retry-after-ms"),
    *(f"{start}ratelimit-{figure}" for start in ("", "x-") for figure in ("limit", "remaining", "reset")),
    *("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", "anthropic-ratelimit-tokens-reset"),
]
FRAGMENTS = st.lists(
    st.sampled_from(
        ['"', ";", "=", ",", "r", "t", "q", "0", "17", "1e9", "nan", "-", "6m", "s", "PT", " ", ":", "٣", "Z"]
    ),
    max_size=12,
).map("".join)


@given(st.dictionaries(st.sampled_from(NAMES), st.one_of(st.text(max_size=60), FRAGMENTS)))
def test_no_header_at_all_is_a_reason_to_fail_or_to_wait_without_end(headers: dict[str, str]) -> None:
    for seconds in (retry_after(headers.get, NOW), exhausted_until(headers.get, NOW)):
        assert seconds is None or 0 <= seconds <= 600
    limits = read_limits(headers.get, NOW)
    for reset in (limits.requests_reset, limits.tokens_reset) if limits else ():
        assert reset is None or 0 <= reset <= 31 * 86400


@given(st.dictionaries(st.sampled_from(["limit", "remaining", "reset"]), st.text(max_size=80)), st.booleans())
def test_no_header_is_a_reason_to_fail(said: dict[str, str], tokens: bool) -> None:
    of = "tokens" if tokens else "requests"
    limits = read_limits({f"x-ratelimit-{figure}-{of}": text for figure, text in said.items()}.get, NOW)
    if limits:
        assert limits.requests_reset is None or 0 <= limits.requests_reset <= 31 * 86400
        assert limits.tokens_remaining is None or limits.tokens_remaining >= 0


def test_anthropics_go_before_those_that_litellm_makes_of_them() -> None:
    both = {"x-ratelimit-remaining-requests": "5", "anthropic-ratelimit-requests-remaining": "9"}
    assert read_limits(both.get, NOW) == RateLimits(requests_remaining=9)
    assert read_limits({}.get, NOW) is None


@pytest.mark.parametrize(("text", "number"), [("10", 10), ("٣", None), ("-1", None), ("1.5", None), ("9" * 20, None)])
def test_a_count_is_a_plain_number(text: str, number: int | None) -> None:
    assert count(text) == number
