"""A cost report: its figures, its charts and its page, which needs nothing besides itself."""

from __future__ import annotations

import base64
import builtins
import io
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert
from support.reporting import NOW, row, write
from support.storage import Place

from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.schema import llm_budgets
from airflow_ai_provider.core.reporting.charts import overview, team_chart
from airflow_ai_provider.core.reporting.costs import CostReport, Series, clipped, percent, read_costs, top, usd
from airflow_ai_provider.core.reporting.page import file_name, render, write_report
from airflow_ai_provider.errors import PermanentError, SinkError

DAY = timedelta(days=1)
EVIL = '<script>alert("$x$")</script>'
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Ten teams over 30 days, and three budgets. Nobody changes it."""
    with Ledger.open(f"sqlite:///{tmp_path_factory.mktemp('costs') / 'ledger.db'}") as ledger:
        rows = [
            row(
                100 * team + day,
                NOW - day * DAY,
                team_id=EVIL if team == 9 else f"team_{team}",
                model=f"vendor/model-{day % 8}",
                status="reused" if day % 5 == 0 else "ok",
                cost_nano=0 if day % 5 == 0 else (team + 1) * 10**8,
                saved_nano=7 if day % 5 == 0 else 0,
                baseline_nano=0 if day % 5 == 0 else (team + 1) * 10**9,
            )
            for team in range(10)
            for day in range(31)
        ]
        write(ledger, rows)
        midnight = NOW.replace(hour=0)
        for name, limit, spent, held in (
            ("team=team_8/day", 2 * 10**9, 10**9, 10**8),
            (f"team={EVIL}/day", 10**9, 10**9, 0),
            ("organisation/day", 100 * 10**9, 10**9, 0),
        ):
            with ledger.write() as conn:
                conn.execute(
                    insert(llm_budgets),
                    {
                        "budget_id": f"{name}@2026-03-04",
                        "name": name,
                        "period": "day",
                        "period_start": "2026-03-04",
                        "limit_nano": limit,
                        "spent_nano": spent,
                        "held_nano": held,
                        "updated_at": NOW,
                        "starts_at": midnight,
                        "ends_at": midnight + DAY,
                    },
                )
        yield ledger


class Page(HTMLParser):
    """Tags, addresses and words of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(PNG)
    return struct.unpack(">II", png[16:24])


def test_the_figures_are_those_of_the_ledger(filled: Ledger) -> None:
    report = read_costs(filled, now=NOW)
    assert (report.since, report.until, report.unit, len(report.bars)) == (date(2026, 2, 3), NOW.date(), "day", 30)
    assert [team.team for team in report.teams[:3]] == [EVIL, "team_8", "team_7"]
    costliest = report.teams[0]
    assert (costliest.cost, costliest.saved, costliest.baseline) == (24 * 10**9, 6 * 7, 24 * 10**10)
    assert costliest.routing_saved == 24 * 9 * 10**9
    assert (sum(costliest.called), sum(costliest.reused), costliest.requests) == (24, 6, 30)
    assert costliest.by_bar[-1] == 0, "today's answer was reused"
    assert costliest.by_bar[-2] == 10**9
    assert sum(costliest.by_bar) == costliest.cost


@pytest.mark.parametrize(("days", "unit", "bars"), [(62, "day", 62), (100, "week", 15), (700, "month", 24)])
def test_a_long_period_is_shown_by_week_or_month(filled: Ledger, days: int, unit: str, bars: int) -> None:
    report = read_costs(filled, now=NOW, since=NOW.date() - (days - 1) * DAY)
    assert (report.unit, len(report.bars)) == (unit, bars)
    assert sum(team.cost for team in report.teams) == sum(range(1, 11)) * 24 * 10**8
    assert size(overview(report)) > (1000, 500)


def test_the_page_embeds_a_chart_of_each_team_and_escapes_its_names(filled: Ledger, tmp_path: Path) -> None:
    report = read_costs(filled, now=NOW)
    names = write_report(replace(report, teams=report.teams[:3]), str(tmp_path / "out"))
    assert len(names) == 5
    html = (tmp_path / "out" / "index.html").read_text()
    page = Page(html)
    assert "script" not in page.tags
    assert EVIL in page.words
    assert page.tags.count("img") == 4
    assert {address.partition(":")[0] for address in page.addresses if not address.startswith("#")} == {"data"}
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//", html), "nothing is fetched"
    embedded = [base64.b64decode(address.partition(",")[2]) for address in page.addresses if "base64" in address]
    assert embedded[0] == (tmp_path / "out" / "overview.png").read_bytes()
    assert set(embedded) == {(tmp_path / "out" / name).read_bytes() for name in names if name.endswith(".png")}


