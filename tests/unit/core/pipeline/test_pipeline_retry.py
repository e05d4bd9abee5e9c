"""When to try again, as a decision on values."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.pipeline import retry
from airflow_ai_provider.core.pipeline.retry import Again, Decision, Tries
from airflow_ai_provider.core.policy import Deployment, Retry
from airflow_ai_provider.errors import VendorError, VendorPermanentError, VendorTransientError

RETRY = Retry(attempts=5, wait=4, max_wait=20)
PLACE = Deployment(model="openai/a", timeout=10)


def decide(error: VendorError, *, attempt: int, **changes: Any) -> Decision:
    """What follows attempt number ``attempt``, all of which failed alike."""
    tries = Tries()
    for _ in range(attempt):
        tries.count(error)
    plain = {"retry": RETRY, "deployment": PLACE, "rng": random.Random(0), "patience": 60.0, "last": True}
    return retry.decide(error, tries, **{**plain, **changes})


def limited(retry_after: float | None = None) -> VendorTransientError:
    return VendorTransientError("x", kind="rate_limited", http_status=429, retry_after=retry_after)


def timed_out(http_status: int | None = None) -> VendorTransientError:
    return VendorTransientError("x", kind="timeout", http_status=http_status, billed=True)


def transient(retry_after: float | None = None, *, billed: bool = False) -> VendorTransientError:
    return VendorTransientError("x", kind="server_error", billed=billed, retry_after=retry_after)


@pytest.mark.parametrize("attempt", [1, 2, 5])
def test_a_permanent_error_is_given_up_at_once(attempt: int) -> None:
    error = VendorPermanentError("x", kind="bad_request")
    assert decide(error, attempt=attempt) == "give up"


def test_the_last_attempt_falls_back() -> None:
    assert isinstance(decide(transient(), attempt=4), Again)
    assert decide(transient(), attempt=5) == "fall back"
    assert decide(transient(retry_after=1), attempt=1, retry=Retry(attempts=1)) == "fall back"


@given(st.integers(1, 4), st.integers(0, 2**32))
def test_waits_double_up_to_their_limit_and_are_spread_over_the_upper_half(attempt: int, seed: int) -> None:
    decision = decide(transient(), attempt=attempt, rng=random.Random(seed))
    assert isinstance(decision, Again)
    ceiling = {1: 4, 2: 8, 3: 16, 4: 20}[attempt]
    assert ceiling / 2 <= decision.seconds <= ceiling


def test_waits_differ_from_row_to_row() -> None:
    rng = random.Random(1)
    waits = [decide(transient(), attempt=1, rng=rng) for _ in range(50)]
    assert len(set(waits)) == 50


@given(st.floats(0, 3600), st.integers(0, 2**32))
def test_the_vendors_own_wait_is_never_undercut(retry_after: float, seed: int) -> None:
    decision = decide(transient(retry_after), attempt=1, rng=random.Random(seed))
    assert isinstance(decision, Again)
    assert decision.seconds >= retry_after


def test_what_may_have_been_billed_is_tried_again_all_the_same() -> None:
    assert isinstance(decide(transient(billed=True), attempt=1), Again)


@given(st.integers(1, 4), st.floats(0, 60), st.integers(0, 2**32))
def test_no_wait_ends_after_the_deadline(attempt: int, left: float, seed: int) -> None:
    decision = decide(transient(), attempt=attempt, rng=random.Random(seed), seconds_left=left)
    assert decision == "fall back" or (isinstance(decision, Again) and decision.seconds < left)
    patient = decide(transient(), attempt=attempt, rng=random.Random(seed))
    assert isinstance(patient, Again)
    assert (decision == "fall back") == (patient.seconds >= left)


def test_a_vendor_that_wants_to_be_left_alone_until_after_the_deadline_is() -> None:
    error = transient(retry_after=30)
    assert decide(error, attempt=1, seconds_left=29) == "fall back"


def test_without_room_in_the_retry_budget_there_is_no_retry() -> None:
    decision = decide(transient(), attempt=1, may_retry=lambda: False)
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
        ask = partial(may_retry, why)
        decide(error, attempt=attempt, rng=rng, seconds_left=left, may_retry=ask)
    assert asked == ["a retry"]


# 429s


@pytest.mark.parametrize("attempt", [1, 5, 50])
def test_where_no_other_could_answer_429s_are_waited_out_while_there_is_patience(attempt: int) -> None:
    assert isinstance(decide(limited(), attempt=attempt), Again)
    assert decide(limited(), attempt=attempt, patience=0.0) == "later"


def test_where_another_could_answer_a_row_does_not_wait_for_longer_than_its_retries_would() -> None:
    assert isinstance(decide(limited(), attempt=4, last=False), Again)
    assert decide(limited(), attempt=5, last=False) == "later"
    assert isinstance(decide(limited(retry_after=20), attempt=1, last=False), Again)
    assert decide(limited(retry_after=21), attempt=1, last=False) == "later"


def test_a_429_that_may_have_been_charged_is_an_attempt() -> None:
    """As of an answer with status 200 that holds an error, beside figures of what it used."""
    charged = VendorTransientError("x", kind="rate_limited", http_status=429, billed=True)
    assert decide(charged, attempt=5) == "fall back"


def test_429s_are_never_risked_again_at_once() -> None:
    """However short the route's own waits are, and whatever the vendor says."""
    impatient = Retry(attempts=3, wait=0, max_wait=0)
    waits = [decide(limited(retry_after=0), attempt=number, retry=impatient) for number in range(1, 8)]
    seconds = [wait.seconds for wait in waits if isinstance(wait, Again)]
    assert len(seconds) == 7
    assert min(seconds) >= 0.05
    assert all(wait >= 0.5 for wait in seconds[4:])


# Time-outs


def test_a_time_out_is_followed_by_one_longer_one() -> None:
    assert isinstance(decide(timed_out(), attempt=1), Again)
    assert decide(timed_out(), attempt=2) == "fall back"
    tries = Tries()
    assert tries.timeout(PLACE) == 10
    tries.count(timed_out())
    assert tries.timeout(PLACE) == 20
    assert tries.timeout(PLACE.model_copy(update={"timeout_max": 13})) == 13


@pytest.mark.parametrize(("left", "again"), [(16.0, True), (10.0, False), (4.1, False)])
def test_no_time_out_is_followed_by_an_equal_or_shorter_one(left: float, again: bool) -> None:
    """The wait before it is 2 to 4 s; what the deadline then leaves has to be more than 10 s."""
    assert isinstance(decide(timed_out(), attempt=1, seconds_left=left), Again) is again


def test_without_a_longer_time_out_there_is_no_second_one() -> None:
    place = PLACE.model_copy(update={"timeout_max": 10})
    assert decide(timed_out(), attempt=1, deployment=place) == "fall back"
    assert isinstance(decide(timed_out(504), attempt=1, deployment=place), Again)
    assert decide(timed_out(504), attempt=2, deployment=place) == "fall back"


def test_time_outs_among_other_failures_count_as_well() -> None:
    tries = Tries()
    for error in (timed_out(), transient(), limited(), timed_out(408)):
        tries.count(error)
    assert (tries.attempts, tries.limited, tries.timeouts, tries.requests) == (3, 1, 2, 4)
    plain = {"retry": RETRY, "deployment": PLACE, "rng": random.Random(0), "patience": 60.0, "last": True}
    assert retry.decide(timed_out(408), tries, **plain) == "fall back"
    assert isinstance(retry.decide(transient(), tries, **plain), Again)
