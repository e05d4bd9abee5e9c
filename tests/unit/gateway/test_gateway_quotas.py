"""Quota headers: read as they are documented, and never a reason to fail."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.gateway.providers.base import RateLimits
from airflow_ai_provider.gateway.providers.quotas import count, read_limits, until

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
