"""``airflow ai …``: names and arguments only.

Every ``airflow`` call imports this module, so the commands themselves are imported when they run.
"""

from __future__ import annotations

import argparse
from datetime import date
from typing import Any

from airflow.cli.cli_config import (
    ARG_BUNDLE_NAME,
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


def column_default(text: str) -> tuple[str, str]:
    """Read ``context=some text``. Raises ``argparse.ArgumentTypeError`` for anything else."""
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected COLUMN=TEXT")
    return name.strip(), value


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

_PLAN_ARGS = (
    _arg("dag_id", help="The DAG whose LLM tasks are planned"),
    _arg("--task", metavar="TASK", help="Plan this task only"),
    _arg("--input", metavar="URI", help="Rows to plan with, in place of the tasks' source"),
    _arg("--key", metavar="COLUMN", help="Column that names a row, in place of the tasks' key"),
    _arg(
        "--default",
        type=column_default,
        action="append",
        metavar="COLUMN=TEXT",
        help="What stands in a column that the rows do not have yet (may be given more than once)",
    ),
    _arg("--run-id", metavar="RUN", help="Take params and XComs of this run, and plan what clearing its tasks costs"),
    _arg("--conf", metavar="JSON", help="Params of the run to be planned, as for airflow dags trigger"),
    _arg("--policy", metavar="PATH", help="Plan with this policy file, in place of the tasks' own"),
)

_COMMANDS = "airflow_ai_provider.cli.commands"


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
                ActionCommand(
                    name="plan",
                    help="What a DAG's LLM tasks would ask and cost, before a cent is spent",
                    description="Calls no model. Exit status: 0 fits its budgets, 1 does not, 2 could not run.",
                    func=lazy_load_command("airflow_ai_provider.cli.plan.plan"),
                    args=(*_PLAN_ARGS, ARG_BUNDLE_NAME, ARG_OUTPUT, ARG_VERBOSE),
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
                    ),
                ),
            ),
        )
    ]
