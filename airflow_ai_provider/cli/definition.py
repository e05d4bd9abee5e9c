"""``airflow ai …``: names and arguments of all commands.

``airflow ai audit``: names and arguments.

``airflow ai keys`` and ``policy``: names and arguments.

``airflow ai reuse``: names and arguments.

``airflow ai review``: names and arguments.

``airflow ai …``: names and arguments only.

Every ``airflow`` call imports this module, so the commands themselves are imported when they run.
"""

from __future__ import annotations

from airflow.cli.cli_config import ARG_OUTPUT, ARG_VERBOSE, ActionCommand, CLICommand, GroupCommand

from airflow_ai_provider.cli.arguments import (
    REVIEW_DECISIONS,
    REVIEW_STATUSES,
    arg,
    changes,
    count,
    day,
    last,
    reads,
    seals,
)
from airflow_ai_provider.cli.definition_of_money import BUDGETS, COST, DEPLOYMENTS, LEDGER, PLAN

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
        func=reads("audit.search"),
        args=(*_ARGS_SEARCH, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="deliver",
        help="Bring what is sealed on this host to the archive and into the index",
        description="Exit status: 0 good, 1 something is left or refused, 2 could not run.",
        func=seals("audit.deliver"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="dead-letters",
        help="List the events that the index refused for good",
        description="Exit status: 0 there are none, 1 there are some, 2 could not run.",
        func=reads("audit.dead_letters"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="archive",
        help="Show, or set up, what the archive's bucket promises",
        description="Exit status: 0 it keeps the lock that is configured, 2 it does not.",
        func=changes("audit.archive", only_with="set_up"),
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
                func=changes("audit.index_rebuild"),
                args=(ARG_OUTPUT, ARG_VERBOSE),
            ),
        ),
    ),
)


_ARG_POLICY = arg("--policy", metavar="PATH", help="Policy file to check (default: policy_path in section ai)")
_ARG_PINNED = arg("--policy", metavar="PATH", help="Policy file to pin (default: policy_path in section ai)")
_ARG_REASON = arg("--reason", required=True, metavar="TEXT", help="Why, for the audit trail")
_ARG_WHO = arg("--by", metavar="NAME", help="Who (default: the account this runs under)")
_ARG_OUT = arg("--out", metavar="FILE", help="New file for the keyring, where a connection holds it")
_ARG_KIND = arg("kind", choices=("keyring", "signing"), help="The keyring, or the key that signs the audit trail")
_ARG_SOURCE = arg("source", help="URI of rows with encrypted columns")
_ARG_SINK = arg("--sink", required=True, metavar="URI", help="Folder of the new parts; name it again to resume")
_ARG_TEAM = arg("--team", required=True, help="Team whose keys the columns are encrypted with")
_ARG_TABLE = arg("--table", default="", help="Table that the ciphertexts are bound to (default: that of masked rows)")
_ARG_KEY = arg("--key", required=True, metavar="COLUMN", help="Column that named the rows when they were encrypted")
_ARG_COLUMNS = arg("--columns", required=True, metavar="NAMES", help="Encrypted columns, comma-separated")
_ARG_BATCH_ROWS = arg("--batch-rows", type=count, default=1000, metavar="N", help="Rows per part (default: 1000)")

KEYS = (
    ActionCommand(
        name="list",
        help="Which keys there are and which one writes; never a secret",
        func=reads("keys.list_keys"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="generate",
        help="Make a keyring with one key",
        func=changes("keys.generate"),
        args=(_ARG_OUT, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="rotate",
        help="Add a key that writes from now on; the others still read",
        func=changes("keys.rotate"),
        args=(_ARG_OUT, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="adopt",
        help="Make this host's keys those of all hosts on its ledger, where the registered ones are lost",
        func=changes("keys.adopt"),
        args=(_ARG_KIND, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="reencrypt",
        help="Move encrypted columns to the key that writes now; goes on where it was interrupted",
        description="Exit status: 0 good, 1 some rows could not be read, 2 could not run.",
        func=changes("keys.reencrypt"),
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
)
POLICY = (
    ActionCommand(
        name="check",
        help="Check the policy file: form, prices, budgets, connections",
        description="Exit status: 0 good, 1 something is wrong with the policy, 2 could not run.",
        func=reads("policy.policy_check"),
        args=(_ARG_POLICY, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="pin",
        help="Pin the policy in the ledger: calls under a policy that is not pinned are refused",
        description="Is written to the audit trail. Exit status: 0 good, 2 could not run.",
        func=changes("policy.pin"),
        args=(_ARG_PINNED, _ARG_REASON, _ARG_WHO, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="unpin",
        help="Take a pin back; after the last one every policy may make calls",
        description="Is written to the audit trail. Exit status: 0 good, 2 could not run.",
        func=changes("policy.unpin"),
        args=(arg("digest", help="Its digest, or how that begins"), _ARG_REASON, _ARG_WHO, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="pins",
        help="Which policies are pinned, by whom and why",
        description="Reads the ledger. Exit status: 0 good, 2 could not run.",
        func=reads("policy.list_pins"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
)


_ARG_REUSE_TEAM = arg("--team", metavar="TEAM", help="Answers that this team has paid for (default: of all teams)")
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
        func=reads("answers.stats"),
        args=(_ARG_REUSE_TEAM, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="purge",
        help="Remove stored answers of a team, of an age, or of a person",
        description="What is given is met by all that is removed. Exit status: 0 good, 1 answers were left that cannot "
        "be opened, 2 could not run.",
        func=changes("answers.purge", unless="dry_run"),
        args=(
            _ARG_REUSE_TEAM,
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


REVIEW = (
    ActionCommand(
        name="list",
        help="Answers that wait for a person, or did, newest first",
        description="Reads the ledger. Exit status: 0 good, 2 could not run.",
        func=reads("answers.list_reviews"),
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
        func=reads("answers.show_review"),
        args=(arg("item", metavar="ITEM", help="Its id"), ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="decide",
        help="Decide on answers that wait",
        description="Is written to the audit trail. Exit status: 0 good, 2 could not run.",
        func=changes("answers.decide"),
        args=(
            arg("items", metavar="ITEM", nargs="+", help="Their ids"),
            arg("--decision", required=True, choices=REVIEW_DECISIONS, help="What becomes of each"),
            arg("--note", metavar="TEXT", help="What others should know; in the ledger, not in the audit trail"),
            arg("--by", metavar="NAME", help="Who (default: the account this runs under)"),
            *(ARG_OUTPUT, ARG_VERBOSE),
        ),
    ),
)


def get_cli_commands() -> list[CLICommand]:
    """The commands that the provider's metadata points to."""
    groups = (
        GroupCommand(name="budgets", help="Limits of what may be spent", subcommands=BUDGETS),
        GroupCommand(name="deployments", help="Deployments that are stopped", subcommands=DEPLOYMENTS),
        GroupCommand(name="ledger", help="The ledger of calls and budgets", subcommands=LEDGER),
        GroupCommand(name="review", help="Answers that wait for a person", subcommands=REVIEW),
        GroupCommand(name="policy", help="The policy file", subcommands=POLICY),
        GroupCommand(name="reuse", help="The response store", subcommands=REUSE),
        GroupCommand(name="keys", help="The keys of masking, encryption and stored answers", subcommands=KEYS),
        GroupCommand(name="audit", help="The audit trail", subcommands=AUDIT),
    )
    return [
        GroupCommand(
            name="ai",
            help="Cost, budgets, reviews, policy, keys, reuse and audit of LLM calls",
            subcommands=(COST, PLAN, *groups),
        )
    ]
