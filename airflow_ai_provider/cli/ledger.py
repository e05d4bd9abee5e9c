"""``airflow ai ledger …``: what is not upkeep."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.cli.output import FINDING, GOOD, bars, command, plain, progress, say, show
from airflow_ai_provider.errors import LedgerError, PolicyError

if TYPE_CHECKING:
    from airflow_ai_provider.gateway.settings import Settings
    from airflow_ai_provider.ledger.reconciled import ReconcileReport
    from airflow_ai_provider.ledger.reprice import PriceBook
    from airflow_ai_provider.policy import Deployment


@command
def reprice(args: Namespace) -> int:
    """``airflow ai ledger reprice``"""
    if not args.dry_run:
        raise LedgerError(
            "old rows keep the price they were billed at: nothing is rewritten. "
            "Add --dry-run to see what other prices would have cost"
        )
    if args.since and args.until and args.since > args.until:
        raise LedgerError(f"--since {args.since} is after --until {args.until}")
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.ledger.money import usd_from_nano
    from airflow_ai_provider.ledger.reprice import count_rows, reprice

    settings = settings_from_airflow()
    book = _book(args.prices, settings)
    period = {"since": args.since, "until": args.until}
    with Installation(settings) as installation:
        ledger = installation.ledger
        with progress("rows priced", lambda: count_rows(ledger, **period)) as on_rows:
            found = reprice(ledger, book, by=args.by, on_rows=on_rows, **period)
        if not found.groups:
            print(f"nothing to price in ledger {ledger.place} for these days", file=sys.stderr)
    show(found.rows(), args.output)
    for (deployment, model), sums in sorted(found.no_price.items()):
        billed = plain(usd_from_nano(sums.no_price_billed))
        print(
            f"no price in {args.prices}: deployment {deployment!r}, model {model!r}: "
            f"{sums.no_price} requests, billed at {billed} USD",
            file=sys.stderr,
        )
    return FINDING if found.no_price else GOOD


def _book(prices: str, settings: Settings) -> PriceBook:
    from airflow_ai_provider.ledger.reprice import litellm_book, policy_book, read_price_list

    if prices == "litellm":
        return litellm_book
    if prices == "policy":
        from airflow_ai_provider.policy import load_policy

        policy = load_policy(settings.policy_path)
        return policy_book(_finder(policy.deployments, settings), policy.digest)
    return read_price_list(Path(prices)).book(prices)


def _finder(deployments: dict[str, Deployment], settings: Settings) -> Callable[[str], Deployment | None]:
    from airflow_ai_provider.core.pipeline.deployments import as_called

    def find(name: str) -> Deployment | None:
        if name not in deployments:
            return None
        try:
            return as_called(deployments[name], settings)
        except LookupError as error:
            raise PolicyError(f"deployments.{name}: {error}") from None

    return find


@command
def reconcile(args: Namespace) -> int:
    """``airflow ai ledger reconcile``"""
    from airflow_ai_provider.core.administration.invoices import reconcile_invoice
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    with bars("lines read", "attempts matched") as (read, matched):
        report = reconcile_invoice(
            settings_from_airflow(),
            args.invoice,
            wanted=args.format,
            covers=args.covers,
            deployments=args.deployments,
            dry_run=args.dry_run,
            progress=lambda step, done: (read if step == "read" else matched)(done),
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
