"""Answers that wait for a person: one open item a request, closed by an answer or by a decision, and never twice."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, func, insert, select, update
from support.ledger import NOW, TASK, item, period, request, written

from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, open_attempts, recover
from airflow_ai_provider.core.ledger.budgets.holds import take_hold
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.maintenance.upkeep import maintain
from airflow_ai_provider.core.ledger.reviews import (
    DECISIONS,
    ReviewItem,
    answer_reviews,
    any_open,
    decide,
    list_reviews,
    news_of,
    open_of,
    open_reviews,
    require_open,
    review_of,
)
from airflow_ai_provider.core.ledger.schema import llm_open_attempts, llm_requests, review_items
from airflow_ai_provider.errors import LedgerError

T = TypeVar("T")
LATER = NOW + timedelta(minutes=5)


def waiting(name: str = "q1", **changes: Any) -> ReviewItem:
    place = ("row-1", "support", "schema", "total breaks rule 'type'", "s3://lake/answers")
    plain = ReviewItem(uuid.uuid4().hex, name, TASK, *place, "simple", "small", "openai/gpt-4o-mini")
    return replace(plain, **changes)


def opened(ledger: Ledger, *items: ReviewItem, now: datetime = NOW) -> list[ReviewItem]:
    """What a batch opens, as the gateway does it."""
    with ledger.write() as conn:
        news = news_of(conn, items)
        open_reviews(conn, news, now)
    return news


def there(ledger: Ledger, **wanted: Any) -> list[dict[str, Any]]:
    return look(ledger, lambda conn: list_reviews(conn, **{"status": None, **wanted}))


def look(ledger: Ledger, question: Callable[[Connection], T]) -> T:
    with ledger.read() as conn:
        return question(conn)


def ruled(ledger: Ledger, item_id: str, decision: Any = "accepted", by: str = "ada", note: str | None = None) -> None:
    with ledger.write() as conn:
        decide(conn, item_id, decision, by=by, note=note, now=LATER)


def test_an_item_says_what_a_person_needs(ledger: Ledger) -> None:
    opened(ledger, waiting())
    (found,) = there(ledger)
    values = [found[name] for name in ("request_id", "team_id", "dag_id", "run_id", "task_id", "row_key", "route")]
    assert values == ["q1", "support", "dag", "run", "answer", "row-1", "support"]
    assert [found[name] for name in ("tier", "deployment", "model")] == ["simple", "small", "openai/gpt-4o-mini"]
    assert (found["reason_kind"], found["reason"]) == ("schema", "total breaks rule 'type'")
    assert (found["sink"], found["status"], found["decision"]) == ("s3://lake/answers", "open", None)
    assert look(ledger, lambda conn: review_of(conn, found["item_id"])) == found


def test_a_request_has_one_open_item_however_often_it_is_opened(ledger: Ledger) -> None:
    """A commit whose reply was lost runs again; a batch that is walked again finds what is open."""
    news = opened(ledger, waiting(), waiting("q2"))
    with ledger.write() as conn:
        open_reviews(conn, news, NOW)
        open_reviews(conn, [waiting(), waiting()], NOW)
    assert opened(ledger, waiting(), waiting("q2"), now=LATER) == []
    assert sorted(row["item_id"] for row in there(ledger)) == sorted(one.item_id for one in news)


def test_an_item_that_was_closed_in_between_is_not_opened_by_a_replay(ledger: Ledger) -> None:
    (news,) = opened(ledger, waiting())
    ruled(ledger, news.item_id)
    with ledger.write() as conn:
        open_reviews(conn, [news], LATER)
    assert [row["status"] for row in there(ledger)] == ["decided"]


def test_an_open_item_says_what_the_last_try_came_to(ledger: Ledger) -> None:
    (first,) = opened(ledger, waiting(reason_kind="unauthorized", reason="no key", tier=None))
    later = waiting(
        task=replace(TASK, try_number=2), deployment="large", reason_kind="content_policy", reason="refused"
    )
    (news,) = opened(ledger, later, now=LATER)
    assert news.item_id == first.item_id
    (found,) = there(ledger)
    assert [found[name] for name in ("try_number", "tier", "deployment", "reason_kind", "reason")] == [
        *(2, "simple", "large", "content_policy", "refused"),
    ]
    assert found["updated_at"] > found["created_at"]


def test_a_later_answer_closes_what_waited_and_nothing_else(ledger: Ledger) -> None:
    one, two, three = opened(ledger, waiting(), waiting("q2"), waiting("q3"))
    ruled(ledger, three.item_id)
    assert look(ledger, lambda conn: open_of(conn, ["q1", "q3", "q4"])) == [(one.item_id, "q1")]
    for _ in range(2):
        with ledger.write() as conn:
            answer_reviews(conn, ["q1", "q3", "q4"], LATER)
    assert {row["request_id"]: row["status"] for row in there(ledger)} == {
        "q1": "answered",
        "q2": "open",
        "q3": "decided",
    }
    assert opened(ledger, waiting()), "the row was answered, then asked anew and refused: that is another matter"
    assert two.item_id in {row["item_id"] for row in there(ledger, status="open")}


@pytest.mark.parametrize(
    ("comes_back", "opens"),
    [
        ({}, False),
        ({"new_answer": True}, True),
        ({"reason": "another place breaks rule 'type'"}, True),
        ({"reason_kind": "grounding"}, True),
    ],
    ids=["the same", "a new answer", "another reason", "another kind"],
)
def test_a_decision_holds_until_something_has_changed(ledger: Ledger, comes_back: dict[str, Any], opens: bool) -> None:
    (first,) = opened(ledger, waiting(new_answer=True))
    ruled(ledger, first.item_id, "rejected")
    assert len(opened(ledger, waiting(**comes_back))) == opens


def test_whether_a_task_has_items_open_is_known_beforehand(ledger: Ledger) -> None:
    (news,) = opened(ledger, waiting())
    other_try, other_task = replace(TASK, try_number=3), replace(TASK, map_index=4)
    assert [look(ledger, lambda conn, task=task: any_open(conn, task)) for task in (TASK, other_try, other_task)] == [
        *(True, True, False),
    ]
    ruled(ledger, news.item_id)
    assert not look(ledger, lambda conn: any_open(conn, TASK))


def test_a_person_decides_once(ledger: Ledger) -> None:
    (news,) = opened(ledger, waiting())
    ruled(ledger, news.item_id, "corrected", note="see ticket 7")
    (found,) = there(ledger, status="decided")
    assert (found["decision"], found["decided_by"], found["note"]) == ("corrected", "ada", "see ticket 7")
    assert found["decided_at"].replace(tzinfo=UTC) == LATER
    with pytest.raises(LedgerError, match="was decided by ada: corrected"):
        ruled(ledger, news.item_id, "accepted", by="bob")
    assert there(ledger) == [found]


def test_what_no_longer_waits_cannot_be_decided(ledger: Ledger) -> None:
    opened(ledger, waiting(item_id="i1"))
    with ledger.write() as conn:
        answer_reviews(conn, ["q1"], NOW)
    with pytest.raises(LedgerError, match="i1 waits no more: a later try has answered its row"):
        ruled(ledger, "i1")
    with pytest.raises(LedgerError, match="'i2': there is none"):
        look(ledger, lambda conn: require_open(conn, "i2"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"decision": "maybe"}, f"expected one of {', '.join(DECISIONS)}"),
        ({"by": " "}, "the name of who decides"),
        ({"by": "a" * 201}, "at most 200 characters"),
        ({"note": "n" * 1001}, "at most 1000 characters"),
        ({"note": "a\0b"}, "no NUL"),
    ],
)
def test_what_no_item_can_be_given_is_refused(ledger: Ledger, wrong: dict[str, Any], said: str) -> None:
    (news,) = opened(ledger, waiting())
    with pytest.raises(LedgerError, match=said):
        ruled(ledger, news.item_id, **wrong)
    assert [row["status"] for row in there(ledger)] == ["open"]


def test_a_list_is_of_what_was_asked_for_newest_first(ledger: Ledger) -> None:
    opened(ledger, waiting("q1"))
    elsewhere = replace(TASK, team_id="sales", dag_id="other", run_id="run-2")
    opened(ledger, waiting("q2", task=elsewhere, reason_kind="privacy"), now=LATER)
    for wanted in ({"team": "sales"}, {"dag_id": "other"}, {"run_id": "run-2"}, {"reason_kind": "privacy"}):
        assert [row["request_id"] for row in there(ledger, **wanted)] == ["q2"], wanted
    assert [row["request_id"] for row in there(ledger)] == ["q2", "q1"]
    assert [row["request_id"] for row in there(ledger, limit=1)] == ["q2"]
    assert there(ledger, status="answered") == []


def test_many_items_are_opened_and_answered_at_once(ledger: Ledger) -> None:
    names = [f"q{number}" for number in range(1200)]
    assert len(opened(ledger, *(waiting(name) for name in names))) == len(names)
    with ledger.write() as conn:
        assert len(open_of(conn, names)) == len(names)
        answer_reviews(conn, names, LATER)
    assert look(ledger, lambda conn: open_of(conn, names)) == []


# Retention


def test_closed_items_are_dropped_with_their_month_and_open_ones_stay(ledger: Ledger) -> None:
    january, march = datetime(2026, 1, 15, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)
    written(ledger, item(january), item(march))
    opened(ledger, *(waiting(name, item_id=name) for name in ("open", "old", "late")), now=january)
    with ledger.write() as conn:
        decide(conn, "old", "accepted", by="ada", note=None, now=january)
        decide(conn, "late", "accepted", by="ada", note=None, now=march)
    done = maintain(ledger, now=NOW, keep_months=1)
    assert [month.name for month in done.dropped] == ["2026-01"]
    assert {row["item_id"] for row in there(ledger)} == {"open", "late"}


# Why a request went where it went


def test_an_attempt_keeps_how_it_was_routed_through_a_crash(ledger: Ledger) -> None:
    routed = replace(request(), routed_by="rules:length", fallback_from="small", fallback_reason="circuit_open")
    with ledger.write() as conn:
        take_hold(conn, hold_id="h", owner="gone", task=TASK, periods=[period(9)], amounts=[5], now=NOW)
        open_attempts(conn, [OpenAttempt("a", "h", 5, NOW, routed)])
    columns = ("routed_by", "fallback_from", "fallback_reason")
    with ledger.write() as conn:
        assert conn.execute(select(*(llm_open_attempts.c[name] for name in columns))).one() == (
            *("rules:length", "small", "circuit_open"),
        )
        (captured,) = recover(conn, replace(TASK, try_number=2), "next", NOW)
    assert captured.request == routed
    written(ledger, item(NOW, request=request()))
    with ledger.read() as conn:
        query = select(*(llm_requests.c[name] for name in columns)).order_by(func.length(llm_requests.c.attempt_id))
        assert conn.execute(query).all() == [("rules:length", "small", "circuit_open"), (None, None, None)]


def test_the_database_itself_refuses_a_second_open_item(ledger: Ledger) -> None:
    opened(ledger, waiting(item_id="i1"), waiting("q2", item_id="i2"))
    with pytest.raises(LedgerError, match="refuses a row"), ledger.write() as conn:
        conn.execute(update(review_items).where(review_items.c.item_id == "i2").values(request_id="q1"))
    ruled(ledger, "i1")
    with ledger.write() as conn:
        (row,) = conn.execute(select(review_items).where(review_items.c.item_id == "i1")).mappings()
        conn.execute(insert(review_items), {**row, "item_id": "i3", "status": "open"})
