"""A cost report as files: one HTML page that needs nothing besides itself, and its charts as PNG."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.core.errors import SinkError
from airflow_ai_provider.core.ledger.call_costs import nano_from_usd
from airflow_ai_provider.core.reporting.charts import overview, period, team_chart
from airflow_ai_provider.core.reporting.costs import CostReport, count, percent, usd
from airflow_ai_provider.core.rows.filesystem import is_object_store, resolve, translated, write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "index.html"
OVERVIEW = "overview.png"
_SAFE_NAME = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,79}")
_UNSAFE = re.compile(r"[^a-z0-9._-]+")


def write_report(report: CostReport, uri: str, storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """Write the page and its charts into the folder ``uri``; returns their names, the page last.

    Raises ``SinkError`` and ``StoreUnavailable`` for the place, ``PermanentError`` where matplotlib is not installed.
    """
    filesystem, path = resolve(uri, storage_options, error=SinkError)
    with translated(uri, SinkError):
        if not is_object_store(filesystem):
            filesystem.makedirs(path, exist_ok=True)  # before the drawing, which takes longer
    charts = {team.team: team_chart(report, team) for team in report.teams}
    files = {file_name(team): png for team, png in charts.items()}
    files[OVERVIEW] = overview(report)
    files[PAGE] = render(report, files[OVERVIEW], charts).encode()
    with translated(uri, SinkError):
        for name, data in files.items():
            write_atomic(filesystem, f"{path}/{name}", data)
    return list(files)


def file_name(team: str) -> str:
    """A name for a team's chart that every file system takes, and that no two teams share."""
    if _SAFE_NAME.fullmatch(team) and f"{team}.png" != OVERVIEW:
        return f"{team}.png"
    readable = _UNSAFE.sub("-", team.lower())[:40].strip("-.") or "team"
    return f"{readable}-{hashlib.sha256(team.encode()).hexdigest()[:8]}.png"


def render(report: CostReport, overview_png: bytes, team_pngs: Mapping[str, bytes]) -> str:
    """The page. Every text of the ledger in it is escaped."""
    return (
        _environment()
        .get_template("costs.html.j2")
        .render(
            report=report,
            period=period(report),
            overview=_embedded(overview_png),
            charts={team: _embedded(png) for team, png in team_pngs.items()},
            budgets=[_budget(row) for row in report.budgets],
            total=_total(report),
        )
    )


def _total(report: CostReport) -> dict[str, int]:
    names = ("cost", "saved", "routing_saved", "requests", "unknown", "errors")
    sums = {name: sum(getattr(team, name) for team in report.teams) for name in names}
    return {**sums, "reused": sum(sum(team.reused) for team in report.teams)}


def _budget(row: Mapping[str, Any]) -> dict[str, Any]:
    """A budget as its line shows it: shares of the limit, and in a word how it stands."""
    limit, spent, held = (nano_from_usd(row[name]) for name in ("limit_usd", "spent", "held"))
    end = None if row["forecast_usd"] is None else nano_from_usd(row["forecast_usd"])
    return {
        "name": row["budget"],
        "period": row["period"],
        "limit": limit,
        "spent": spent,
        "held": held,
        "left": limit - spent - held,
        "forecast": end,
        "spent_share": _share(spent, limit),
        "held_share": min(_share(held, limit), 100 - _share(spent, limit)),
        "state": _state(limit, spent + held, end),
    }


def _state(limit: int, used: int, forecast: int | None) -> str:
    if used >= limit:
        return "used up"
    if forecast is not None and forecast > limit:
        return "will not last"
    return "nearly used up" if used * 10 >= limit * 8 else "in hand"


def _share(part: int, whole: int) -> Decimal:
    """Per cent, from 0 to 100."""
    return min(Decimal(100), (Decimal(100 * part) / whole).quantize(Decimal("0.1"))) if whole else Decimal(100)


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"usd": usd, "count": count}
    environment.globals["percent"] = percent
    return environment
