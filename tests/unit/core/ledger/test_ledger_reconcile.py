"""Invoices against the ledger: what is unknown becomes known, what differs is said, nothing is lowered on a guess."""

from __future__ import annotations

import shutil
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from support.reconcile import BOUND, DAY, LATER, NOON, Desk, billed, plain, usd

from airflow_ai_provider.core.ledger.attempts.disabled_deployments import resume_deployment
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.reconcile import by_request
from airflow_ai_provider.core.ledger.reconcile.adjustments import apply
from airflow_ai_provider.core.ledger.reconcile.report import LISTED, Span, parse_span
from airflow_ai_provider.core.ledger.schema import llm_requests
from airflow_ai_provider.errors import LedgerError, LedgerUnavailable, SourceError

HOUR = timedelta(hours=1)
ELSEWHERE = f"{int(NOON.timestamp() * 1000):012x}{'f' * 20}"
"""An attempt of another ledger."""


@pytest.fixture
def desk(shared_ledger: Ledger) -> Desk:
    return Desk.emptied(shared_ledger)


# What an invoice names


def test_an_unknown_call_becomes_what_it_was_charged(desk: Desk) -> None:
    ok, lost = desk.call("ok", 700), desk.call("unknown")
    report = desk.reconcile([billed(ok, 700), billed(lost, 450, tokens=(7, 3, 2), vendor="chatcmpl-1")])
    assert report.equal
    assert (report.lines, report.matched, report.resolved, report.lowered_nano) == (2, 2, 1, BOUND - 450)
    assert desk.costs() == {ok: 700, lost: 450}
    (row,) = desk.adjustments()
    assert (row["attempt_id"], row["delta_nano"], row["status"]) == (lost, 450 - BOUND, "billed")
    assert (row["input_tokens"], row["output_tokens"], row["cached_input_tokens"]) == (7, 3, 2)
    assert (row["vendor_request_id"], row["invoice"]) == ("chatcmpl-1", report.invoice_hash)
    (day,) = report.days
    assert (day.ledger.cost_nano, day.invoice.cost_nano, day.ledger.requests) == (1150, 1150, 2)
    desk.assert_books_agree()


def test_the_same_invoice_again_changes_nothing(desk: Desk) -> None:
    lines = [billed(desk.call("unknown"), 450), billed(desk.call("ok", 700), 600)]
    desk.reconcile(lines)
    before = desk.adjustments()
    again = desk.reconcile(lines)
    assert again.equal
    assert (again.resolved, again.corrected, again.raised_nano, again.lowered_nano) == (0, 0, 0, 0)
    assert desk.adjustments() == before
    desk.assert_books_agree()


def test_a_later_invoice_has_the_last_word_and_an_earlier_one_again_has_not(desk: Desk) -> None:
    lost = desk.call("unknown")
    first, second = [billed(lost, 450)], [billed(lost, 475)]
    desk.reconcile(first)
    corrected = desk.reconcile(second)
    assert (corrected.equal, corrected.resolved, corrected.corrected) == (True, 0, 1)
    again = desk.reconcile(first)
    assert dict(again.findings.counts) == {"superseded": 1}
    assert desk.costs() == {lost: 475}
    assert desk.reconcile(second).equal
    desk.assert_books_agree()


def test_an_invoice_that_changed_nothing_is_superseded_as_well(desk: Desk) -> None:
    ok = desk.call("ok", 700)
    first, second = [billed(ok, 700)], [billed(ok, 650)]
    assert desk.reconcile(first).equal
    desk.reconcile(second)
    assert dict(desk.reconcile(first).findings.counts) == {"superseded": 1}
    assert desk.costs() == {ok: 650}
    desk.assert_books_agree()


