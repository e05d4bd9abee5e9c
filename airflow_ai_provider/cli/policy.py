"""``airflow ai policy pin|unpin|pins``: which policies a ledger accepts."""

from __future__ import annotations

from argparse import Namespace

from airflow_ai_provider.cli.output import GOOD, command, say, show
from airflow_ai_provider.core.administration.people import current_person


@command
def pin(args: Namespace) -> int:
    """``airflow ai policy pin``"""
    from airflow_ai_provider.core.administration.pins import pin_policy
    from airflow_ai_provider.hooks.settings import settings_from_airflow, with_policy

    settings = with_policy(settings_from_airflow(), args.policy)
    file = pin_policy(settings, caller=current_person(args.by), reason=args.reason)
    say(args, f"{file.path}: {file.digest[:12]} is pinned; calls under any policy that is not pinned are refused")
    return GOOD


@command
def unpin(args: Namespace) -> int:
    """``airflow ai policy unpin``"""
    from airflow_ai_provider.core.administration.pins import unpin_policy
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    digest = unpin_policy(settings_from_airflow(), args.digest, caller=current_person(args.by), reason=args.reason)
    say(args, f"{digest[:12]}: no longer pinned")
    return GOOD


@command
def list_pins(args: Namespace) -> int:
    """``airflow ai policy pins``"""
    from airflow_ai_provider.core.administration.pins import pinned_policies
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    show(
        [
            {**pin, "pinned_at": f"{pin['pinned_at']:%Y-%m-%d %H:%M:%S}"}
            for pin in pinned_policies(settings_from_airflow())
        ],
        args.output,
    )
    return GOOD
