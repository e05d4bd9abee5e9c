"""``airflow ai …``: names and arguments only.

Every ``airflow`` call imports this module, so the commands themselves are imported when they run.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import partial
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

PERIODS = ("day", "week", "month", "run", "total")
GROUPINGS = tuple("hour day week month team dag task run model provider route tier deployment".split())
"""What costs can be grouped by; the ledger's report knows the same names."""
REPRICED_BY = ("day", "team", "dag", "task", "model", "route", "deployment")
"""What other prices can be grouped by; the ledger knows the same names."""

INVOICE_FORMATS = ("csv", "openai-usage", "openai-costs", "anthropic-usage", "anthropic-costs")
"""The exports that can be read; the ledger knows the same names."""


def groupings(text: str, known: Sequence[str] = GROUPINGS) -> list[str]:
    """Read ``team,model``; order is kept. Raises ``argparse.ArgumentTypeError`` for an unknown or repeated name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) != len(names) or not set(names) <= set(known):
        raise argparse.ArgumentTypeError(f"{text!r}: expected some of {','.join(known)}, each once")
    return names


def names(text: str) -> list[str]:
    """Read ``small,large``. Raises ``argparse.ArgumentTypeError`` where there is none."""
    if not (found := [name.strip() for name in text.split(",") if name.strip()]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected names, comma-separated")
    return found


def day(text: str) -> date:
    """Read ``2025-01-31``. Raises ``argparse.ArgumentTypeError`` for anything else."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a day such as 2025-01-31") from None