def test_a_known_cost_that_differs_is_adjusted_and_found(desk: Desk) -> None:
    ok, refused = desk.call("ok", 700), desk.call("error", 0)
    report = desk.reconcile([billed(ok, 800), billed(refused, 90)])
    assert dict(report.findings.counts) == {"differs": 2}
    assert (report.corrected, report.raised_nano) == (2, 190)
    assert desk.costs() == {ok: 800, refused: 90}
    found = {finding.place: (finding.ledger_nano, finding.invoice_nano) for finding in report.findings}
    assert found == {ok: (700, 800), refused: (0, 90)}
    desk.assert_books_agree()


def test_tokens_alone_may_differ(desk: Desk) -> None:
    ok = desk.call("ok", 700)
    report = desk.reconcile([billed(ok, 700, tokens=(12, 5, 0))])
    assert [finding.detail for finding in report.findings] == ["the invoice has another tokens than the ok row"]
    assert [row["input_tokens"] for row in desk.adjustments()] == [2]
    desk.assert_books_agree()


def test_tokens_that_the_invoice_does_not_say_stay(desk: Desk) -> None:
    ok = desk.call("ok", 700)
    report = desk.reconcile(f"attempt_id,model,day,cost_usd\n{ok},gpt-4o-mini,2026-03-04,{usd(700)}\n".encode())
    assert report.equal
    assert report.days[0].invoice.input_tokens == 10


def test_an_unknown_call_that_cost_its_whole_bound_is_known_then(desk: Desk) -> None:
    lost = desk.call("unknown")
    invoice = f"attempt_id,model,day,cost_usd\n{lost},gpt-4o-mini,2026-03-04,{usd(BOUND)}\n".encode()
    report = desk.reconcile(invoice)
    assert (report.equal, report.resolved, report.lowered_nano, report.raised_nano) == (True, 1, 0, 0)
    assert [row["delta_nano"] for row in desk.adjustments()] == [0]
    assert desk.reconcile(invoice).resolved == 0
    desk.assert_books_agree()


def test_more_than_the_bound_is_raised_and_found(desk: Desk) -> None:
    lost = desk.call("unknown")
    report = desk.reconcile([billed(lost, BOUND + 1)])
    assert dict(report.findings.counts) == {"above_bound": 1}
    assert desk.costs() == {lost: BOUND + 1}
    desk.assert_books_agree()


def test_a_charge_above_its_bound_stops_the_deployment_once(desk: Desk) -> None:
    lost = desk.call("unknown", deployment="dear")
    invoice = [billed(lost, BOUND + 7)]
    assert not desk.reconcile(invoice, dry_run=True).stopped
    assert desk.stops() == []
    assert desk.reconcile(invoice).stopped == {"dear"}
    assert desk.stops() == [("dear", lost, 7)]
    with desk.ledger.write() as conn:
        resume_deployment(conn, "dear")
    assert not desk.reconcile(invoice).stopped, "a person has lifted it, knowing of this charge"
    assert desk.stops() == []


def test_the_lines_of_one_attempt_add_up(desk: Desk) -> None:
    lost = desk.call("unknown")
    report = desk.reconcile([billed(lost, 300), billed(lost, 200)])
    assert dict(report.findings.counts) == {"charged_again": 1}
    assert desk.costs() == {lost: 500}


def test_a_cost_finer_than_a_nano_dollar_is_rounded_up(desk: Desk) -> None:
    lost = desk.call("unknown")
    desk.reconcile([billed(lost, Decimal("450.0000000001"))])
    assert desk.costs() == {lost: 451}


def test_a_line_that_the_ledger_does_not_have_is_found_and_not_added(desk: Desk) -> None:
    ok = desk.call("ok", 700)
    report = desk.reconcile([billed(ok, 700), billed("f" * 32, 90), billed("", 80, vendor="chatcmpl-x")])
    assert dict(report.findings.counts) == {"not_in_ledger": 2}
    assert {finding.place for finding in report.findings} == {"line 3", "line 4"}
    assert desk.costs() == {ok: 700}
    (day,) = report.days
    assert (day.difference_nano, day.ledger.requests, day.invoice.requests) == (-170, 1, 3)
    desk.assert_books_agree()


