"""Which answers go to review, and what items and events a job's batches come to over several tries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_ai_provider.core.audit.trail.audit_store import LedgerAuditStore
from airflow_ai_provider.core.audit.trail.spool import Spool
from airflow_ai_provider.core.audit.trail.trail import Trail
from airflow_ai_provider.core.audit.verify.segment_reader import check_segment
from airflow_ai_provider.core.job import MapJob
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.attempts.attempts import Request, Settled
from airflow_ai_provider.core.ledger.attempts.group_commit import Journal
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.reviews import any_open, decide, list_reviews
from airflow_ai_provider.core.pipeline.answer import Answer
from airflow_ai_provider.core.pipeline.audit_log import AuditLog
from airflow_ai_provider.core.pipeline.review_queue import ReviewPlace, Reviews, review_item
from airflow_ai_provider.core.policy import Escalate

TASK = TaskRef("support", "dag", "run", "answer", -1, 1)
PLACE = ReviewPlace(TASK, "support", "s3://key:secret@lake/answers")
OK = Answer("ok", "q0", text="fine", tier="simple", deployment="small", model="m")
REJECTED = Answer("rejected", "q1", text="no", error="schema: not JSON", tier="complex", deployment="large", model="n")
REFUSED = Answer("error", "q2", error="content_policy: small: refused: it says", permanent=True, tier="simple")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (OK, None),
        (REJECTED, "schema"),
        (replace(REJECTED, reused=True), "schema"),
        (REFUSED, "content_policy"),
        (replace(REFUSED, error="prompt: no column 'text'"), "prompt"),
        (replace(REFUSED, permanent=False, error="timeout: no answer in time"), None),
        (Answer("over_budget", "q", error="over_budget: no room left in budget b"), None),
    ],
)
def test_only_what_no_later_try_settles_goes_to_a_person(answer: Answer, kind: str | None) -> None:
    item = review_item(answer, "row", PLACE)
    assert (item.reason_kind if item else None) == kind


def test_the_only_end_of_an_escalation_is_review() -> None:
    """Another one would have to be told to the batch: here every rejected answer becomes an item."""
    assert Escalate.model_json_schema()["properties"]["then"]["const"] == "review"


def test_an_item_has_the_answers_reason_and_place_without_secrets() -> None:
    item = review_item(REFUSED, "row\0key", PLACE)
    assert item is not None
    assert (item.request_id, item.row_key, item.route, item.task) == ("q2", "row\ufffdkey", "support", TASK)
    assert (item.reason_kind, item.reason) == ("content_policy", "small: refused: it says")
    assert (item.tier, item.deployment, item.model) == ("simple", None, None)
    assert item.sink == "s3://***@lake/answers"


@pytest.mark.parametrize(
    ("answer", "new"), [(REJECTED, True), (replace(REJECTED, reused=True), False), (REFUSED, False)]
)
def test_only_an_answer_made_now_is_one_that_nobody_can_have_decided_on(answer: Answer, new: bool) -> None:
    item = review_item(answer, "row", PLACE)
    assert item is not None
    assert item.new_answer == new


@dataclass(frozen=True, slots=True)
class ReviewRun:
    """A ledger and a trail, and the tries of one task over them."""

    ledger: Ledger
    spool: Spool

    async def run(self, *batches: Sequence[Answer], suspected: bool = False, finish: bool = True) -> None:
        """One try. ``suspected`` says so of every deployment; without ``finish`` it dies after its last batch."""
        job = MapJob("in", "out", "{{ text }}", "id", "support", "support")
        trail = Trail(self.spool, LedgerAuditStore(self.ledger))
        recorder = AuditLog(trail, hash_key=bytes(32), hash_key_id="k1", job=job)
        with self.ledger.read() as conn:
            waiting = any_open(conn, TASK)
        journal = Journal(self.ledger, "me")
        reviews = Reviews(journal, recorder, PLACE, any_open=waiting, suspected=lambda _: suspected)
        try:
            for answers in batches:
                await reviews.settle(answers, [f"row {answer.request_id}" for answer in answers])
            if finish:
                await reviews.finish()
        finally:
            await journal.close()
            trail.close()

    def items(self) -> list[tuple[str, str, str]]:
        with self.ledger.read() as conn:
            found = list_reviews(conn, status=None)
        return sorted((row["request_id"], row["reason_kind"], row["status"]) for row in found)

    def decide(self, request_id: str) -> None:
        with self.ledger.write() as conn:
            (item,) = (row for row in list_reviews(conn) if row["request_id"] == request_id)
            decide(conn, item["item_id"], "accepted", by="ada", note=None, now=datetime.now(UTC))

    def events(self) -> list[tuple[str, str, str | None]]:
        found: list[dict[str, Any]] = []
        for name in self.spool.names("sealed"):
            data = self.spool.path(name, "sealed").read_bytes()
            check_segment([data], sealed=True, visit=lambda document, body: found.append(document))
        return [(e["event.action"], e["airflow_ai.request_id"], e.get("event.reason")) for e in found]


@pytest.fixture(params=["sqlite", "postgresql"])
def reviewed(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    with open_ledger(url, tmp_path) as ledger:
        yield ReviewRun(ledger, Spool(tmp_path / "spool"))


async def test_a_batch_opens_its_items_and_says_so_once(reviewed: ReviewRun) -> None:
    for _ in range(2):
        await reviewed.run([OK, REJECTED, REFUSED])
    assert reviewed.items() == [("q1", "schema", "open"), ("q2", "content_policy", "open")]
    assert reviewed.events() == [("review.requested", "q1", "schema"), ("review.requested", "q2", "content_policy")]


async def test_a_rejected_answer_is_in_review_before_its_part_is_written_whatever_its_deployment_does(
    reviewed: ReviewRun,
) -> None:
    """No later try asks for it again, whereas a row with an error is asked again."""
    await reviewed.run([replace(REJECTED, reused=True), REFUSED], suspected=True, finish=False)
    assert reviewed.items() == [("q1", "schema", "open")]
    await reviewed.run([REFUSED], suspected=True)
    assert reviewed.items() == [("q1", "schema", "open"), ("q2", "content_policy", "open")]


async def test_a_later_try_that_answers_closes_the_item(reviewed: ReviewRun) -> None:
    await reviewed.run([REJECTED, REFUSED])
    await reviewed.run([replace(OK, request_id="q2"), replace(OK, request_id="q3")])
    assert reviewed.items() == [("q1", "schema", "open"), ("q2", "content_policy", "answered")]
    assert reviewed.events()[2:] == [("review.answered", "q2", None)]


async def test_a_decided_answer_that_comes_back_from_the_store_stays_decided(reviewed: ReviewRun) -> None:
    await reviewed.run([REJECTED, REFUSED])
    reviewed.decide("q1")
    reviewed.decide("q2")
    await reviewed.run([replace(REJECTED, reused=True), REFUSED])
    assert [status for *_, status in reviewed.items()] == ["decided", "decided"]
    await reviewed.run([REJECTED])
    assert [status for name, _, status in reviewed.items() if name == "q1"] == ["decided", "open"]


async def test_batches_that_need_nobody_cost_no_transaction(
    reviewed: ReviewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[object] = []
    real = Journal.run

    async def run(self: Journal, work: Any) -> Any:
        ran.append(work)
        return await real(self, work)

    monkeypatch.setattr(Journal, "run", run)
    await reviewed.run([OK] * 250, [replace(REFUSED, permanent=False)])
    assert ran == []
    assert reviewed.events() == []
    await reviewed.run([REJECTED])
    assert len(ran) == 2, "what is new, and then its items, whatever their number"


async def test_events_hold_names_and_never_a_reason_or_a_row(reviewed: ReviewRun) -> None:
    await reviewed.run([REJECTED, REFUSED])
    data = b"".join(
        reviewed.spool.path(name, "sealed").read_bytes() for name in reviewed.spool.names("sealed")
    ).decode()
    assert "review.requested" in data
    for secret in ("not JSON", "it says", "row q1", "lake"):
        assert secret not in data


def test_a_circuit_and_a_fallback_are_in_the_trail(tmp_path: Path) -> None:
    request = Request("q", TASK, "k", "support", "simple", "large", "m/n", "m", "v", routed_by="rules:keywords (cold)")
    request = replace(request, fallback_from="small", fallback_reason="circuit_open")
    with open_ledger(None, tmp_path) as ledger:
        spool = Spool(tmp_path / "spool")
        with Trail(spool, LedgerAuditStore(ledger)) as trail:
            job = MapJob("in", "out", "{{ text }}", "id", "support", "support")
            recorder = AuditLog(trail, hash_key=bytes(32), hash_key_id="k1", job=job)
            recorder.circuit_changed("small", opened=True, reason="server_error")
            recorder.call(Settled("a", datetime.now(UTC), request, "error", None), prompt=None, answer=None)
            recorder.circuit_changed("small", opened=False, reason="probe answered")
    (name,) = spool.names("sealed")
    lines = [json.loads(line) for line in spool.path(name, "sealed").read_text().splitlines()]
    opened, call, closed = (line for line in lines if "event.action" in line)
    assert (opened["event.action"], opened["airflow_ai.deployment"], opened["event.reason"]) == (
        *("circuit.opened", "small", "server_error"),
    )
    assert closed["event.action"] == "circuit.closed"
    routing = [call[f"airflow_ai.{name}"] for name in ("routed_by", "fallback_from", "fallback_reason")]
    assert routing == ["rules:keywords (cold)", "small", "circuit_open"]
