"""``airflow ai policy …``.

What ``airflow ai policy`` and ``airflow ai audit`` do. Exit status: 0 good, 1 a finding, 2 could not run.

``airflow ai policy pin|unpin|pins``: which policies a ledger accepts.
"""

from __future__ import annotations

from argparse import Namespace

from airflow_ai_provider.cli.output import FINDING, GOOD, command, say, show
from airflow_ai_provider.core.administration.people import current_person
from airflow_ai_provider.core.errors import PolicyError


@command
def policy_check(args: Namespace) -> int:
    """``airflow ai policy check``"""
    from airflow_ai_provider.core.jobs.validate import check_policy
    from airflow_ai_provider.hooks.settings import settings_from_airflow, with_policy

    settings = with_policy(settings_from_airflow(), args.policy)
    if not settings.policy_path.is_file():
        raise PolicyError(f"{settings.policy_path}: no policy file there; name one with --policy or [ai] policy_path")
    try:
        findings = check_policy(settings)
    except PolicyError as error:
        findings = str(error).splitlines()
    if findings or args.output != "table":
        show([{"finding": finding} for finding in findings], args.output)
    if not findings:
        say(args, f"{settings.policy_path}: good")
    return FINDING if findings else GOOD


@command
def pin(args: Namespace) -> int:
    """``airflow ai policy pin``"""
    from airflow_ai_provider.core.administration.ledger import pin_policy
    from airflow_ai_provider.hooks.settings import settings_from_airflow, with_policy

    settings = with_policy(settings_from_airflow(), args.policy)
    file = pin_policy(settings, caller=current_person(args.by), reason=args.reason)
    say(args, f"{file.path}: {file.digest[:12]} is pinned; calls under any policy that is not pinned are refused")
    return GOOD


@command
def unpin(args: Namespace) -> int:
    """``airflow ai policy unpin``"""
    from airflow_ai_provider.core.administration.ledger import unpin_policy
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    digest = unpin_policy(settings_from_airflow(), args.digest, caller=current_person(args.by), reason=args.reason)
    say(args, f"{digest[:12]}: no longer pinned")
    return GOOD


@command
def list_pins(args: Namespace) -> int:
    """``airflow ai policy pins``"""
    from airflow_ai_provider.core.administration.ledger import pinned_policies
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    show(
        [
            {**pin, "pinned_at": f"{pin['pinned_at']:%Y-%m-%d %H:%M:%S}"}
            for pin in pinned_policies(settings_from_airflow())
        ],
        args.output,
    )
    return GOOD