def test_a_call_that_is_still_open_is_left_alone_until_it_is_settled(desk: Desk) -> None:
    late = desk.open()
    invoice = [billed(late, 450)]
    report = desk.reconcile(invoice, covers=DAY)
    assert dict(report.findings.counts) == {"still_open": 1}
    assert desk.adjustments() == []
    desk.settle(late, "unknown", BOUND)
    assert desk.reconcile(invoice, covers=DAY).equal
    assert desk.costs() == {late: 450}
    desk.assert_books_agree()


# By the vendor's own id


def test_the_vendors_id_is_enough(desk: Desk) -> None:
    ok = desk.call("ok", 700, vendor_request_id="chatcmpl-1")
    report = desk.reconcile([billed("", 650, vendor="chatcmpl-1"), billed("of another", 90, vendor="chatcmpl-9")])
    assert dict(report.findings.counts) == {"differs": 1, "not_in_ledger": 1}
    assert desk.costs() == {ok: 650}


def test_a_vendors_id_learnt_from_an_invoice_is_known_to_the_next(desk: Desk) -> None:
    lost = desk.call("unknown")
    desk.reconcile([billed(lost, 450, vendor="chatcmpl-1")])
    assert desk.reconcile([billed("", 475, vendor="chatcmpl-1")]).equal
    assert desk.costs() == {lost: 475}


def test_a_vendors_id_of_two_attempts_counts_for_none(desk: Desk) -> None:
    attempts = [desk.call("ok", 700, vendor_request_id="chatcmpl-1") for _ in range(2)]
    report = desk.reconcile([billed("", 650, vendor="chatcmpl-1")])
    assert dict(report.findings.counts) == {"ambiguous_id": 1}
    assert desk.costs() == dict.fromkeys(attempts, 700)


# What an invoice covers and does not name


def test_nothing_is_lowered_without_a_stated_coverage(desk: Desk) -> None:
    ok, lost = desk.call("ok", 700), desk.call("unknown")
    assert desk.reconcile([billed(ok, 700)]).equal
    assert desk.costs() == {ok: 700, lost: BOUND}


def test_a_covered_call_that_is_not_on_the_invoice_cost_nothing(desk: Desk) -> None:
    ok, lost = desk.call("ok", 700), desk.call("unknown")
    report = desk.reconcile([billed(ok, 700)], covers=DAY)
    assert report.equal
    assert (report.resolved, report.not_billed, report.lowered_nano) == (1, 1, BOUND)
    assert desk.costs() == {ok: 700, lost: 0}
    assert [row["status"] for row in desk.adjustments()] == ["not_billed"]
    assert [day.ledger.requests for day in report.days] == [1]
    desk.assert_books_agree()


@pytest.mark.parametrize(
    ("opened", "lasted", "lowered"),
    [
        (DAY.start + 6 * timedelta(minutes=1), timedelta(0), True),
        (DAY.start + 4 * timedelta(minutes=1), timedelta(0), False),
        (DAY.start - HOUR, 2 * HOUR, False),
        (DAY.end - 2 * HOUR, timedelta(0), True),
        (DAY.end - 2 * HOUR, 90 * timedelta(minutes=1), False),
        (DAY.start + 6 * timedelta(minutes=1), timedelta(days=9), False),
    ],
    ids=["after the start", "at the start", "opened before", "before the end", "over at the end", "recovered late"],
)
def test_the_edges_of_a_coverage_do_not_count(desk: Desk, opened: Any, lasted: timedelta, lowered: bool) -> None:
    lost = desk.call("unknown", at=opened, after=lasted)
    desk.reconcile([], covers=DAY)
    assert desk.costs() == {lost: 0 if lowered else BOUND}