def usd(text: str) -> Decimal:
    """Read an amount in USD. Raises ``argparse.ArgumentTypeError`` for what is none."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite() or amount < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an amount in USD such as 250.00")
    return amount


def column_default(text: str) -> tuple[str, str]:
    """Read ``context=some text``. Raises ``argparse.ArgumentTypeError`` for anything else."""
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected COLUMN=TEXT")
    return name.strip(), value


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
_ARG_FORCE = _arg("--force", action="store_true", help="Drop months even if they are still needed")
_ARG_CHECK_SINCE = _arg("--since", type=day, metavar="DAY", help="First day to check, UTC (default: 7 days in all)")
_ARG_CHECK_UNTIL = _arg("--until", type=day, metavar="DAY", help="Last day to check, UTC (default: today)")
_ARG_ALL = _arg("--all", action="store_true", help="Check every day of the ledger")
_ARG_REPAIR = _arg("--repair", action="store_true", help="Rewrite days that differ from their rows")
_ARG_ROLE = _arg("role", metavar="ROLE", help="Name of the PostgreSQL role; it is made where it is missing")
_ARG_PRINT = _arg("--print", dest="print_sql", action="store_true", help="Print the SQL instead of running it")
_ARG_REASON = _arg("--reason", required=True, metavar="TEXT", help="Why, for the history and the audit trail")
_ARG_WHO = _arg("--by", metavar="NAME", help="Who (default: the account this runs under)")
_ARG_POLICY = _arg("--policy", metavar="PATH", help="Policy file to check (default: policy_path in section ai)")
_ARG_REPRICED_BY = _arg(
    "--by",
    type=partial(groupings, known=REPRICED_BY),
    default=["team"],
    metavar="NAMES",
    help=f"Group by some of {','.join(REPRICED_BY)}, comma-separated (default: team)",
)
_ARG_PRICES = _arg("--prices", required=True, metavar="LIST", help="policy, litellm, or a price list's file")
_ARG_KEEP_PRICES = _arg("--dry-run", action="store_true", help="Only show; rows keep the price they were billed at")
_ARG_FROM = _arg("--from", dest="since", type=day, metavar="DAY", help="First day to read, UTC (default: all)")
_ARG_TO = _arg("--to", dest="until", type=day, metavar="DAY", help="Last day to read, UTC (default: today)")
_ARG_PIN = _arg("--pin", metavar="FILE", help="Manifest hashes kept elsewhere, lines of SEQUENCE HASH")
_ARG_KEYS = _arg("--keys", metavar="PATH", help="Verify key, or folder of them (default: this installation's)")
_ARG_EVENT_FORMAT = _arg("--format", choices=("ecs", "ocsf"), default="ecs", help="ECS documents or OCSF API Activity")
_ARG_FILE = Arg(("-o", "--output"), metavar="FILE", default="-", help="File to write (default: standard output)")  # type: ignore[no-untyped-call]
_ARG_EVENT = Arg(("event_id",), metavar="EVENT_ID", help="The event.id of the event")  # type: ignore[no-untyped-call]
_ARG_DAYS_SINCE = _arg("--since", type=day, metavar="DAY", help="First day to export, UTC (default: all)")
_ARG_DAYS_UNTIL = _arg("--until", type=day, metavar="DAY", help="Last day to export, UTC (default: today)")
_ARG_ARCHIVE = _arg("--archive", metavar="URI", help="Archive of the audit trail (default: archive_uri in section ai)")

_ARG_INVOICE = _arg("--invoice", required=True, metavar="URI", help="The vendor's export: a path or object-store URL")
_ARG_FORMAT = _arg("--format", choices=INVOICE_FORMATS, help="Format of the export (default: by its content)")
_ARG_COVERS = _arg(
    "--covers",
    metavar="FROM..TO",
    help="Days (UTC) or times for which the export is complete: unknown calls in it that are not on it cost nothing",
)
_ARG_DEPLOYMENTS = _arg(
    "--deployments", type=names, metavar="NAMES", help="Deployments that the vendor's account serves, comma-separated"
)
_ARG_DRY_RUN = _arg("--dry-run", action="store_true", help="Only say what would be done")

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

_ARG_OUT = _arg("--out", metavar="FILE", help="New file for the keyring, where a connection holds it")
_ARG_SOURCE = _arg("source", help="URI of rows with encrypted columns")
_ARG_SINK = _arg("--sink", required=True, metavar="URI", help="Folder of the new parts; name it again to resume")
_ARG_TEAM = _arg("--team", required=True, help="Team whose keys the columns are encrypted with")
_ARG_TABLE = _arg("--table", default="", help="Table that the ciphertexts are bound to (default: that of masked rows)")
_ARG_KEY = _arg("--key", required=True, metavar="COLUMN", help="Column that named the rows when they were encrypted")
_ARG_COLUMNS = _arg("--columns", required=True, metavar="NAMES", help="Encrypted columns, comma-separated")
_ARG_BATCH_ROWS = _arg("--batch-rows", type=int, default=1000, metavar="N", help="Rows per part (default: 1000)")

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

_CLI = "airflow_ai_provider.cli"


_BUDGETS = (
    ActionCommand(
        name="list",
        help="Limits, what is spent and held, and what is left",
        description="Reads the ledger. Exit status: 0 good, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.budgets.list_budgets"),
        args=(_arg("--all", action="store_true", help="Periods that are over, too"), ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="set",
        help="Set a limit by hand; it goes before the policy's from the next hold on",
        description="Is written to the history and to the audit trail. Exit status: 0 good, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.budgets.set_budget"),
        args=(
            _arg("--limit-usd", type=usd, metavar="AMOUNT", help="The limit in USD"),
            _arg("--clear", action="store_true", help="Give the budget back to the policy"),
            _arg("--period", required=True, choices=PERIODS, help="Period of the budget"),
            _arg("--team", help="Team it is for (default: all)"),
            _arg("--dag", help="DAG it is for (default: all)"),
            _arg("--route", help="Route it is for (default: all)"),
            _arg("--timezone", default="UTC", help="Where its days begin (default: UTC)"),
            *(_ARG_REASON, _ARG_WHO, ARG_OUTPUT, ARG_VERBOSE),
        ),
    ),
    ActionCommand(
        name="history",
        help="Who set which limit when, and why",
        description="Reads the ledger. Exit status: 0 good, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.budgets.history"),
        args=(
            _arg("--budget", metavar="NAME", help="Only this budget, such as team=support/day"),
            ARG_OUTPUT,
            ARG_VERBOSE,
        ),
    ),
)
_DEPLOYMENTS = (
    ActionCommand(
        name="stopped",
        help="Deployments that charged more than their upper bound; nothing is sent to them",
        description="Reads the ledger. Exit status: 0 good, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.budgets.list_stopped"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="resume",
        help="Let calls go to a stopped deployment again",
        description="Is written to the audit trail. Exit status: 0 good, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.budgets.resume"),
        args=(_arg("deployment", help="Its name in the policy"), _ARG_REASON, _ARG_WHO, ARG_OUTPUT, ARG_VERBOSE),
    ),
)
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
    ActionCommand(
        name="sweep",
        help="Settle what tasks that are over left open, and release what they hold",
        description="Exit status: 0 good, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.budgets.sweep"),
        args=(_ARG_DRY_RUN, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="reconcile",
        help="Hold the ledger against a vendor's invoice and resolve unknown calls",
        description="Exit status: 0 equal, 1 something differs, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.ledger.reconcile"),
        args=(
            *(_ARG_INVOICE, _ARG_FORMAT, _ARG_COVERS, _ARG_DEPLOYMENTS, _ARG_DRY_RUN),
            *(ARG_OUTPUT, ARG_VERBOSE),
        ),
    ),
    ActionCommand(
        name="reprice",
        help="What another price list would have cost",
        description="Exit status: 0 good, 1 the list lacks a price, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.ledger.reprice"),
        args=(
            *(_ARG_PRICES, _ARG_KEEP_PRICES, _ARG_REPRICED_BY, _ARG_SINCE, _ARG_UNTIL),
            *(ARG_OUTPUT, ARG_VERBOSE),
        ),
    ),
)


_AUDIT = (
    ActionCommand(
        name="verify",
        help="Verify that the audit trail is whole, in order and unaltered",
        description="Exit status: 0 good, 1 the trail does not verify, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.audit.verify"),
        args=(_ARG_FROM, _ARG_TO, _ARG_PIN, _ARG_KEYS, _ARG_ARCHIVE, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="seal",
        help="Archive finished segments, sign and pin a manifest of them",
        description="Exit status: 0 good, 1 a segment was refused, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.audit.seal"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="export",
        help="Write events as JSON lines, in ECS or OCSF",
        description="Exit status: 0 good, 1 the trail does not verify, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.audit.export"),
        args=(_ARG_EVENT_FORMAT, _ARG_DAYS_SINCE, _ARG_DAYS_UNTIL, _ARG_ARCHIVE, _ARG_FILE, ARG_VERBOSE),
    ),
    ActionCommand(
        name="prove",
        help="Write the proof that one event is in the trail",
        description="scripts/verify_proof.py checks it. Exit status: 0 good, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.audit.prove"),
        args=(_ARG_EVENT, _ARG_ARCHIVE, _ARG_FILE, ARG_VERBOSE),
    ),
    ActionCommand(
        name="search",
        help="Find events: who did what, when, in which run",
        description="Reads the index over the trail. Exit status: 0 good, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.audit_search.search"),
        args=(*_ARGS_SEARCH, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="deliver",
        help="Bring what is sealed on this host to the archive and into the index",
        description="Exit status: 0 good, 1 something is left or refused, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.audit_search.deliver"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="dead-letters",
        help="List the events that the index refused for good",
        description="Exit status: 0 there are none, 1 there are some, 2 could not run.",
        func=lazy_load_command(f"{_CLI}.audit_search.dead_letters"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="archive",
        help="Show, or set up, what the archive's bucket promises",
        description="Exit status: 0 it keeps the lock that is configured, 2 it does not.",
        func=lazy_load_command(f"{_CLI}.audit_search.archive"),
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
                func=lazy_load_command(f"{_CLI}.audit_search.index_rebuild"),
                args=(ARG_OUTPUT, ARG_VERBOSE),
            ),
        ),
    ),
)


def _keys() -> GroupCommand:
    return GroupCommand(
        name="keys",
        help="The keys of masking, encryption and stored answers",
        subcommands=(
            ActionCommand(
                name="list",
                help="Which keys there are and which one writes; never a secret",
                func=lazy_load_command(f"{_CLI}.keys.list_keys"),
                args=(ARG_OUTPUT, ARG_VERBOSE),
            ),
            ActionCommand(
                name="generate",
                help="Make a keyring with one key",
                func=lazy_load_command(f"{_CLI}.keys.generate"),
                args=(_ARG_OUT, ARG_OUTPUT, ARG_VERBOSE),
            ),
            ActionCommand(
                name="rotate",
                help="Add a key that writes from now on; the others still read",
                func=lazy_load_command(f"{_CLI}.keys.rotate"),
                args=(_ARG_OUT, ARG_OUTPUT, ARG_VERBOSE),
            ),
            ActionCommand(
                name="reencrypt",
                help="Move encrypted columns to the key that writes now; goes on where it was interrupted",
                description="Exit status: 0 good, 1 some rows could not be read, 2 could not run.",
                func=lazy_load_command(f"{_CLI}.keys.reencrypt"),
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
            help="Cost, budgets, policy, keys and audit of LLM calls",
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
                ActionCommand(
                    name="plan",
                    help="What a DAG's LLM tasks would ask and cost, before a cent is spent",
                    description="Calls no model. Exit status: 0 fits its budgets, 1 does not, 2 could not run.",
                    func=lazy_load_command(f"{_CLI}.plan.plan"),
                    args=(*_PLAN_ARGS, ARG_BUNDLE_NAME, ARG_OUTPUT, ARG_VERBOSE),
                ),
                GroupCommand(name="budgets", help="Limits of what may be spent", subcommands=_BUDGETS),
                GroupCommand(name="deployments", help="Deployments that are stopped", subcommands=_DEPLOYMENTS),
                GroupCommand(name="ledger", help="The ledger of calls and budgets", subcommands=_LEDGER),
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
                _keys(),
                GroupCommand(name="audit", help="The audit trail", subcommands=_AUDIT),
            ),
        )
    ]
