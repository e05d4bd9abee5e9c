"""What another price list would have cost: row by row, exactly, and nothing is written."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from support.ledger import NOW, TASK, attempt, period

from airflow_ai_provider.core.ledger.attempts.attempts import OpenAttempt, Settled, open_attempts, settle
from airflow_ai_provider.core.ledger.budgets.holds import take_hold
from airflow_ai_provider.core.ledger.call_costs import Rate, Usage
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.prices import policy_rate
from airflow_ai_provider.core.ledger.reports.reprice import (
    PriceBook,
    Sums,
    count_rows,
    litellm_book,
    policy_book,
    read_price_list,
    reprice,
)
from airflow_ai_provider.core.ledger.schema import llm_requests
from airflow_ai_provider.core.policy import Deployment, Price
from airflow_ai_provider.errors import LedgerError, PolicyError

OLD = Price(input_per_mtok=Decimal(1), output_per_mtok=Decimal(2), cached_input_per_mtok=Decimal("0.1"))
NEW = """\
version: 1
deployments:
  timed: {per_second: 0.002, per_request: 0.000001}
models:
  openai/gpt-4o-mini:
    input_per_mtok: 2
    output_per_mtok: 3
    cached_input_per_mtok: 0.5
    cache_write_per_mtok: 4
    cache_write_1h_per_mtok: 5
    above: {100: {input_per_mtok: 20}}
