"""``airflow ai …``: names and arguments only.

Every ``airflow`` call imports this module, so the commands themselves are imported when they run.
"""

from __future__ import annotations

import argparse
import re
from datetime import date
from typing import Any

from airflow.cli.cli_config import (
    ARG_OUTPUT,
    ARG_VERBOSE,
    ActionCommand,
    Arg,
    CLICommand,
    GroupCommand,
    lazy_load_command,
)

GROUPINGS = tuple("hour day week month team dag task run model provider route tier deployment".split())
"""What costs can be grouped by; the ledger's report knows the same names."""


def groupings(text: str) -> list[str]:
    """Read ``team,model``; order is kept. Raises ``argparse.ArgumentTypeError`` for an unknown or repeated name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) != len(names) or not set(names) <= set(GROUPINGS):
        raise argparse.ArgumentTypeError(f"{text!r}: expected some of {','.join(GROUPINGS)}, each once")
    return names


def day(text: str) -> date:
    """Read ``2025-01-31``. Raises ``argparse.ArgumentTypeError`` for anything else."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a day such as 2025-01-31") from None


def last(text: str) -> str:
    """Check ``24h``, ``7d`` or ``4w``. Raises ``argparse.ArgumentTypeError`` for anything else."""
    if not re.fullmatch(r"[1-9]\d{0,4}[hdw]", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected hours, days or weeks such as 24h, 7d or 4w")
    return text


def count(text: str) -> int:
    """Read a whole number of 1 or more. Raises ``argparse.ArgumentTypeError`` for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of 1 or more")
    return int(text)


def _arg(flag: str, **settings: Any) -> Arg:
    return Arg((flag,), **settings)  # type: ignore[no-untyped-call]


_ARG_BY = _arg(
    "--by",
    type=groupings,
    default=["team"],
    metavar="NAMES",
    help=f"Group by some of {','.join(GROUPINGS)}, comma-separated (default: team)",
)
_ARG_SINCE = _arg("--since", type=day, metavar="DAY", help="First day to count, UTC (default: the ledger's first)")
_ARG_UNTIL = _arg("--until", type=day, metavar="DAY", help="Last day to count, UTC (default: today)")
_ARG_LAST = _arg("--last", type=last, metavar="TIME", help="Period that ends now: hours, days or weeks, such as 7d")
_ARG_THIS = _arg("--this", choices=("day", "week", "month", "year"), help="Period that now is in, UTC")
_ARG_TOP = _arg("--top", type=count, metavar="N", help="Only the N dearest groups, dearest first")
_ARG_KEEP = _arg(
    "--keep-months",
    type=count,
    metavar="N",
    help="Full months kept before the present one (default: ledger.keep_months of the policy, else all)",
)
_ARG_DRY_RUN = _arg("--dry-run", action="store_true", help="Only say what would be done")
_ARG_FORCE = _arg("--force", action="store_true", help="Drop months even if they are still needed")
_ARG_CHECK_SINCE = _arg("--since", type=day, metavar="DAY", help="First day to check, UTC (default: 7 days in all)")
_ARG_CHECK_UNTIL = _arg("--until", type=day, metavar="DAY", help="Last day to check, UTC (default: today)")
_ARG_ALL = _arg("--all", action="store_true", help="Check every day of the ledger")
_ARG_REPAIR = _arg("--repair", action="store_true", help="Rewrite days that differ from their rows")
_ARG_ROLE = _arg("role", metavar="ROLE", help="Name of the PostgreSQL role; it is made where it is missing")
_ARG_PRINT = _arg("--print", dest="print_sql", action="store_true", help="Print the SQL instead of running it")
_ARG_POLICY = _arg("--policy", metavar="PATH", help="Policy file to check (default: policy_path in section ai)")
_ARG_ARCHIVE = _arg("--archive", metavar="URI", help="Archive of the audit trail (default: archive_uri in section ai)")

_CLI = "airflow_ai_provider.cli"


_LEDGER = (
    ActionCommand(
        name="maintain",
        help="Make months ahead and drop those past their retention",
        description="Exit status: 0 good, 1 a month past its retention is still needed, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.upkeep.maintain"),
        args=(_ARG_KEEP, _ARG_DRY_RUN, _ARG_FORCE, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="check",
        help="Compare the daily rollup with the rows it was made of",
        description="Exit status: 0 good, 1 a figure differs, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.upkeep.check"),
        args=(_ARG_CHECK_SINCE, _ARG_CHECK_UNTIL, _ARG_ALL, _ARG_REPAIR, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="grant",
        help="Let a role of PostgreSQL read the ledger, and nothing else",
        description="Exit status: 0 good, 1 the role may write from elsewhere, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.upkeep.grant"),
        args=(_ARG_ROLE, _ARG_PRINT, ARG_OUTPUT, ARG_VERBOSE),
    ),
)


def get_cli_commands() -> list[CLICommand]:
    """The commands that the provider's metadata points to."""
    return [
        GroupCommand(
            name="ai",
            help="Cost, policy and audit of LLM calls",
            subcommands=(
                ActionCommand(
                    name="cost",
                    help="What LLM calls have cost and what reuse has saved",
                    description="Reads the ledger. Exit status: 0 good, 2 could not run.",
                    func=lazy_load_command(f"{_CLI}.cost.cost"),
                    args=(
                        *(_ARG_BY, _ARG_LAST, _ARG_THIS, _ARG_SINCE, _ARG_UNTIL, _ARG_TOP),
                        *(ARG_OUTPUT, ARG_VERBOSE),
                    ),
                ),
                GroupCommand(name="ledger", help="Upkeep of the ledger", subcommands=_LEDGER),
                GroupCommand(
                    name="policy",
                    help="The policy file",
                    subcommands=(
                        ActionCommand(
                            name="check",
                            help="Check the policy file: form, prices, budgets, connections",
                            description="Exit status: 0 good, 1 something is wrong with the policy, 2 could not run.",
                            func=lazy_load_command(f"{_CLI}.commands.policy_check"),
                            args=(_ARG_POLICY, ARG_OUTPUT, ARG_VERBOSE),
                        ),
                    ),
                ),
                GroupCommand(
                    name="audit",
                    help="The audit trail",
                    subcommands=(
                        ActionCommand(
                            name="verify",
                            help="Verify that the audit trail is whole, in order and unaltered",
                            description="Exit status: 0 good, 1 the trail does not verify, 2 could not run.",
                            func=lazy_load_command(f"{_CLI}.commands.audit_verify"),
                            args=(_ARG_ARCHIVE, ARG_OUTPUT, ARG_VERBOSE),
                        ),
                    ),
                ),
            ),
        )
    ]
