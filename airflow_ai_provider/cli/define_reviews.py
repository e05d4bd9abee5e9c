"""``airflow ai review``: names and arguments."""

from __future__ import annotations

from airflow.cli.cli_config import ARG_OUTPUT, ARG_VERBOSE, ActionCommand

from airflow_ai_provider.cli.arguments import REVIEW_DECISIONS, REVIEW_STATUSES, arg, count
from airflow_ai_provider.cli.calls import changes, reads

REVIEW = (
    ActionCommand(
        name="list",
        help="Answers that wait for a person, or did, newest first",
        description="Reads the ledger. Exit status: 0 good, 2 could not run.",
        func=reads("reviews.list_reviews"),
        args=(
            arg("--team", help="Only this team's"),
            arg("--dag", help="Only this DAG's"),
            arg("--run", metavar="RUN", help="Only this DAG run's"),
            arg("--kind", help="Only this kind of reason, such as schema or content_policy"),
            arg("--status", choices=(*REVIEW_STATUSES, "all"), default="open", help="Which ones (default: open)"),
            arg("--limit", type=count, default=100, metavar="N", help="At most so many (default: 100)"),
            *(ARG_OUTPUT, ARG_VERBOSE),
        ),
    ),
    ActionCommand(
        name="show",
        help="One of them, with all that is known of it",
        description="Reads the ledger. Exit status: 0 good, 2 could not run.",
        func=reads("reviews.show_review"),
        args=(arg("item", metavar="ITEM", help="Its id"), ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="decide",
        help="Decide on answers that wait",
        description="Is written to the audit trail. Exit status: 0 good, 2 could not run.",
        func=changes("reviews.decide"),
        args=(
            arg("items", metavar="ITEM", nargs="+", help="Their ids"),
            arg("--decision", required=True, choices=REVIEW_DECISIONS, help="What becomes of each"),
            arg("--note", metavar="TEXT", help="What others should know; in the ledger, not in the audit trail"),
            arg("--by", metavar="NAME", help="Who (default: the account this runs under)"),
            *(ARG_OUTPUT, ARG_VERBOSE),
        ),
    ),
)
