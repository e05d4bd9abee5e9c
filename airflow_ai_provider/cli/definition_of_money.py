"""``airflow ai cost``, ``plan``, ``budgets``, ``deployments`` and ``ledger``: names and arguments."""

from __future__ import annotations

from functools import partial

from airflow.cli.cli_config import ARG_BUNDLE_NAME, ARG_OUTPUT, ARG_VERBOSE, ActionCommand

from airflow_ai_provider.cli.arguments import (
    GROUPINGS,
    INVOICE_FORMATS,
    PERIODS,
    REPRICED_BY,
    arg,
    changes,
    column_default,
    count,
    day,
    groupings,
    last,
    names,
    reads,
    usd,
)

_ARG_BY = arg(
    "--by",
    type=groupings,
    default=["team"],
    metavar="NAMES",
    help=f"Group by some of {','.join(GROUPINGS)}, comma-separated (default: team)",
)
_ARG_SINCE = arg("--since", type=day, metavar="DAY", help="First day to count, UTC (default: the ledger's first)")
_ARG_UNTIL = arg("--until", type=day, metavar="DAY", help="Last day to count, UTC (default: today)")
_ARG_LAST = arg("--last", type=last, metavar="TIME", help="Period that ends now: hours, days or weeks, such as 7d")
_ARG_THIS = arg("--this", choices=("day", "week", "month", "year"), help="Period that now is in, UTC")
_ARG_TOP = arg("--top", type=count, metavar="N", help="Only the N most expensive groups")
_ARG_KEEP = arg(
    "--keep-months",
    type=count,
    metavar="N",
    help="Full months kept before the present one (default: ledger.keep_months of the policy, else all)",
)
_ARG_FORCE = arg("--force", action="store_true", help="Drop months even if they are still needed")
_ARG_CHECK_SINCE = arg("--since", type=day, metavar="DAY", help="First day to check, UTC (default: 7 days in all)")
_ARG_CHECK_UNTIL = arg("--until", type=day, metavar="DAY", help="Last day to check, UTC (default: today)")
_ARG_ALL = arg("--all", action="store_true", help="Check every day of the ledger")
_ARG_REPAIR = arg("--repair", action="store_true", help="Rewrite days that differ from their rows")
_ARG_ROLE = arg("role", metavar="ROLE", help="Name of the PostgreSQL role; it is made where it is missing")
_ARG_PRINT = arg("--print", dest="print_sql", action="store_true", help="Print the SQL instead of running it")
_ARG_REASON = arg("--reason", required=True, metavar="TEXT", help="Why, for the history and the audit trail")
_ARG_WHO = arg("--by", metavar="NAME", help="Who (default: the account this runs under)")
_ARG_REPRICED_BY = arg(
    "--by",
    type=partial(groupings, known=REPRICED_BY),
    default=["team"],
    metavar="NAMES",
    help=f"Group by some of {','.join(REPRICED_BY)}, comma-separated (default: team)",
)
_ARG_PRICES = arg("--prices", required=True, metavar="LIST", help="policy, litellm, or a price list's file")
_ARG_KEEP_PRICES = arg("--dry-run", action="store_true", help="Only show; rows keep the price they were billed at")
_ARG_INVOICE = arg("--invoice", required=True, metavar="URI", help="The vendor's export: a path or object-store URL")
_ARG_FORMAT = arg("--format", choices=INVOICE_FORMATS, help="Format of the export (default: by its content)")
_ARG_COVERS = arg(
    "--covers",
    metavar="FROM..TO",
    help="Days (UTC) or times for which the export is complete: unknown calls in it that are not on it cost nothing",
)
_ARG_DEPLOYMENTS = arg(
    "--deployments", type=names, metavar="NAMES", help="Deployments that the vendor's account serves, comma-separated"
)
_ARG_DRY_RUN = arg("--dry-run", action="store_true", help="Only say what would be done")
_PLAN_ARGS = (
    arg("dag_id", help="The DAG whose LLM tasks are planned"),
    arg("--task", metavar="TASK", help="Plan this task only"),
    arg("--input", metavar="URI", help="Rows to plan with, in place of the tasks' source"),
    arg("--key", metavar="COLUMN", help="Column that names a row, in place of the tasks' key"),
    arg(
        "--default",
        type=column_default,
        action="append",
        metavar="COLUMN=TEXT",
        help="What stands in a column that the rows do not have yet (may be given more than once)",
    ),
    arg("--run-id", metavar="RUN", help="Take params and XComs of this run, and plan what clearing its tasks costs"),
    arg("--conf", metavar="JSON", help="Params of the run to be planned, as for airflow dags trigger"),
    arg("--policy", metavar="PATH", help="Plan with this policy file, in place of the tasks' own"),
)

