"""``airflow ai reuse``: names and arguments."""

from __future__ import annotations

from airflow.cli.cli_config import ARG_OUTPUT, ARG_VERBOSE, ActionCommand

from airflow_ai_provider.cli.arguments import arg, last
from airflow_ai_provider.cli.calls import changes, reads

_ARG_TEAM = arg("--team", metavar="TEAM", help="Answers that this team has paid for (default: of all teams)")
_ARG_OLDER = arg("--older-than", type=last, metavar="AGE", help="Answers older than 24h, 7d or 4w")
_ARG_TOKEN = arg(
    "--token", action="append", default=[], metavar="TOKEN", help="Answers to rows with this token; may be repeated"
)
_ARG_SUBJECTS = arg(
    "--subjects", metavar="FILE", help="Answers to rows with one of these values, one per line; - is standard input"
)
_ARG_UNREADABLE = arg(
    "--unreadable", action="store_true", help="Also what cannot be opened, and so cannot be told whose it is"
)
_ARG_DRY_RUN = arg("--dry-run", action="store_true", help="Count, and remove nothing")

REUSE = (
    ActionCommand(
        name="stats",
        help="Stored answers by team: how many, how large, how old",
        description="Exit status: 0 good, 2 could not run.",
        func=reads("reuse.stats"),
        args=(_ARG_TEAM, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="purge",
        help="Remove stored answers of a team, of an age, or of a person",
        description="What is given is met by all that is removed. Exit status: 0 good, 1 answers were left that cannot "
        "be opened, 2 could not run.",
        func=changes("reuse.purge", unless="dry_run"),
        args=(
            _ARG_TEAM,
            _ARG_OLDER,
            _ARG_TOKEN,
            _ARG_SUBJECTS,
            _ARG_UNREADABLE,
            _ARG_DRY_RUN,
            ARG_OUTPUT,
            ARG_VERBOSE,
        ),
    ),
)
