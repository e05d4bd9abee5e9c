"""What ``airflow ai …`` does. Exit status: 0 good, 1 a finding, 2 could not run."""

from __future__ import annotations

import functools
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from airflow.cli.simple_table import AirflowConsole
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded
from rich.markup import escape

from airflow_ai_provider.errors import AIProviderError, LedgerError, PolicyError

GOOD, FINDING, COULD_NOT_RUN = 0, 1, 2


def _command(run: Callable[[Namespace], int]) -> Callable[[Namespace], None]:
    """Give a command its exit status, and one line instead of a traceback where it could not run."""

    @functools.wraps(run)
    def command(args: Namespace) -> None:
        # Outside tasks, Airflow looks into its own database for connections only in a server's context.
        os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
        try:
            status = run(args)
        except AIProviderError as error:
            print(f"error: {error}", file=sys.stderr)
            status = COULD_NOT_RUN
        if status != GOOD:
            raise SystemExit(status)

    return providers_configuration_loaded(suppress_logs_and_warning(command))


@_command
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
    _show(rows, args.output)
    return GOOD


@_command
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
        _say(args, f"{settings.policy_path}: good")
        return GOOD
    _show([{"finding": finding} for finding in findings], args.output)
    return FINDING


def _show(rows: Sequence[Mapping[str, Any]], output: str) -> None:
    # A table's cells are rich markup, in which "[ai]" would be a style.
    shown = (lambda value: escape(str(_plain(value)))) if output == "table" else _plain
    AirflowConsole().print_as([{name: shown(value) for name, value in row.items()} for row in rows], output)


def _say(args: Namespace, text: str) -> None:
    """A line for people: programs read only what they asked for."""
    print(text, file=sys.stdout if args.output in ("table", "plain") else sys.stderr)


def _plain(value: Any) -> Any:
    """Money as digits, never as an exponent."""
    return f"{value:f}" if isinstance(value, Decimal) else value
