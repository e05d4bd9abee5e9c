"""What ``airflow ai policy`` and ``airflow ai audit`` do. Exit status: 0 good, 1 a finding, 2 could not run."""

from __future__ import annotations

from argparse import Namespace

from airflow_ai_provider.cli.output import FINDING, GOOD, command, say, show
from airflow_ai_provider.errors import PolicyError


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
