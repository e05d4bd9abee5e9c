"""``airflow ai cost``, ``budgets`` and ``deployments``.

``airflow ai cost``.

``airflow ai budgets …`` and ``airflow ai deployments …``: limits set by people, and what was stopped.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from datetime import date, datetime, timedelta
from typing import Any

from airflow_ai_provider.cli.output import GOOD, command, say, show
from airflow_ai_provider.core.administration.people import current_person
from airflow_ai_provider.core.errors import LedgerError

_LAST = re.compile(r"([1-9]\d{0,4})([hdw])")
_DAYS = {"d": 1, "w": 7}


@command
def cost(args: Namespace) -> int:
    """``airflow ai cost``"""
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.ledger.reports.costs import cost_report, most_expensive, rows_since, total
    from airflow_ai_provider.hooks.settings import settings_from_airflow

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
    shown = most_expensive(rows, args.top) if args.top else rows
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


@command
def list_budgets(args: Namespace) -> int:
    """``airflow ai budgets list``"""
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.ledger.reports.costs import budget_report
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    settings = settings_from_airflow()
    with Installation(settings) as installation:
        ledger = installation.ledger
        show(budget_report(ledger, now=None if args.all else ledger.now()), args.output)
    return GOOD


@command
def set_budget(args: Namespace) -> int:
    """``airflow ai budgets set``"""
    from airflow_ai_provider.core.administration.budgets import set_budget as set_by_hand
    from airflow_ai_provider.core.ledger.call_costs import usd_from_nano
    from airflow_ai_provider.core.policy import parse_budget
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    if args.clear == (args.limit_usd is not None):
        raise LedgerError("give one of --limit-usd AMOUNT, and --clear, which gives the budget back to the policy")
    names = ("team", "dag", "route", "period", "timezone")
    budget = parse_budget({name: getattr(args, name) for name in names} | {"limit_usd": args.limit_usd or 0})
    change = set_by_hand(
        settings_from_airflow(), budget, clear=args.clear, caller=current_person(args.by), reason=args.reason
    )
    if change.new_nano is None:
        say(args, f"{change.name}: the policy's limit holds from the next hold on")
    else:
        say(args, f"{change.name}: ${usd_from_nano(change.new_nano):f} from the next hold on")
    return GOOD


@command
def history(args: Namespace) -> int:
    """``airflow ai budgets history``"""
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.ledger.budgets.limits import limit_history
    from airflow_ai_provider.core.ledger.call_costs import usd_from_nano
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    settings = settings_from_airflow()
    with Installation(settings) as installation, installation.ledger.read() as conn:
        changes = limit_history(conn, args.budget)
    show(
        [
            {
                "set_at": f"{change['set_at']:%Y-%m-%d %H:%M:%S}",
                "budget": change["name"],
                "limit_usd": "policy's" if change["limit_nano"] is None else usd_from_nano(change["limit_nano"]),
                "source": change["source"],
                "set_by": change["set_by"],
                "reason": change["reason"],
                "policy_path": change["policy_path"] or "",
                "policy_hash": (change["policy_hash"] or "")[:12],
            }
            for change in changes
        ],
        args.output,
    )
    return GOOD


@command
def list_stopped(args: Namespace) -> int:
    """``airflow ai deployments stopped``"""
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.ledger.attempts.disabled_deployments import stopped_deployments
    from airflow_ai_provider.core.ledger.call_costs import usd_from_nano
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    settings = settings_from_airflow()
    with Installation(settings) as installation, installation.ledger.read() as conn:
        stops = stopped_deployments(conn)
    show(
        [
            {
                "deployment": stop["deployment"],
                "stopped_at": f"{stop['stopped_at']:%Y-%m-%d %H:%M:%S}",
                "reason": stop["reason"],
                "attempt_id": stop["attempt_id"],
                "over_usd": usd_from_nano(stop["over_nano"]),
            }
            for stop in stops
        ],
        args.output,
    )
    return GOOD


@command
def resume(args: Namespace) -> int:
    """``airflow ai deployments resume``"""
    from airflow_ai_provider.core.administration.budgets import resume_deployment
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    resume_deployment(settings_from_airflow(), args.deployment, caller=current_person(args.by), reason=args.reason)
    say(args, f"{args.deployment}: calls may go to it again")
    return GOOD


@command
def sweep(args: Namespace) -> int:
    """``airflow ai ledger sweep``"""
    from airflow_ai_provider.core.administration.budgets import sweep_holds
    from airflow_ai_provider.core.ledger.call_costs import usd_from_nano
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.hooks.tasks import states_from_database

    swept = sweep_holds(settings_from_airflow(), states_from_database, caller=current_person(), dry_run=args.dry_run)
    row: dict[str, Any] = {
        "silent": swept.holders,
        "over": swept.over,
        "holds": swept.holds,
        "captured": swept.attempts,
        "captured_usd": usd_from_nano(swept.captured_nano),
    }
    show([row], args.output)
    return GOOD