"""


def written(ledger: Ledger, *items: dict[str, Any]) -> None:
    """Rows as the gateway writes them: ``usage`` at the old price, or the ``cost`` of an ``unknown`` row."""
    old = policy_rate(OLD, "old")
    opened: list[OpenAttempt] = []
    settled: list[Settled] = []
    for item in items:
        one = attempt("h", 10**9)
        named = {name: item[name] for name in ("deployment", "model", "task") if name in item}
        one = replace(one, request=replace(one.request, **named))
        usage, status = item.get("usage"), item.get("status", "ok" if "usage" in item else "unknown")
        cost = item.get("cost", old.cost(usage) if usage else 0)
        opened.append(one)
        at = item.get("at", NOW)
        settled.append(
            Settled(
                one.attempt_id, at, one.request, status, usage, cost_nano=cost, latency_ms=item.get("latency", 1500)
            )
        )
    with ledger.write() as conn:
        amounts = [10**9] * len(items)
        take_hold(conn, hold_id="h", owner="me", task=TASK, periods=[period(10**18)], amounts=amounts, now=NOW)
        open_attempts(conn, opened)
        settle(conn, settled, NOW)


@pytest.fixture
def new(tmp_path: Path) -> PriceBook:
    (tmp_path / "new.yaml").write_text(NEW)
    return read_price_list(tmp_path / "new.yaml").book("new.yaml")


def only(ledger: Ledger, book: PriceBook, **asked: Any) -> Sums:
    (sums,) = reprice(ledger, book, **asked).groups.values()
    return sums


def test_every_kind_of_charge_is_priced_anew(ledger: Ledger, new: PriceBook) -> None:
    written(
        ledger,
        {"usage": Usage(100, 10, cached_input=40, cache_write=30, cache_write_1h=20)},
        {"usage": Usage(101, 10)},
        {"usage": Usage(5, 5), "deployment": "timed", "latency": 1001},
    )
    sums = only(ledger, new)
    expected = (30 * 2000 + 40 * 500 + 10 * 4000 + 20 * 5000 + 10 * 3000) + (101 * 20_000 + 10 * 3000)
    assert (sums.requests, sums.repriced) == (3, expected + 2_002_000 + 1000)
    assert sums.billed == (60_000 + 4000 + 20_000) + (101_000 + 20_000) + (5000 + 10_000)


def test_nothing_is_written(ledger: Ledger, new: PriceBook) -> None:
    written(ledger, {"usage": Usage(100, 10)})
    before = dump(ledger)
    reprice(ledger, new)
    assert dump(ledger) == before


def dump(ledger: Ledger) -> list[Any]:
    with ledger.read() as conn:
        return list(conn.execute(select(llm_requests)).all())


def test_the_price_a_row_was_billed_at_gives_what_it_was_billed(ledger: Ledger) -> None:
    usages = [Usage(n, n // 7, n // 3) for n in range(1, 400)]
    written(ledger, *({"usage": usage} for usage in usages))
    old: Rate = policy_rate(OLD, "old")
    sums = only(ledger, lambda *_: old)
    assert sums.row()["difference_usd"] == sums.row()["difference_percent"] == 0
    assert sums.billed == sums.repriced == sum(old.cost(usage) for usage in usages)


def test_groups_are_as_asked(ledger: Ledger, new: PriceBook) -> None:
    other = replace(TASK, team_id="sales")
    late = NOW + timedelta(days=1)
    written(
        ledger, {"usage": Usage(50, 0)}, {"usage": Usage(50, 0), "at": late}, {"usage": Usage(10, 0), "task": other}
    )
    assert reprice(ledger, new, by=["team", "day"]).rows() == [
        {"team": "sales", "day": date(2026, 3, 4), **expected(10, 10_000, 20_000)},
        {"team": "support", "day": date(2026, 3, 4), **expected(50, 50_000, 100_000)},
        {"team": "support", "day": date(2026, 3, 5), **expected(50, 50_000, 100_000)},
    ]
    with pytest.raises(LedgerError, match="cannot group by colour; expected some of day, team"):
        reprice(ledger, new, by=["colour"])


def expected(_tokens: int, billed: int, repriced: int) -> dict[str, Any]:
    return Sums(requests=1, billed=billed, repriced=repriced).row()


def test_days_are_whole_and_of_utc(ledger: Ledger, new: PriceBook) -> None:
    first, last = datetime(2026, 3, 4, tzinfo=UTC), datetime(2026, 3, 4, 23, 59, 59, 999999, UTC)
    before, after = first - timedelta(microseconds=1), last + timedelta(microseconds=1)
    written(ledger, *({"usage": Usage(1, 1), "at": at} for at in (before, first, last, after)))
    day = {"since": date(2026, 3, 4), "until": date(2026, 3, 4)}
    assert only(ledger, new, **day).requests == count_rows(ledger, **day) == 2
    assert count_rows(ledger) == 4


def test_what_the_list_has_no_price_for_is_named_and_counted_apart(ledger: Ledger, new: PriceBook) -> None:
    written(ledger, {"usage": Usage(10, 0)}, {"usage": Usage(7, 0), "model": "x/y", "deployment": "odd"})
    found = reprice(ledger, new)
    (sums,) = found.groups.values()
    assert (sums.requests, sums.billed, sums.no_price, sums.no_price_billed) == (1, 10_000, 1, 7000)
    assert list(found.no_price) == [("odd", "x/y")]


def test_unknown_rows_are_shown_apart(ledger: Ledger, new: PriceBook) -> None:
    written(ledger, {"usage": Usage(10, 0)}, {"cost": 900}, {"status": "error", "usage": Usage(0, 0)})
    sums = only(ledger, new)
    assert (sums.requests, sums.unknown, sums.unknown_billed, sums.billed) == (1, 1, 900, 10_000)


def test_rows_are_streamed_and_told_of(ledger: Ledger, new: PriceBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_ai_provider.core.ledger.reports.reprice._BATCH", 10)
    written(ledger, *({"usage": Usage(1, 1)} for _ in range(25)))
    heard: list[int] = []
    reprice(ledger, new, on_rows=heard.append)
    assert heard == [10, 20, 25]


def test_the_lists_of_litellm_and_of_a_policy(ledger: Ledger) -> None:
    own = Deployment(model="openai/gpt-4o-mini", price=Price(input_per_mtok=Decimal(9), output_per_mtok=Decimal(9)))
    written(ledger, {"usage": Usage(1000, 0)})
    assert only(ledger, litellm_book).repriced == 150_000
    assert only(ledger, policy_book({"small": own}.get, "digest")).repriced == 9_000_000
    changed = own.model_copy(update={"model": "openai/gpt-4o"})
    assert only(ledger, policy_book({"small": changed}.get, "digest")).no_price == 1
    assert litellm_book("any", "offline/extractive") is None


@given(billed=st.lists(st.integers(0, 10**12), max_size=20), repriced=st.lists(st.integers(0, 10**12), max_size=20))
def test_differences_add_up(billed: list[int], repriced: list[int]) -> None:
    row = Sums(billed=sum(billed), repriced=sum(repriced)).row()
    assert row["billed_usd"] + row["difference_usd"] == row["repriced_usd"]
    if row["billed_usd"]:
        exact = 100 * row["difference_usd"] / row["billed_usd"]
        assert abs(row["difference_percent"] - exact) <= Decimal("0.005")
    else:
        assert row["difference_percent"] == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("version: 1\nmodels:\n  a/b: {input_per_mtok: 1}\n", "list.yaml:3: models.a/b: output_per_mtok is not given"),
        ("version: 1\nmodel: {}\n", "list.yaml:2: model: unknown key"),
        ("models: {}\n", "list.yaml:1: version: required, and not there"),
        ("version: 1\nmodels: {a/b: {per_second: -1}}\n", "list.yaml:2: models.a/b.per_second: expected greater"),
        ("- 1\n", "list.yaml:1: expected a mapping with version, deployments and models"),
    ],
)
def test_a_wrong_list_names_file_and_line(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(PolicyError) as caught:
        read_price_list(tmp_path / "list.yaml")
    assert problem in str(caught.value).replace(f"{tmp_path}/", "")


def test_a_list_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no price list there"):
        read_price_list(tmp_path / "none.yaml")


def test_a_list_may_be_json(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('{"version": 1, "models": {"a/b": {"per_request": 0.5}}}')
    rate = read_price_list(tmp_path / "list.json").book("list.json")("any", "a/b")
    assert rate is not None
    assert rate.cost(Usage(1, 1)) == 500_000_000
