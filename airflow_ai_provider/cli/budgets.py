"""``airflow ai budgets …`` and ``airflow ai deployments …``: limits set by people, and what was stopped."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from airflow_ai_provider.cli.output import GOOD, command, say, show
from airflow_ai_provider.core.administration.people import current_person
from airflow_ai_provider.errors import LedgerError


@command
def list_budgets(args: Namespace) -> int:
    """``airflow ai budgets list``"""
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.ledger.reports import budget_report

    settings = settings_from_airflow()
    with Installation(settings) as installation:
        ledger = installation.ledger
        show(budget_report(ledger, now=None if args.all else ledger.now()), args.output)
    return GOOD


@command
def set_budget(args: Namespace) -> int:
    """``airflow ai budgets set``"""
    from airflow_ai_provider.core.administration.budgets import set_budget as set_by_hand
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.ledger.money import usd_from_nano
    from airflow_ai_provider.policy import parse_budget

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
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.ledger.limits import limit_history
    from airflow_ai_provider.ledger.money import usd_from_nano

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
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.ledger.money import usd_from_nano
    from airflow_ai_provider.ledger.stops import stopped_deployments

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
    from airflow_ai_provider.hooks.settings import settings_from_airflow
    from airflow_ai_provider.hooks.tasks import states_from_database
    from airflow_ai_provider.ledger.money import usd_from_nano

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
