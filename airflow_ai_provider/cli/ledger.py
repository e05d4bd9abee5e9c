"""What ``airflow ai ledger`` does. Exit status: 0 equal, 1 something differs, 2 could not run."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.cli.output import FINDING, GOOD, command, plain, say, show

if TYPE_CHECKING:
    from airflow_ai_provider.ledger.reconciled import ReconcileReport


@command
def reconcile(args: Namespace) -> int:
    """``airflow ai ledger reconcile``"""
    from airflow.utils.platform import getuser

    from airflow_ai_provider.hooks.reconcile import reconcile_invoice
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    with _progress() as progress:
        report = reconcile_invoice(
            settings_from_airflow(),
            args.invoice,
            wanted=args.format,
            covers=args.covers,
            deployments=args.deployments,
            dry_run=args.dry_run,
            user=getuser(),
            progress=progress,
        )
    _print(args, report)
    return GOOD if report.equal else FINDING


def _print(args: Namespace, report: ReconcileReport) -> None:
    days, findings = [day.row() for day in report.days], [finding.row() for finding in report.findings]
    if args.output in ("json", "yaml"):
        document = {"totals": report.totals(), "days": _plain(days), "findings": _plain(findings)}
        show_document(document, args.output)
        return
    for rows in filter(None, (days, findings)):
        show(rows, args.output)
    if more := len(report.findings) - len(findings):
        say(args, f"and {more} more findings")
    would = "would be " if report.dry_run else ""
    totals = report.totals()
    say(
        args,
        f"{report.invoice} ({report.format}): {report.lines} lines, {report.matched} attempts matched; "
        f"{report.resolved} unknown {would}resolved ({report.not_billed} not charged), {report.corrected} "
        f"{would}corrected; {totals['lowered_usd']} USD {would}lowered, {totals['raised_usd']} USD {would}raised; "
        f"{len(report.findings)} findings",
    )


def show_document(document: dict[str, Any], output: str) -> None:
    """One document for programs."""
    from airflow.cli.simple_table import AirflowConsole

    console = AirflowConsole()
    (console.print_as_json if output == "json" else console.print_as_yaml)(document)


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: plain(value) for name, value in row.items()} for row in rows]


@contextmanager
def _progress() -> Iterator[Callable[[str, int], None]]:
    """A bar on standard error, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda step, done: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {
            "read": bar.add_task("lines read", total=None),
            "match": bar.add_task("attempts matched", total=None),
        }
        yield lambda step, done: bar.update(tasks[step], completed=done)