def test_a_call_that_was_recovered_late_is_covered_by_its_own_time(desk: Desk) -> None:
    """Its process died, and the task was tried again nine days after."""
    lost = desk.call("unknown", at=NOON, after=timedelta(days=9))
    desk.reconcile([], covers=Span(DAY.start, DAY.end + timedelta(days=1)))
    assert desk.costs() == {lost: 0}


def test_an_answered_call_that_is_not_on_the_invoice_is_found_and_keeps_its_cost(desk: Desk) -> None:
    ok = desk.call("ok", 700)
    report = desk.reconcile([], covers=DAY)
    assert dict(report.findings.counts) == {"not_on_invoice": 1}
    assert desk.costs() == {ok: 700}


def test_a_line_without_an_attempts_id_may_be_that_of_any_unknown_call_of_its_model(desk: Desk) -> None:
    ok, other = desk.call("ok", 700), desk.call("unknown", model="openai/gpt-4o")
    lost = desk.call("unknown")
    report = desk.reconcile([billed(ok, 700), billed("", 90, vendor="chatcmpl-x")], covers=DAY)
    assert dict(report.findings.counts) == {"not_in_ledger": 1, "not_lowered": 1}
    assert desk.costs() == {ok: 700, other: 0, lost: BOUND}
    unheard_of = billed("", 90, vendor="chatcmpl-x", model="o7-alias")
    again = desk.call("unknown", model="openai/gpt-4o")
    desk.reconcile([billed(ok, 700), unheard_of], covers=DAY)
    assert desk.costs()[again] == BOUND


@pytest.mark.parametrize(
    ("line", "lowered"),
    [
        (billed(ELSEWHERE, 90), True),
        (billed("f" * 32, 90), False),
        (billed("stainless-python-retry-1", 90), False),
        (billed("", 90, vendor="twice"), False),
    ],
    ids=["another ledger's", "of another time", "a client's own key", "of two attempts"],
)
def test_a_line_that_names_no_attempt_of_a_gateway_leaves_it_open_whose_it_is(
    desk: Desk, line: str, lowered: bool
) -> None:
    for _ in range(2):
        desk.call("ok", 0, vendor_request_id="twice")
    lost = desk.call("unknown")
    desk.reconcile([line], covers=DAY)
    assert desk.costs()[lost] == (0 if lowered else BOUND)


def test_a_coverage_must_say_of_which_deployments_where_there_are_several(desk: Desk) -> None:
    mine, theirs = desk.call("unknown"), desk.call("unknown", deployment="large", model="anthropic/claude-haiku-4-5")
    with pytest.raises(LedgerError, match=r"deployments large, small lie in it; say with --deployments"):
        desk.reconcile([], covers=DAY)
    desk.reconcile([], covers=DAY, deployments=["small"])
    assert desk.costs() == {mine: 0, theirs: BOUND}


def test_a_later_invoice_may_charge_what_was_taken_for_uncharged_and_the_other_way_round(desk: Desk) -> None:
    lost = desk.call("unknown")
    empty = plain()
    desk.reconcile(empty, covers=DAY)
    desk.reconcile([billed(lost, 450)])
    assert desk.costs() == {lost: 450}
    assert dict(desk.reconcile(empty, covers=DAY).findings.counts) == {"superseded": 1}
    desk.reconcile([billed(ELSEWHERE, 1)], covers=DAY)
    assert desk.costs() == {lost: 0}
    desk.assert_books_agree()


@pytest.mark.parametrize(
    "covers", ["2026-03-04", "2026-03-05..2026-03-04", "a..b", "..", "2026-03-04..", "2026-3-4..5"]
)
def test_a_coverage_that_cannot_be_read_says_how_to_write_one(covers: str) -> None:
    with pytest.raises(LedgerError, match=r"expected FROM\.\.TO, as in 2025-01-01\.\.2025-01-31"):
        parse_span(covers)


def test_a_coverage_is_whole_days_or_times() -> None:
    assert parse_span("2026-03-04..2026-03-04") == DAY
    assert parse_span("2026-03-04T01:00+01:00..2026-03-05T00:00Z") == DAY


