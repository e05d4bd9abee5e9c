"""What ``airflow ai policy`` and ``airflow ai audit`` do. Exit status: 0 good, 1 a finding, 2 could not run."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from airflow_ai_provider.cli.output import FINDING, GOOD, command, say, show
from airflow_ai_provider.errors import AuditError, PolicyError


@command
def policy_check(args: Namespace) -> int:
    """``airflow ai policy check``"""
    from airflow_ai_provider.gateway.preflight import check_policy
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    settings = settings_from_airflow(policy=args.policy)
    if not settings.policy_path.is_file():
        raise PolicyError(f"{settings.policy_path}: no policy file there; name one with --policy or [ai] policy_path")
    try:
        findings = check_policy(settings)
    except PolicyError as error:
        findings = str(error).splitlines()
    if not findings:
        say(args, f"{settings.policy_path}: good")
        return GOOD
    show([{"finding": finding} for finding in findings], args.output)
    return FINDING


@command
def audit_verify(args: Namespace) -> int:
    """``airflow ai audit verify``"""
    from airflow_ai_provider.hooks.audit import verify_audit
    from airflow_ai_provider.hooks.settings import settings_from_airflow, with_archive

    if args.archive and not (archive := Path(args.archive.removeprefix("file://")).expanduser().absolute()).is_dir():
        raise AuditError(f"{archive}: no such folder; expected an archive of the audit trail, or a copy of one")
    settings = settings_from_airflow()
    report = verify_audit(with_archive(settings, str(archive)) if args.archive else settings)
    rows = [
        {"kind": finding.kind, "place": finding.place, "detail": finding.detail, "probably": finding.attack}
        for finding in report.findings
    ]
    if rows or args.output != "table":
        show(rows, args.output)
    if report.error:
        print(f"error: {report.error} ({settings.home / 'audit'})", file=sys.stderr)
    else:
        say(args, f"trail {report.trail}: {report.events} events in {report.segments} segments, {len(rows)} findings")
    return int(report.status)
