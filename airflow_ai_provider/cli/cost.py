"""``airflow ai cost``."""

from __future__ import annotations

import sys
from argparse import Namespace

from airflow_ai_provider.cli.output import GOOD, command, show
from airflow_ai_provider.errors import LedgerError


@command
def cost(args: Namespace) -> int:
    """``airflow ai cost``"""
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.ledger import open_ledger
    from airflow_ai_provider.ledger.reports import cost_report

    if args.since and args.until and args.since > args.until:
        raise LedgerError(f"--since {args.since} is after --until {args.until}")
    settings = settings_from_airflow()
    with open_ledger(settings.ledger_url, settings.home) as ledger:
        rows = cost_report(ledger, by=args.by, since=args.since, until=args.until)
        if not rows:
            print(f"nothing in ledger {ledger.place} for these days", file=sys.stderr)
    show(rows, args.output)
    return GOOD
