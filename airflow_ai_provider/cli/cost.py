"""``airflow ai cost``."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from datetime import date, datetime, timedelta

from airflow_ai_provider.cli.output import GOOD, command, show
from airflow_ai_provider.errors import LedgerError

_LAST = re.compile(r"([1-9]\d{0,4})([hdw])")
_DAYS = {"d": 1, "w": 7}


@command
def cost(args: Namespace) -> int:
    """``airflow ai cost``"""
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.ledger.reports import cost_report, dearest, rows_since, total

    settings = settings_from_airflow()
    with Installation(settings) as installation:
        ledger = installation.ledger
        since, until = period_of(args, ledger.now())
        rows = cost_report(ledger, by=args.by, since=since, until=until)
        kept = rows_since(ledger, args.by)
        if not rows:
            print(f"nothing in ledger {ledger.place} for these days", file=sys.stderr)
    if kept and (since is None or date(since.year, since.month, since.day) < kept):
        print(f"rows from before {kept} are no longer kept; day, team, dag and model reach further", file=sys.stderr)
    shown = dearest(rows, args.top) if args.top else rows
    if rows and args.output == "table":
        named = dict.fromkeys(args.by, "") | {args.by[0]: f"total of {len(rows)}"}
        shown = [*shown, {**named, **total(rows)}]
    show(shown, args.output)
    return GOOD


def period_of(args: Namespace, now: datetime) -> tuple[date | datetime | None, date | None]:
    """First and last day (UTC) that the arguments ask for, or the moment that ``--last`` hours began.

    Raises ``LedgerError`` where they contradict each other.
    """
    given = [name for name in ("last", "this") if getattr(args, name)]
    if args.since or args.until:
        given.append("since and --until")
    if len(given) > 1:
        raise LedgerError(f"--{given[0]} cannot stand beside --{given[1]}; give one period")
    today = now.date()
    if args.last:
        return _last(args.last, now), today
    if args.this:
        return _first_of(args.this, today), today
    if args.since and args.until and args.since > args.until:
        raise LedgerError(f"--since {args.since} is after --until {args.until}")
    return args.since, args.until


def _last(text: str, now: datetime) -> date | datetime:
    match = _LAST.fullmatch(text)
    assert match, "checked by the parser"
    number, unit = int(match[1]), match[2]
    return now - timedelta(hours=number) if unit == "h" else now.date() - timedelta(days=number * _DAYS[unit] - 1)


def _first_of(period: str, today: date) -> date:
    match period:
        case "week":
            return today - timedelta(days=today.weekday())
        case "month":
            return today.replace(day=1)
        case "year":
            return today.replace(month=1, day=1)
        case _:
            return today
