"""When to try again, as a decision on values."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.errors import VendorPermanentError, VendorTransientError
from airflow_ai_provider.gateway.retry import Again, decide
from airflow_ai_provider.policy import Retry

RETRY = Retry(attempts=5, wait=4, max_wait=20)


def transient(retry_after: float | None = None, *, billed: bool = False) -> VendorTransientError:
    return VendorTransientError("x", kind="server_error", billed=billed, retry_after=retry_after)


@pytest.mark.parametrize("attempt", [1, 2, 5])
def test_a_permanent_error_is_given_up_at_once(attempt: int) -> None:
    error = VendorPermanentError("x", kind="bad_request")
    assert decide(error, attempt=attempt, retry=RETRY, rng=random.Random(0)) == "give up"


def test_the_last_attempt_falls_back() -> None:
    assert isinstance(decide(transient(), attempt=4, retry=RETRY, rng=random.Random(0)), Again)
    assert decide(transient(), attempt=5, retry=RETRY, rng=random.Random(0)) == "fall back"
    assert decide(transient(retry_after=1), attempt=1, retry=Retry(attempts=1), rng=random.Random(0)) == "fall back"


@given(st.integers(1, 4), st.integers(0, 2**32))
def test_waits_double_up_to_their_limit_and_are_spread_over_the_upper_half(attempt: int, seed: int) -> None:
    decision = decide(transient(), attempt=attempt, retry=RETRY, rng=random.Random(seed))
    assert isinstance(decision, Again)
    ceiling = {1: 4, 2: 8, 3: 16, 4: 20}[attempt]
    assert ceiling / 2 <= decision.seconds <= ceiling


def test_waits_differ_from_row_to_row() -> None:
    rng = random.Random(1)
    waits = [decide(transient(), attempt=1, retry=RETRY, rng=rng) for _ in range(50)]
    assert len(set(waits)) == 50


@given(st.floats(0, 3600), st.integers(0, 2**32))
def test_the_vendors_own_wait_is_never_undercut(retry_after: float, seed: int) -> None:
    decision = decide(transient(retry_after), attempt=1, retry=RETRY, rng=random.Random(seed))
    assert isinstance(decision, Again)
    assert decision.seconds >= retry_after


def test_what_may_have_been_billed_is_tried_again_all_the_same() -> None:
    assert isinstance(decide(transient(billed=True), attempt=1, retry=RETRY, rng=random.Random(0)), Again)


@given(st.integers(1, 4), st.floats(0, 60), st.integers(0, 2**32))
def test_no_wait_ends_after_the_deadline(attempt: int, left: float, seed: int) -> None:
    decision = decide(transient(), attempt=attempt, retry=RETRY, rng=random.Random(seed), seconds_left=left)
    assert decision == "fall back" or (isinstance(decision, Again) and decision.seconds < left)
    patient = decide(transient(), attempt=attempt, retry=RETRY, rng=random.Random(seed))
    assert isinstance(patient, Again)
    assert (decision == "fall back") == (patient.seconds >= left)


def test_a_vendor_that_wants_to_be_left_alone_until_after_the_deadline_is() -> None:
    error = transient(retry_after=30)
    assert decide(error, attempt=1, retry=RETRY, rng=random.Random(0), seconds_left=29) == "fall back"


def test_without_room_in_the_retry_budget_there_is_no_retry() -> None:
    decision = decide(transient(), attempt=1, retry=RETRY, rng=random.Random(0), may_retry=lambda: False)
    assert decision == "fall back"


def test_the_budget_is_asked_for_real_retries_only() -> None:
    asked: list[str] = []

    def may_retry(why: str) -> bool:
        asked.append(why)
        return True

    rng = random.Random(0)
    for why, error, attempt, left in (
        ("permanent", VendorPermanentError("x", kind="bad_request"), 1, None),
        ("last attempt", transient(), 5, None),
        ("too late", transient(), 1, 0.1),
        ("rate limited", VendorTransientError("x", kind="rate_limited", http_status=429), 1, None),
        ("a retry", transient(), 1, None),
    ):
        decide(
            error, attempt=attempt, retry=RETRY, rng=rng, seconds_left=left, may_retry=lambda why=why: may_retry(why)
        )
    assert asked == ["a retry"]
