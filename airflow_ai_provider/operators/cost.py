"""What calls have cost, as a table in the task's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from airflow.sdk import Context

from airflow_ai_provider.operators.base import HeartOperator, day_of

GROUPINGS = tuple("hour day week month team dag task run model provider route tier deployment".split())
COUNTS = ("requests", "reused", "errors", "unknown", "input_tokens", "output_tokens")
MONEY = ("cost_usd", "saved_usd")


class CostReportOperator(HeartOperator):
    """Print what LLM calls have cost and what reuse has saved, and return the totals.

    :param by: what to group by, some of ``day``, ``team``, ``dag``, ``model``.
    :param since: first day to count, UTC, such as ``2025-01-31`` or ``{{ ds }}`` (templated).
    :param until: last day to count, UTC (templated).
    """

    template_fields: Sequence[str] = ("since", "until")
    ui_color = "#f4f1e8"

    def __init__(
        self,
        *,
        by: Sequence[str] = ("team", "model"),
        since: str | None = None,
        until: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        names = [by] if isinstance(by, str) else list(by)
        if not names or len(set(names)) != len(names) or not set(names) <= set(GROUPINGS):
            raise ValueError(f"CostReportOperator {self.task_id}: by {names}: expected some of {', '.join(GROUPINGS)}")
        self.by = names
        self.since = since
        self.until = until

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.hooks.settings import settings_from_airflow
        from airflow_ai_provider.ledger import open_ledger
        from airflow_ai_provider.ledger.reports import cost_report

        settings = settings_from_airflow()
        with open_ledger(settings.ledger_url, settings.home) as ledger:
            rows = cost_report(ledger, by=self.by, since=day_of(self.since), until=day_of(self.until))
        self.log.info("Cost by %s\n%s", ", ".join(self.by), text_table(rows))
        return totals(rows)


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