def test_a_coverage_of_the_future_is_refused(desk: Desk) -> None:
    with pytest.raises(LedgerError, match="ends in the future"):
        desk.reconcile([], covers=Span(NOON, LATER + timedelta(days=1)))


# How it is done


def test_a_dry_run_says_the_same_and_changes_nothing(desk: Desk) -> None:
    ok, lost, absent = desk.call("ok", 700), desk.call("unknown"), desk.call("unknown")
    lines = [billed(ok, 600), billed(lost, 450)]
    said = desk.reconcile(lines, covers=DAY, dry_run=True)
    assert desk.adjustments() == []
    assert desk.costs() == {ok: 700, lost: BOUND, absent: BOUND}
    done = desk.reconcile(lines, covers=DAY)
    assert {**said.totals(), "dry_run": False} == done.totals()
    assert [day.row() for day in said.days] == [day.row() for day in done.days]


def test_many_attempts_go_in_chunks(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_request, "CHUNK", 3)
    named = [desk.call("unknown") for _ in range(7)]
    absent = [desk.call("unknown") for _ in range(6)]
    report = desk.reconcile([billed(attempt, 450) for attempt in named], covers=DAY)
    assert (report.resolved, report.not_billed) == (13, 6)
    assert desk.costs() == {**dict.fromkeys(named, 450), **dict.fromkeys(absent, 0)}
    desk.assert_books_agree()


def test_what_was_broken_off_goes_on_from_there(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = sorted(desk.call("unknown") for _ in range(6))
    lines = [billed(attempt, 450) for attempt in attempts]
    monkeypatch.setattr(by_request, "CHUNK", 2)
    chunks: list[int] = []

    def fail_at_the_third(conn: Any, changes: Any, *more: Any) -> None:
        apply(conn, changes, *more)
        chunks.append(len(changes))
        if len(chunks) == 3:
            raise LedgerUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(by_request, "apply", fail_at_the_third)
        with pytest.raises(LedgerUnavailable):
            desk.reconcile(lines)
    assert Counter(desk.costs().values()) == {450: 4, BOUND: 2}
    desk.assert_books_agree()
    assert desk.reconcile(lines).resolved == 2
    assert set(desk.costs().values()) == {450}
    desk.assert_books_agree()


def test_two_at_once_change_it_once_while_calls_go_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_request, "CHUNK", 5)
    lost = [desk.call("unknown") for _ in range(40)]
    late = [desk.open() for _ in range(10)]
    invoice = plain(*(billed(attempt, 450) for attempt in [*lost, *late]))
    with ThreadPoolExecutor(3) as threads:
        twice = [threads.submit(Desk(desk.ledger).reconcile, invoice) for _ in range(2)]
        settling = threads.submit(lambda: [desk.settle(attempt, "unknown", BOUND) for attempt in late])
        reports = [run.result() for run in twice]
        settling.result()
    resolved = sum(report.resolved for report in reports)
    assert 40 <= resolved <= 50
    assert resolved == len(desk.adjustments())
    desk.assert_books_agree()
    desk.reconcile(invoice)
    assert desk.costs() == dict.fromkeys([*lost, *late], 450)
    desk.assert_books_agree()


def test_a_bad_line_stops_everything_before_anything_is_changed(desk: Desk) -> None:
    lost = desk.call("unknown")
    with pytest.raises(SourceError, match=r"^invoice\.csv:3: cost_usd: expected an amount .*; nothing was changed$"):
        desk.reconcile([billed(lost, 450), billed(lost, 450).replace(usd(450), "free")], covers=DAY)
    assert desk.adjustments() == []


def test_a_row_of_before_budgets_were_kept_is_adjusted_and_said(desk: Desk) -> None:
    lost = desk.call("unknown")
    with desk.ledger.write() as conn:
        conn.execute(update(llm_requests).values(budget_set=None))
    report = desk.reconcile([billed(lost, 450)])
    assert dict(report.findings.counts) == {"no_budgets": 1}
    assert desk.costs() == {lost: 450}


