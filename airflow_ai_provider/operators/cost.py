"""What calls have cost, as a table in the task's log and as a page with charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context

from airflow_ai_provider.operators.base import AIBaseOperator, day_of

if TYPE_CHECKING:
    from airflow_ai_provider.core.ledger.database import Ledger
    from airflow_ai_provider.core.settings import Settings

GROUPINGS = tuple("hour day week month team dag task run model provider route tier deployment".split())
COUNTS = ("requests", "reused", "errors", "unknown", "input_tokens", "output_tokens")
MONEY = ("cost_usd", "saved_usd")


class CostReportOperator(AIBaseOperator):
    """Print what LLM calls have cost and what reuse has saved, and return the totals; with a target, draw them too.

    The target gets ``index.html``, one page that needs nothing besides itself, with a chart of each team and every
    open budget with its forecast, and the charts as PNG. Charts need the extra ``reports``.

    :param by: what to group the printed table by, some of ``hour``, ``day``, ``week``, ``month``, ``team``, ``dag``,
        ``task``, ``run``, ``model``, ``provider``, ``route``, ``tier``, ``deployment``.
    :param since: first day to count, UTC, such as ``2025-01-31`` or ``{{ ds }}`` (templated).
    :param until: last day to count, UTC (templated).
    :param target: folder or object-store URL of the page, which may name a connection:
        ``s3://CONN_ID@bucket/prefix`` (templated). Without ``since`` it shows 30 days.
    """

    template_fields: Sequence[str] = ("since", "until", "target")
    ui_color = "#f4f1e8"

    def __init__(
        self,
        *,
        by: Sequence[str] = ("team", "model"),
        since: str | None = None,
        until: str | None = None,
        target: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        names = [by] if isinstance(by, str) else list(by)
        if not names or len(set(names)) != len(names) or not set(names) <= set(GROUPINGS):
            raise ValueError(f"CostReportOperator {self.task_id}: by {names}: expected some of {', '.join(GROUPINGS)}")
        self.by = names
        self.since = since
        self.until = until
        self.target = target

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.core.installation import Installation
        from airflow_ai_provider.core.ledger.reports.costs import cost_report
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        settings = settings_from_airflow()
        since, until = day_of(self.since), day_of(self.until)
        with Installation(settings) as installation:
            ledger = installation.ledger
            rows = cost_report(ledger, by=self.by, since=since, until=until)
            self.log.info("Cost by %s\n%s", ", ".join(self.by), text_table(rows))
            drawn = {"report": self._draw(settings, ledger, since, until)} if self.target else {}
        return {**totals(rows), **drawn}

    def _draw(self, settings: Settings, ledger: Ledger, since: date | None, until: date | None) -> str:
        """The URI of the page, which is written."""
        from airflow_ai_provider.core.reporting.costs import read_costs
        from airflow_ai_provider.core.reporting.page import PAGE, write_report
        from airflow_ai_provider.hooks.settings import store

        assert self.target
        uri, options = store(settings, self.target, f"target of {self.task_id}")
        report = read_costs(ledger, now=ledger.now(), since=since, until=until)
        names = write_report(report, uri, options)
        page = f"{uri.rstrip('/')}/{PAGE}"
        self.log.info("%d charts of %d teams in %s", len(names) - 1, len(report.teams), page)
        return page


def totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums over all groups; money as decimal strings, which XCom keeps exactly."""
    counts = {name: sum(int(row[name]) for row in rows) for name in COUNTS}
    money = {name: str(sum((Decimal(row[name]) for row in rows), Decimal(0))) for name in MONEY}
    return {**counts, **money}


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned plain text: names of columns, a line, numbers to the right."""
    if not rows:
        return "nothing yet"
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    to_right = [isinstance(rows[0][name], int | float | Decimal) for name in names]
    lines = [names, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, to_right, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    return f"{value:.6f}" if isinstance(value, Decimal) else str(value)
