"""``airflow ai …``: names and arguments only.

Every ``airflow`` call imports this module, so the commands themselves are imported when they run.
"""

from __future__ import annotations

import argparse
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

GROUPINGS = ("day", "team", "dag", "model")
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
_ARG_POLICY = _arg("--policy", metavar="PATH", help="Policy file to check (default: policy_path in section ai)")
_ARG_FROM = _arg("--from", dest="since", type=day, metavar="DAY", help="First day to read, UTC (default: all)")
_ARG_TO = _arg("--to", dest="until", type=day, metavar="DAY", help="Last day to read, UTC (default: today)")
_ARG_PIN = _arg("--pin", metavar="FILE", help="Manifest hashes kept elsewhere, lines of SEQUENCE HASH")
_ARG_KEYS = _arg("--keys", metavar="PATH", help="Verify key, or folder of them (default: this installation's)")
_ARG_FORMAT = _arg("--format", choices=("ecs", "ocsf"), default="ecs", help="ECS documents or OCSF API Activity")
_ARG_FILE = Arg(("-o", "--output"), metavar="FILE", default="-", help="File to write (default: standard output)")  # type: ignore[no-untyped-call]
_ARG_EVENT = Arg(("event_id",), metavar="EVENT_ID", help="The event.id of the event")  # type: ignore[no-untyped-call]
_ARG_DAYS_SINCE = _arg("--since", type=day, metavar="DAY", help="First day to export, UTC (default: all)")
_ARG_DAYS_UNTIL = _arg("--until", type=day, metavar="DAY", help="Last day to export, UTC (default: today)")
_ARG_ARCHIVE = _arg("--archive", metavar="URI", help="Archive of the audit trail (default: archive_uri in section ai)")

_COMMANDS = "airflow_ai_provider.cli.commands"
_AUDIT = "airflow_ai_provider.cli.audit"


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
                    func=lazy_load_command(f"{_COMMANDS}.cost"),
                    args=(_ARG_BY, _ARG_SINCE, _ARG_UNTIL, ARG_OUTPUT, ARG_VERBOSE),
                ),
                GroupCommand(
                    name="policy",
                    help="The policy file",
                    subcommands=(
                        ActionCommand(
                            name="check",
                            help="Check the policy file: form, prices, budgets, connections",
                            description="Exit status: 0 good, 1 something is wrong with the policy, 2 could not run.",
                            func=lazy_load_command(f"{_COMMANDS}.policy_check"),
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
                            func=lazy_load_command(f"{_AUDIT}.verify"),
                            args=(_ARG_FROM, _ARG_TO, _ARG_PIN, _ARG_KEYS, _ARG_ARCHIVE, ARG_OUTPUT, ARG_VERBOSE),
                        ),
                        ActionCommand(
                            name="seal",
                            help="Archive finished segments, sign and pin a manifest of them",
                            description="Exit status: 0 good, 1 a segment was refused, 2 could not run.",
                            func=lazy_load_command(f"{_AUDIT}.seal"),
                            args=(ARG_OUTPUT, ARG_VERBOSE),
                        ),
                        ActionCommand(
                            name="export",
                            help="Write events as JSON lines, in ECS or OCSF",
                            description="Exit status: 0 good, 1 the trail does not verify, 2 could not run.",
                            func=lazy_load_command(f"{_AUDIT}.export"),
                            args=(_ARG_FORMAT, _ARG_DAYS_SINCE, _ARG_DAYS_UNTIL, _ARG_ARCHIVE, _ARG_FILE, ARG_VERBOSE),
                        ),
                        ActionCommand(
                            name="prove",
                            help="Write the proof that one event is in the trail",
                            description="scripts/verify_proof.py checks it. Exit status: 0 good, 2 could not run.",
                            func=lazy_load_command(f"{_AUDIT}.prove"),
                            args=(_ARG_EVENT, _ARG_ARCHIVE, _ARG_FILE, ARG_VERBOSE),
                        ),
                    ),
                ),
            ),
        )
    ]