def test_only_so_many_findings_are_listed_but_all_are_counted(desk: Desk) -> None:
    report = desk.reconcile([billed(f"{number:032x}", 1) for number in range(LISTED + 5)])
    assert len(report.findings) == LISTED + 5
    assert len(list(report.findings)) == LISTED


# Any sequence


@pytest.fixture(scope="module")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("reconcile") / "ledger.db"
    with Ledger.open(f"sqlite:///{file}"):
        pass
    return file


_STATUS = st.sampled_from(["ok", "unknown", "unknown", "error"])
_STEP = st.one_of(
    st.tuples(st.just("call"), _STATUS, st.integers(0, BOUND)),
    st.tuples(st.just("open"), st.just(""), st.just(0)),
    st.tuples(st.just("settle"), _STATUS, st.integers(0, BOUND)),
    st.tuples(st.just("new invoice"), st.sampled_from(["", "covers"]), st.integers(0, 2**30)),
    st.tuples(st.just("old invoice"), st.sampled_from(["", "covers"]), st.integers(0, 2**30)),
)


@settings(max_examples=40)
@given(steps=st.lists(_STEP, max_size=12), last=st.integers(0, 2**30))
def test_books_agree_after_any_sequence_and_equal_the_last_full_invoice(
    empty_ledger: Path, steps: list[tuple[str, str, int]], last: int
) -> None:
    file = empty_ledger.with_name("copy.db")
    for old in file.parent.glob("copy.db*"):
        old.unlink()
    shutil.copy(empty_ledger, file)
    with Ledger.open(f"sqlite:///{file}") as ledger:
        desk = Desk(ledger)
        statuses: dict[str, str] = {}
        invoices: list[bytes] = []
        for step, what, number in steps:
            match step:
                case "call":
                    statuses[desk.call(what, _cost(what, number))] = what  # type: ignore[arg-type]
                case "open":
                    desk.open()
                case "settle" if desk.opened:
                    attempt = next(iter(desk.opened))
                    statuses[desk.settle(attempt, what, _cost(what, number))] = what  # type: ignore[arg-type]
                case "new invoice":
                    invoices.append(plain(*_lines([*statuses, *desk.opened], number)))
                    desk.reconcile(invoices[-1], covers=DAY if what else None)
                case "old invoice" if invoices:
                    desk.reconcile(invoices[number % len(invoices)], covers=DAY if what else None)
            desk.assert_books_agree()
        charged = {
            attempt: _drawn(attempt, last) for attempt, status in statuses.items() if _is_charged(status, attempt, last)
        }
        full = plain(*(billed(attempt, nano) for attempt, nano in charged.items()), billed(ELSEWHERE, last))
        desk.reconcile(full, covers=DAY)
        errors = {attempt for attempt, status in statuses.items() if status == "error"}
        costs = desk.costs()
        assert {attempt: costs[attempt] for attempt in statuses if attempt not in errors} == {
            attempt: charged.get(attempt, 0) for attempt in statuses if attempt not in errors
        }
        before = desk.adjustments()
        desk.reconcile(full, covers=DAY)
        assert desk.adjustments() == before
        desk.assert_books_agree()


def _cost(status: str, number: int) -> int:
    return {"ok": number, "unknown": BOUND}.get(status, 0)


def _drawn(attempt: str, seed: int) -> int:
    return zlib.crc32(f"{attempt} {seed}".encode()) % (2 * BOUND)


def _is_charged(status: str, attempt: str, seed: int) -> bool:
    return status == "ok" or (status == "unknown" and bool(_drawn(attempt, seed) & 1))


def _lines(attempts: list[str], seed: int) -> list[str]:
    """Some of the attempts, at some cost."""
    return [billed(attempt, _drawn(attempt, seed)) for attempt in attempts if _drawn(attempt, seed) % 3]
