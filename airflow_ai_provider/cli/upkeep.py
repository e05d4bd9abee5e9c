"""``airflow ai ledger maintain``, ``check`` and ``grant``."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import asdict
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.cli.output import FINDING, GOOD, command, progress, say, show
from airflow_ai_provider.errors import LedgerError

if TYPE_CHECKING:
    from airflow_ai_provider.ledger.database import Ledger
    from airflow_ai_provider.ledger.maintenance import Maintenance
    from airflow_ai_provider.ledger.rollup import Drift

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
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.ledger.rollup import days_to_check

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
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.ledger.access import grant_statements

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
    from airflow_ai_provider.ledger.rollup import check_days

    found: list[Drift] = []
    with progress("days checked") as told:
        for number, drift in enumerate(check_days(ledger, days), 1):
            found += drift
            told(number, len(days))
    return found