def test_budgets_stand_with_their_forecast_and_state(filled: Ledger) -> None:
    report = read_costs(filled, now=NOW)
    words = [
        word for word in Page(render(report, PNG, dict.fromkeys([t.team for t in report.teams], PNG))).words if word
    ]
    budgets = words[words.index("Budgets now") :]
    row_of = budgets.index("team=team_8/day")
    assert budgets[row_of : row_of + 8] == [
        "team=team_8/day",
        "2026-03-04",
        "2.00",
        "1.00",
        "0.100",
        "0.900",
        "2.00",
        "in hand",
    ]
    evil = budgets.index(f"team={EVIL}/day")
    assert budgets[evil + 7] == "used up"
    assert budgets[budgets.index("organisation/day") + 6 : budgets.index("organisation/day") + 8] == ["2.00", "in hand"]


def test_equal_figures_are_equal_files(filled: Ledger) -> None:
    report = read_costs(filled, now=NOW)
    assert team_chart(report, report.teams[0]) == team_chart(report, report.teams[0])


def test_charts_are_drawn_in_colours_that_stay_apart(filled: Ledger) -> None:
    """Each of the six most expensive teams has its colour in the picture."""
    from PIL import Image

    colours = {tuple(bytes.fromhex(code)) for code in ("0072B2", "E69F00", "009E73", "D55E00", "56B4E9", "CC79A7")}
    picture = Image.open(io.BytesIO(overview(read_costs(filled, now=NOW)))).convert("RGB")
    found = {colour for number, colour in picture.getcolors(1 << 24) if number > 200}
    assert colours <= found
    assert (154, 154, 154) in found, "the other teams"


def test_an_empty_ledger_gives_a_page_that_says_so(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        assert write_report(read_costs(ledger, now=NOW), str(tmp_path / "out")) == ["overview.png", "index.html"]
    words = Page((tmp_path / "out" / "index.html").read_text()).words
    assert "No call was made in this time." in words
    assert "No budget is open." in words


def test_a_report_goes_wherever_rows_may_live(filled: Ledger, place: Place) -> None:
    report = replace(read_costs(filled, now=NOW), teams=read_costs(filled, now=NOW).teams[:1])
    names = write_report(report, place.uri("report"), place.options)
    assert place.names("report") == sorted(names)


def test_a_place_that_cannot_be_written_to_is_named(filled: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="file"):
        write_report(read_costs(filled, now=NOW), str(tmp_path / "file" / "out"))


def test_without_matplotlib_the_error_names_the_line_to_run(filled: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    report = read_costs(filled, now=NOW)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PermanentError, match=r"pip install 'airflow-ai-provider\[reports\]'"):
        overview(report)


def test_the_smaller_series_are_added_up() -> None:
    series = [Series(f"s{n}", (n, 1)) for n in range(9)]
    shown = top(series, 6)
    assert [one.name for one in shown] == ["s8", "s7", "s6", "s5", "s4", "s3", "3 others"]
    assert shown[-1].nano == (0 + 1 + 2, 3)
    assert sum(one.total for one in shown) == sum(one.total for one in series)
    assert len(top(series[:7], 6)) == 7, "one alone is no others"


@pytest.mark.parametrize("team", [EVIL, "客户", "../../etc", "Support", "a" * 200, ".hidden", "overview", " "])
def test_files_are_named_safely_and_apart(team: str) -> None:
    assert re.fullmatch(r"[a-z0-9_-][a-z0-9._-]{0,60}\.png", file_name(team))
    assert file_name(team) not in {file_name(other) for other in ("support", "overview.png", f"{team}2")}
    assert file_name(team) != "overview.png"
    assert file_name("support") == "support.png"


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "0"),
        (1, "0.000000001"),
        (123_456_789, "0.123"),
        (1_234_567, "0.00123"),
        (999_999_999, "1.000"),
        (1_005_000_000, "1.00"),
        (1_234_567_890_000, "1,234.57"),
        (-2_500_000_000, "-2.50"),
    ],
)
def test_amounts_are_shown_with_the_figures_that_count(nano: int, text: str) -> None:
    assert usd(nano) == text


def test_texts_are_clipped_and_shares_rounded() -> None:
    assert clipped("a\n b", 9) == "a b"
    assert clipped("abcdef", 4) == "abc…"
    assert (percent(1, 8), percent(0, 0)) == ("12 %", "")


def test_a_report_knows_its_period() -> None:
    report = CostReport(date(2026, 1, 1), date(2026, 1, 1), "day", (date(2026, 1, 1),), (), (), NOW)
    assert size(overview(report))[0] > 1000
    assert size(overview(report))[1] > 500