COST = ActionCommand(
    name="cost",
    help="What LLM calls have cost and what reuse has saved",
    description="Reads the ledger. Exit status: 0 good, 2 could not run.",
    func=reads("budgets.cost"),
    args=(
        *(_ARG_BY, _ARG_LAST, _ARG_THIS, _ARG_SINCE, _ARG_UNTIL, _ARG_TOP),
        *(ARG_OUTPUT, ARG_VERBOSE),
    ),
)
PLAN = ActionCommand(
    name="plan",
    help="What a DAG's LLM tasks would ask and cost, before a cent is spent",
    description="Calls no model. Exit status: 0 fits its budgets, 1 does not, 2 could not run.",
    func=reads("plan.plan"),
    args=(*_PLAN_ARGS, ARG_BUNDLE_NAME, ARG_OUTPUT, ARG_VERBOSE),
)
BUDGETS = (
    ActionCommand(
        name="list",
        help="Limits, what is spent and held, and what is left",
        description="Reads the ledger. Exit status: 0 good, 2 could not run.",
        func=reads("budgets.list_budgets"),
        args=(arg("--all", action="store_true", help="Periods that are over, too"), ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="set",
        help="Set a limit by hand; it goes before the policy's from the next hold on",
        description="Is written to the history and to the audit trail. Exit status: 0 good, 2 could not run.",
        func=changes("budgets.set_budget"),
        args=(
            arg("--limit-usd", type=usd, metavar="AMOUNT", help="The limit in USD"),
            arg("--clear", action="store_true", help="Give the budget back to the policy"),
            arg("--period", required=True, choices=PERIODS, help="Period of the budget"),
            arg("--team", help="Team it is for (default: all)"),
            arg("--dag", help="DAG it is for (default: all)"),
            arg("--route", help="Route it is for (default: all)"),
            arg("--timezone", default="UTC", help="Where its days begin (default: UTC)"),
            *(_ARG_REASON, _ARG_WHO, ARG_OUTPUT, ARG_VERBOSE),
        ),
    ),
    ActionCommand(
        name="history",
        help="Who set which limit when, and why",
        description="Reads the ledger. Exit status: 0 good, 2 could not run.",
        func=reads("budgets.history"),
        args=(
            arg("--budget", metavar="NAME", help="Only this budget, such as team=support/day"),
            ARG_OUTPUT,
            ARG_VERBOSE,
        ),
    ),
)
DEPLOYMENTS = (
    ActionCommand(
        name="stopped",
        help="Deployments that charged more than their upper bound; nothing is sent to them",
        description="Reads the ledger. Exit status: 0 good, 2 could not run.",
        func=reads("budgets.list_stopped"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="resume",
        help="Let calls go to a stopped deployment again",
        description="Is written to the audit trail. Exit status: 0 good, 2 could not run.",
        func=changes("budgets.resume"),
        args=(arg("deployment", help="Its name in the policy"), _ARG_REASON, _ARG_WHO, ARG_OUTPUT, ARG_VERBOSE),
    ),
)
LEDGER = (
    ActionCommand(
        name="maintain",
        help="Make months ahead and drop those past their retention",
        description="Exit status: 0 good, 1 a month past its retention is still needed, 2 could not run.",
        func=changes("ledger.maintain", unless="dry_run"),
        args=(_ARG_KEEP, _ARG_DRY_RUN, _ARG_FORCE, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="check",
        help="Compare the daily rollup with the rows it was made of",
        description="Exit status: 0 good, 1 a figure differs, 2 could not run.",
        func=changes("ledger.check", only_with="repair"),
        args=(_ARG_CHECK_SINCE, _ARG_CHECK_UNTIL, _ARG_ALL, _ARG_REPAIR, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="grant",
        help="Let a role of PostgreSQL read the ledger, and nothing else",
        description="Exit status: 0 good, 1 the role may write from elsewhere, 2 could not run.",
        func=changes("ledger.grant", unless="print_sql"),
        args=(_ARG_ROLE, _ARG_PRINT, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="sweep",
        help="Settle what tasks that are over left open, and release what they hold",
        description="Exit status: 0 good, 2 could not run.",
        func=changes("budgets.sweep", unless="dry_run"),
        args=(_ARG_DRY_RUN, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="reconcile",
        help="Hold the ledger against a vendor's invoice and resolve unknown calls",
        description="Exit status: 0 equal, 1 something differs, 2 could not run.",
        func=changes("ledger.reconcile", unless="dry_run"),
        args=(
            *(_ARG_INVOICE, _ARG_FORMAT, _ARG_COVERS, _ARG_DEPLOYMENTS, _ARG_DRY_RUN),
            *(ARG_OUTPUT, ARG_VERBOSE),
        ),
    ),
    ActionCommand(
        name="reprice",
        help="What another price list would have cost",
        description="Exit status: 0 good, 1 the list lacks a price, 2 could not run.",
        func=reads("ledger.reprice"),
        args=(
            *(_ARG_PRICES, _ARG_KEEP_PRICES, _ARG_REPRICED_BY, _ARG_SINCE, _ARG_UNTIL),
            *(ARG_OUTPUT, ARG_VERBOSE),
        ),
    ),
)
