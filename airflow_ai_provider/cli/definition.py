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
_ARG_ARCHIVE = _arg("--archive", metavar="URI", help="Archive of the audit trail (default: archive_uri in section ai)")

_ARGS_SEARCH = (
    _arg("--user", metavar="NAME", help="Who"),
    _arg("--action", metavar="ACTION", help="What, such as llm.call"),
    _arg("--outcome", choices=("success", "failure", "unknown"), help="What came of it"),
    _arg("--dag", metavar="DAG_ID", help="In which DAG"),
    _arg("--run", metavar="RUN_ID", help="In which DAG run"),
    _arg("--task", metavar="TASK_ID", help="In which task"),
    _arg("--request", metavar="REQUEST_ID", help="Attempts and reuse of one request"),
    _arg("--since", metavar="TIME", help="30d, 12h, 15m, a day or a time, UTC (default: the first event)"),
    _arg("--until", metavar="TIME", help="The same; a day counts to its end (default: now)"),
    _arg("--limit", type=int, default=100, metavar="N", help="Newest events to show (default: 100)"),
)
_ARG_SET_UP = _arg("--set-up", action="store_true", help="Give the bucket its default lock and a lifecycle rule")
_ARG_EXPIRE = _arg("--expire-days", type=int, metavar="N", help="With --set-up: remove objects after so many days")

_COMMANDS = "airflow_ai_provider.cli.commands"
_AUDIT_SEARCH = "airflow_ai_provider.cli.audit_search"


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
                            func=lazy_load_command(f"{_COMMANDS}.audit_verify"),
                            args=(_ARG_ARCHIVE, ARG_OUTPUT, ARG_VERBOSE),
                        ),
                        ActionCommand(
                            name="search",
                            help="Find events: who did what, when, in which run",
                            description="Reads the index over the trail. Exit status: 0 good, 2 could not run.",
                            func=lazy_load_command(f"{_AUDIT_SEARCH}.search"),
                            args=(*_ARGS_SEARCH, ARG_OUTPUT, ARG_VERBOSE),
                        ),
                        ActionCommand(
                            name="deliver",
                            help="Bring what is sealed on this host to the archive and into the index",
                            description="Exit status: 0 good, 1 something is left or refused, 2 could not run.",
                            func=lazy_load_command(f"{_AUDIT_SEARCH}.deliver"),
                            args=(ARG_OUTPUT, ARG_VERBOSE),
                        ),
                        ActionCommand(
                            name="dead-letters",
                            help="List the events that the index refused for good",
                            description="Exit status: 0 there are none, 1 there are some, 2 could not run.",
                            func=lazy_load_command(f"{_AUDIT_SEARCH}.dead_letters"),
                            args=(ARG_OUTPUT, ARG_VERBOSE),
                        ),
                        ActionCommand(
                            name="archive",
                            help="Show, or set up, what the archive's bucket promises",
                            description="Exit status: 0 it keeps the lock that is configured, 2 it does not.",
                            func=lazy_load_command(f"{_AUDIT_SEARCH}.archive"),
                            args=(_ARG_SET_UP, _ARG_EXPIRE, ARG_OUTPUT, ARG_VERBOSE),
                        ),
                        GroupCommand(
                            name="index",
                            help="The index over the trail",
                            subcommands=(
                                ActionCommand(
                                    name="rebuild",
                                    help="Empty the index and fill it from the archive",
                                    description="Exit status: 0 good, 1 something was refused, 2 could not run.",
                                    func=lazy_load_command(f"{_AUDIT_SEARCH}.index_rebuild"),
                                    args=(ARG_OUTPUT, ARG_VERBOSE),
                                ),
                            ),
                        ),
                    ),
                ),
            ),
        )
    ]
