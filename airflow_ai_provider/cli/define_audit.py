"""``airflow ai audit``: names and arguments."""

from __future__ import annotations

from airflow.cli.cli_config import ARG_OUTPUT, ARG_VERBOSE, ActionCommand, GroupCommand

from airflow_ai_provider.cli.arguments import arg, count, day
from airflow_ai_provider.cli.calls import changes, reads, seals

_ARG_FROM = arg("--from", dest="since", type=day, metavar="DAY", help="First day to read, UTC (default: all)")
_ARG_TO = arg("--to", dest="until", type=day, metavar="DAY", help="Last day to read, UTC (default: today)")
_ARG_PIN = arg("--pin", metavar="FILE", help="Manifest hashes kept elsewhere, lines of SEQUENCE HASH")
_ARG_KEYS = arg("--keys", metavar="PATH", help="Verify key, or folder of them (default: this installation's)")
_ARG_EVENT_FORMAT = arg("--format", choices=("ecs", "ocsf"), default="ecs", help="ECS documents or OCSF API Activity")
_ARG_FILE = arg("-o", "--output", metavar="FILE", default="-", help="File to write (default: standard output)")
_ARG_EVENT = arg("event_id", metavar="EVENT_ID", help="The event.id of the event")
_ARG_DAYS_SINCE = arg("--since", type=day, metavar="DAY", help="First day to export, UTC (default: all)")
_ARG_DAYS_UNTIL = arg("--until", type=day, metavar="DAY", help="Last day to export, UTC (default: today)")
_ARG_ARCHIVE = arg("--archive", metavar="URI", help="Archive of the audit trail (default: archive_uri in section ai)")
_ARGS_SEARCH = (
    arg("--user", metavar="NAME", help="Who"),
    arg("--action", metavar="ACTION", help="What, such as llm.call"),
    arg("--outcome", choices=("success", "failure", "unknown"), help="What came of it"),
    arg("--dag", metavar="DAG_ID", help="In which DAG"),
    arg("--run", metavar="RUN_ID", help="In which DAG run"),
    arg("--task", metavar="TASK_ID", help="In which task"),
    arg("--request", metavar="REQUEST_ID", help="Attempts and reuse of one request"),
    arg("--since", metavar="TIME", help="30d, 12h, 15m, a day or a time, UTC (default: the first event)"),
    arg("--until", metavar="TIME", help="The same; a day counts to its end (default: now)"),
    arg("--limit", type=count, default=100, metavar="N", help="Newest events to show (default: 100)"),
)
_ARG_SET_UP = arg("--set-up", action="store_true", help="Give the bucket its default lock and a lifecycle rule")
_ARG_EXPIRE = arg("--expire-days", type=count, metavar="N", help="With --set-up: remove objects after so many days")

AUDIT = (
    ActionCommand(
        name="verify",
        help="Verify that the audit trail is whole, in order and unaltered",
        description="Exit status: 0 good, 1 the trail does not verify, 2 could not run.",
        func=reads("audit.verify"),
        args=(_ARG_FROM, _ARG_TO, _ARG_PIN, _ARG_KEYS, _ARG_ARCHIVE, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="seal",
        help="Archive finished segments, sign and pin a manifest of them",
        description="Exit status: 0 good, 1 a segment was refused, 2 could not run.",
        func=seals("audit.seal"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="export",
        help="Write events as JSON lines, in ECS or OCSF",
        description="Exit status: 0 good, 1 the trail does not verify, 2 could not run.",
        func=reads("audit.export"),
        args=(_ARG_EVENT_FORMAT, _ARG_DAYS_SINCE, _ARG_DAYS_UNTIL, _ARG_ARCHIVE, _ARG_FILE, ARG_VERBOSE),
    ),
    ActionCommand(
        name="prove",
        help="Write the proof that one event is in the trail",
        description="scripts/verify_proof.py checks it. Exit status: 0 good, 2 could not run.",
        func=reads("audit.prove"),
        args=(_ARG_EVENT, _ARG_ARCHIVE, _ARG_FILE, ARG_VERBOSE),
    ),
    ActionCommand(
        name="search",
        help="Find events: who did what, when, in which run",
        description="Reads the index over the trail. Exit status: 0 good, 2 could not run.",
        func=reads("audit_search.search"),
        args=(*_ARGS_SEARCH, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="deliver",
        help="Bring what is sealed on this host to the archive and into the index",
        description="Exit status: 0 good, 1 something is left or refused, 2 could not run.",
        func=seals("audit_search.deliver"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="dead-letters",
        help="List the events that the index refused for good",
        description="Exit status: 0 there are none, 1 there are some, 2 could not run.",
        func=reads("audit_search.dead_letters"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="archive",
        help="Show, or set up, what the archive's bucket promises",
        description="Exit status: 0 it keeps the lock that is configured, 2 it does not.",
        func=changes("audit_search.archive", only_with="set_up"),
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
                func=changes("audit_search.index_rebuild"),
                args=(ARG_OUTPUT, ARG_VERBOSE),
            ),
        ),
    ),
)
