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

_ARG_OUT = _arg("--out", metavar="FILE", help="New file for the keyring, where a connection holds it")
_ARG_SOURCE = _arg("source", help="URI of rows with encrypted columns")
_ARG_SINK = _arg("--sink", required=True, metavar="URI", help="Folder of the new parts; name it again to resume")
_ARG_TEAM = _arg("--team", required=True, help="Team whose keys the columns are encrypted with")
_ARG_TABLE = _arg("--table", default="", help="Table that the ciphertexts are bound to (default: that of masked rows)")
_ARG_KEY = _arg("--key", required=True, metavar="COLUMN", help="Column that named the rows when they were encrypted")
_ARG_COLUMNS = _arg("--columns", required=True, metavar="NAMES", help="Encrypted columns, comma-separated")
_ARG_BATCH_ROWS = _arg("--batch-rows", type=int, default=1000, metavar="N", help="Rows per part (default: 1000)")

_COMMANDS = "airflow_ai_provider.cli.commands"
_KEYS = "airflow_ai_provider.cli.keys"


def _keys() -> GroupCommand:
    return GroupCommand(
        name="keys",
        help="The keys of masking, encryption and stored answers",
        subcommands=(
            ActionCommand(
                name="list",
                help="Which keys there are and which one writes; never a secret",
                func=lazy_load_command(f"{_KEYS}.list_keys"),
                args=(ARG_OUTPUT, ARG_VERBOSE),
            ),
            ActionCommand(
                name="generate",
                help="Make a keyring with one key",
                func=lazy_load_command(f"{_KEYS}.generate"),
                args=(_ARG_OUT, ARG_OUTPUT, ARG_VERBOSE),
            ),
            ActionCommand(
                name="rotate",
                help="Add a key that writes from now on; the others still read",
                func=lazy_load_command(f"{_KEYS}.rotate"),
                args=(_ARG_OUT, ARG_OUTPUT, ARG_VERBOSE),
            ),
            ActionCommand(
                name="reencrypt",
                help="Move encrypted columns to the key that writes now; goes on where it was interrupted",
                description="Exit status: 0 good, 1 some rows could not be read, 2 could not run.",
                func=lazy_load_command(f"{_KEYS}.reencrypt"),
                args=(
                    _ARG_SOURCE,
                    _ARG_SINK,
                    _ARG_TEAM,
                    _ARG_TABLE,
                    _ARG_KEY,
                    _ARG_COLUMNS,
                    _ARG_BATCH_ROWS,
                    ARG_OUTPUT,
                    ARG_VERBOSE,
                ),
            ),
        ),
    )


def get_cli_commands() -> list[CLICommand]:
    """The commands that the provider's metadata points to."""
    return [
        GroupCommand(
            name="ai",
            help="Cost, policy, audit and keys of LLM calls",
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
                _keys(),
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
