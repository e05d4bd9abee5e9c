"""Charts of a cost report as PNG, drawn without a display.

Colours are those of Okabe and Ito, "Color Universal Design" (2008), which people with any kind of colour blindness can
tell apart; bars are divided by white lines and legends stand in the order of the bars besides. Amounts become floating
point here, where they become pixels, and nowhere else.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.core.errors import PermanentError
from airflow_ai_provider.core.ledger.call_costs import NANO
from airflow_ai_provider.core.reporting.costs import CostReport, Series, TeamCosts, clipped, count, top, usd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
_REST = "#9A9A9A"
_INK, _QUIET, _GRID = "#222222", "#5F6368", "#E3E3E3"
_SERIES = len(_COLOURS)
_LABELS = 10
"""Dates on an axis, about."""
_TEAMS = 15
"""Teams that the ranking shows one by one."""
_DPI = 144
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "Noto Sans", "Noto Sans Arabic")
"""The first comes with matplotlib; the others give the letters it lacks, where they are installed."""
_STYLE: Any = {
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _QUIET,
    "axes.edgecolor": _GRID,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": _GRID,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "ytick.left": False,
    "figure.facecolor": "white",
    "hatch.linewidth": 0.6,
    "text.parse_math": False,
}


def overview(report: CostReport) -> bytes:
    """Every team: costs over time beside the ranking of teams."""
    with _style():
        figure = _figure(12.5, max(4.6, 1.9 + 0.3 * min(len(report.teams), _TEAMS + 1)))
        over_time, ranking = figure.subplots(1, 2, width_ratios=(1.75, 1))
        teams = [Series(team.team, team.by_bar) for team in report.teams]
        _stacked(over_time, report, top(teams, _SERIES), f"Cost per {report.unit} (USD)")
        _dates(over_time, report)
        _ranking(ranking, report.teams)  # and the legend of the bars beside it
        return _png(figure, f"Cost by team, {period(report)}: {usd(sum(team.cost for team in report.teams))} USD")


def team_chart(report: CostReport, team: TeamCosts) -> bytes:
    """One team: costs by model over time, above its requests."""
    with _style():
        figure = _figure(12.5, 6.2)
        costs, requests = figure.subplots(2, 1, sharex=True, height_ratios=(2.1, 1))
        _stacked(costs, report, top(team.models, _SERIES), f"Cost per {report.unit} (USD)")
        _limit(costs, report, team)
        _legend(costs, "Model")
        _requests(requests, report, team)
        return _png(figure, f"{clipped(team.team, 60)}, {period(report)}: {usd(team.cost)} USD")


def period(report: CostReport) -> str:
    """``2025-01-02 to 2025-01-31``"""
    return str(report.since) if report.since == report.until else f"{report.since} to {report.until}"


def _stacked(axes: Axes, report: CostReport, series: Sequence[Series], label: str) -> None:
    places = range(len(report.bars))
    bottom = [0.0] * len(report.bars)
    for number, one in enumerate(series):
        heights = [nano / NANO for nano in one.nano]
        colour = _COLOURS[number] if number < _SERIES else _REST
        name = f"{clipped(one.name, 34)}  {usd(one.total)}"
        axes.bar(places, heights, 0.82, bottom, color=colour, edgecolor="white", linewidth=0.6, label=name)
        bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
    axes.set_ylabel(label)
    axes.set_ylim(0, max(bottom, default=0) * 1.08 or 1)
    axes.yaxis.set_major_formatter(_amount)


def _limit(axes: Axes, report: CostReport, team: TeamCosts) -> None:
    """The team's budget of one bar's length, where it is near enough to be seen."""
    budget = next((row for row in report.budgets if row["budget"] == f"team={team.team}/{report.unit}"), None)
    if budget is None or float(budget["limit_usd"]) > 2.5 * axes.get_ylim()[1]:
        return
    limit = float(budget["limit_usd"])
    axes.axhline(limit, color=_INK, linewidth=1.1, linestyle=(0, (5, 3)), label=f"limit now  {usd(int(limit * NANO))}")
    axes.set_ylim(0, max(axes.get_ylim()[1], limit * 1.08))


def _requests(axes: Axes, report: CostReport, team: TeamCosts) -> None:
    places = range(len(report.bars))
    look: dict[str, Any] = {"width": 0.82, "edgecolor": "white", "linewidth": 0.6}
    called, reused = sum(team.called), sum(team.reused)
    axes.bar(places, team.called, color=_COLOURS[0], label=f"sent  {count(called)}", **look)
    axes.bar(
        places,
        team.reused,
        bottom=team.called,
        color="#BFD9EA",
        hatch="////",
        label=f"reused  {count(reused)}",
        **look,
    )
    highest = max(map(sum, zip(team.called, team.reused, strict=True)), default=0)
    axes.set_ylim(0, highest * 1.08 or 1)
    axes.set_ylabel(f"Requests per {report.unit}")
    axes.yaxis.set_major_locator(_whole_numbers())
    axes.yaxis.set_major_formatter(lambda value, _: count(int(value)))
    _dates(axes, report)
    _legend(axes, "Requests")


def _ranking(axes: Axes, teams: Sequence[TeamCosts]) -> None:
    """Bars lie, so that names of any length can be read."""
    shown = list(teams[:_TEAMS])
    names = [clipped(team.team, 22) for team in shown]
    costs = [team.cost for team in shown]
    if rest := teams[_TEAMS:]:
        names.append(f"{len(rest)} others")
        costs.append(sum(team.cost for team in rest))
    places = range(len(names))
    colours = [_COLOURS[n] if n < _SERIES or len(teams) <= _SERIES else _REST for n in places[:_SERIES]]
    colours += [_REST] * (len(names) - len(colours))
    axes.barh(places, [cost / NANO for cost in costs], 0.74, color=colours)
    axes.set_yticks(list(places), names, color=_INK)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, max((cost / NANO for cost in costs), default=0) * 1.3 or 1)
    for place, cost in zip(places, costs, strict=True):
        axes.annotate(usd(cost), (cost / NANO, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_title("In all (USD)", loc="left", fontsize=10, color=_QUIET)


def _dates(axes: Axes, report: CostReport) -> None:
    step = max(1, -(-len(report.bars) // _LABELS))
    places = list(range(0, len(report.bars), step))
    axes.set_xticks(places, [_date_label(report, places, index) for index in places])
    axes.set_xlim(-0.7, len(report.bars) - 0.3)
    unit = {"day": "Day", "week": "Week from", "month": "Month"}[report.unit]
    axes.set_xlabel(f"{unit} (UTC)")


def _date_label(report: CostReport, places: Sequence[int], index: int) -> str:
    """The year stands where it begins."""
    bar = report.bars[index]
    before = report.bars[index - places[1]] if index and len(places) > 1 else None
    short = f"{bar:%b}" if report.unit == "month" else f"{bar.day} {bar:%b}"
    return f"{short}\n{bar.year}" if before is None or _other_year(before, bar) else short


def _other_year(before: date, after: date) -> bool:
    return before.year != after.year


def _legend(axes: Axes, title: str) -> None:
    """Beside the bars, in their order from above."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        legend = axes.legend(
            handles[::-1],
            names[::-1],
            title=title,
            loc="upper left",
            bbox_to_anchor=(1.005, 1.02),
            frameon=False,
            fontsize=9,
            alignment="left",
        )
        legend.get_title().set_color(_QUIET)


def _amount(value: float, _: object) -> str:
    text = usd(round(value * NANO), digits=2)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _whole_numbers() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4, integer=True)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=_DPI, layout="constrained")


def _png(figure: Figure, title: str) -> bytes:
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box; the page has the name
        figure.savefig(out, format="png", metadata={"Software": None})  # no version: equal figures, equal files
    return out.getvalue()


def _style() -> Any:
    try:
        from matplotlib import rc_context
        from matplotlib.font_manager import get_font_names
    except ImportError:
        raise PermanentError(
            "charts need matplotlib, which is not installed; run pip install 'airflow-ai-provider[reports]'"
        ) from None
    installed = set(get_font_names())
    return rc_context({**_STYLE, "font.family": [name for name in _FONTS if name in installed]})
