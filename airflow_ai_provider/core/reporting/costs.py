"""Figures of a cost report, and how they are written for people.

Figures as people read them.

The figures of a cost report, apart from how they are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from airflow_ai_provider.core.ledger.call_costs import NANO, usd_from_nano
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.reports.costs import budget_report, cost_report

_FINEST = 9


def usd(nano: int, *, digits: int = 3) -> str:
    """An amount in USD: cents from a dollar on, ``digits`` figures that count below it."""
    amount = usd_from_nano(nano)
    if amount == 0:
        return "0"
    if abs(amount) >= 1:
        return f"{amount:,.2f}"
    places = min(_FINEST, digits - 1 - amount.adjusted())
    return f"{amount.quantize(Decimal(1).scaleb(-places)):f}"


def count(number: int) -> str:
    return f"{number:,}"


def percent(part: int, whole: int) -> str:
    """``12 %``; empty where there is no whole."""
    return f"{Decimal(100 * part) / whole:.0f} %" if whole else ""


def clipped(text: str, most: int) -> str:
    """The text in one line of at most ``most`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


DEFAULT_DAYS = 30
_MOST_BARS = 62
"""Bars that can still be told apart on a chart as wide as a page; longer periods are shown by week or month."""
_UNITS = (("day", 1), ("week", 7), ("month", 30))
OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Series:
    """One figure for each bar of a chart."""

    name: str
    nano: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.nano)


@dataclass(frozen=True, slots=True)
class TeamCosts:
    """What one team has spent. Amounts in nano-dollars."""

    team: str
    models: tuple[Series, ...]
    """Costs by model, the highest first."""
    called: tuple[int, ...]
    """Requests sent, for each bar."""
    reused: tuple[int, ...]
    """Requests answered from the response store."""
    saved: int
    baseline: int
    unknown: int
    """Attempts whose cost is not known, an upper bound of which counts as spent."""
    errors: int

    @property
    def cost(self) -> int:
        return sum(model.total for model in self.models)

    @property
    def requests(self) -> int:
        return sum(self.called) + sum(self.reused)

    @property
    def routing_saved(self) -> int:
        return self.baseline - self.cost if self.baseline else 0

    @property
    def by_bar(self) -> tuple[int, ...]:
        return tuple(map(sum, zip(*(model.nano for model in self.models), strict=True)))


@dataclass(frozen=True, slots=True)
class CostReport:
    """What every team has spent in a period, and where the open budgets stand."""

    since: date
    until: date
    unit: str
    """``day``, ``week`` or ``month``: what one bar is."""
    bars: tuple[date, ...]
    """The first day of each bar."""
    teams: tuple[TeamCosts, ...]
    """The highest first."""
    budgets: tuple[Mapping[str, Any], ...]
    """As ``budget_report`` tells them, amounts in USD."""
    made_at: datetime


def read_costs(ledger: Ledger, *, now: datetime, since: date | None = None, until: date | None = None) -> CostReport:
    """The figures from ``since`` (default: 30 days in all) to ``until`` (default: today), UTC."""
    last = until or now.date()
    first = since or last - timedelta(days=DEFAULT_DAYS - 1)
    unit = next((name for name, days in _UNITS if (last - first).days / days < _MOST_BARS), "month")
    bars = _bars(unit, first, last)
    rows = cost_report(ledger, by=[unit, "team", "model"], since=first, until=last)
    names = sorted({row["team"] for row in rows})
    teams = [_team(name, [row for row in rows if row["team"] == name], unit, bars) for name in names]
    return CostReport(
        since=first,
        until=last,
        unit=unit,
        bars=tuple(bars),
        teams=tuple(sorted(teams, key=lambda team: (-team.cost, team.team))),
        budgets=tuple(budget_report(ledger, now=now)),
        made_at=now,
    )


def top(series: Sequence[Series], most: int) -> list[Series]:
    """The ``most`` series with the highest costs, and the others added up."""
    ranked = sorted(series, key=lambda one: (-one.total, one.name))
    if len(ranked) <= most + 1:
        return ranked
    rest = ranked[most:]
    return [*ranked[:most], Series(f"{len(rest)} {OTHERS}", tuple(map(sum, zip(*(s.nano for s in rest), strict=True))))]


def _team(name: str, rows: Sequence[Mapping[str, Any]], unit: str, bars: Sequence[date]) -> TeamCosts:
    place = {bar: index for index, bar in enumerate(bars)}
    models: dict[str, list[int]] = {}
    called, reused = [0] * len(bars), [0] * len(bars)
    for row in rows:
        at = place[_first_day(unit, row[unit])]
        models.setdefault(row["model"], [0] * len(bars))[at] += _nano(row["cost_usd"])
        called[at] += row["requests"] - row["reused"]
        reused[at] += row["reused"]
    series = sorted((Series(model, tuple(nano)) for model, nano in models.items()), key=lambda one: -one.total)
    return TeamCosts(
        team=name,
        models=tuple(series),
        called=tuple(called),
        reused=tuple(reused),
        saved=sum(_nano(row["saved_usd"]) for row in rows),
        baseline=sum(_nano(row["baseline_usd"]) for row in rows),
        unknown=sum(row["unknown"] for row in rows),
        errors=sum(row["errors"] for row in rows),
    )


def _bars(unit: str, first: date, last: date) -> list[date]:
    days = (first + timedelta(days=number) for number in range((last - first).days + 1))
    return sorted({_bar(unit, day) for day in days})


def _bar(unit: str, day: date) -> date:
    match unit:
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
        case _:
            return day


def _first_day(unit: str, group: Any) -> date:
    """Months come as ``2025-01``."""
    return date.fromisoformat(f"{group}-01") if unit == "month" else group


def _nano(usd: Any) -> int:
    return int(usd * NANO)
