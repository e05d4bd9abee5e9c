"""``airflow ai ledger …``.

``airflow ai ledger …``: what is not upkeep.

``airflow ai ledger maintain``, ``check`` and ``grant``.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.cli.output import FINDING, GOOD, bars, command, plain, progress, say, show
from airflow_ai_provider.core.errors import LedgerError, PolicyError

if TYPE_CHECKING:
    from airflow_ai_provider.core.ledger.database import Ledger
    from airflow_ai_provider.core.ledger.maintenance.upkeep import Drift, Maintenance
    from airflow_ai_provider.core.ledger.reconcile.report import ReconcileReport
    from airflow_ai_provider.core.ledger.reports.reprice import PriceBook
    from airflow_ai_provider.core.policy import Deployment
    from airflow_ai_provider.core.settings import Settings


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
    from airflow_ai_provider.core.ledger.call_costs import usd_from_nano
    from airflow_ai_provider.core.ledger.reports.reprice import count_rows, reprice
    from airflow_ai_provider.hooks.settings import settings_from_airflow

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
    from airflow_ai_provider.core.ledger.reports.reprice import litellm_book, policy_book, read_price_list

    if prices == "litellm":
        return litellm_book
    if prices == "policy":
        from airflow_ai_provider.core.policy import load_policy

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
    from airflow_ai_provider.core.administration.ledger import reconcile_invoice
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


_CHECKED_DAYS = 7


@command
def maintain(args: Namespace) -> int:
    """``airflow ai ledger maintain``"""
    from airflow_ai_provider.core.administration.ledger import maintain_ledger
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    settings = settings_from_airflow()
    with progress("months dropped") as told:
        done = maintain_ledger(
            settings, keep_months=args.keep_months, dry_run=args.dry_run, force=args.force, progress=told
        )
    rows = _months(done, "would be " if args.dry_run else "")
    if rows or args.output != "table":
        show(rows, args.output)
    else:
        say(args, "nothing to do")
    return FINDING if done.kept else GOOD


def _months(done: Maintenance, would: str) -> list[dict[str, Any]]:
    def told(month: str, what: str, rows: int = 0, because: str = "") -> dict[str, Any]:
        return {"month": month, "done": what, "rows": rows, "because": because}

    return [
        *(told(name, f"{would}made") for name in done.made),
        *(told(old.name, f"{would}dropped", old.rows) for old in done.dropped),
        *(told(old.name, "kept", old.rows, old.needed or "an older month is kept") for old in done.kept),
    ]


@command
def check(args: Namespace) -> int:
    """``airflow ai ledger check``"""
    from airflow_ai_provider.core.administration.ledger import repair_ledger
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.ledger.maintenance.upkeep import days_to_check
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    settings = settings_from_airflow()
    with Installation(settings) as installation:
        ledger = installation.ledger
        since, until = _days_asked(args, ledger.now().date())
        with ledger.read() as conn:
            days, lost = days_to_check(conn, since, until)
        found = _drift(ledger, days)
        if found or args.output != "table":
            show([asdict(one) for one in found], args.output)
        if args.repair and found:
            broken = sorted({one.day for one in found})
            repair_ledger(settings, ledger, broken)
            found = _drift(ledger, broken)
            say(args, f"rewrote {len(broken)} days from their rows")
    if lost:
        say(args, f"{lost} days have lost their rows to retention and cannot be checked")
    say(args, f"{len(days)} days checked, {len(found)} figures differ")
    return FINDING if found else GOOD


@command
def grant(args: Namespace) -> int:
    """``airflow ai ledger grant``"""
    from airflow_ai_provider.core.administration.ledger import grant_ledger
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.ledger.maintenance.read_access import grant_statements
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    settings = settings_from_airflow()
    with Installation(settings) as installation:
        ledger = installation.ledger
        statements = grant_statements(ledger, args.role)
        if args.print_sql:
            print("\n".join(f"{statement};" for statement in statements))
            return GOOD
        excess = grant_ledger(settings, ledger, args.role)
    show([{"granted": statement} for statement in statements], args.output)
    for line in excess:
        print(f"finding: {line}", file=sys.stderr)
    return FINDING if excess else GOOD


def _days_asked(args: Namespace, today: date) -> tuple[date | None, date]:
    if args.all and args.since:
        raise LedgerError("--all cannot stand beside --since; give one period")
    until = args.until or today
    since = None if args.all else args.since or until - timedelta(days=_CHECKED_DAYS - 1)
    if since and since > until:
        raise LedgerError(f"--since {since} is after --until {until}")
    return since, until


def _drift(ledger: Ledger, days: list[date]) -> list[Drift]:
    from airflow_ai_provider.core.ledger.maintenance.upkeep import check_days

    found: list[Drift] = []
    with progress("days checked") as told:
        for number, drift in enumerate(check_days(ledger, days), 1):
            found += drift
            told(number, len(days))
    return found
