"""``airflow ai reuse`` and ``airflow ai review``: stored answers, and answers that wait for a person.

``airflow ai reuse``. No value of a person is ever on a command line, on screen or in the trail.

``airflow ai review …``: answers that wait for a person. Exit status: 0 good, 2 could not run.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.cli.output import FINDING, GOOD, command, progress, say, show
from airflow_ai_provider.core.administration.people import current_person
from airflow_ai_provider.core.errors import PrivacyError

if TYPE_CHECKING:
    from airflow_ai_provider.core.cache.purge import Subjects, TeamStats
    from airflow_ai_provider.core.settings import Settings


_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}


@command
def stats(args: Namespace) -> int:
    """``airflow ai reuse stats``"""
    from airflow_ai_provider.core.administration.reuse import reuse_stats
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    found = reuse_stats(settings_from_airflow(), args.team)
    if found or args.output != "table":
        show([_stats_row(each) for each in found], args.output)
    else:
        say(args, "no stored answers")
    return GOOD


@command
def purge(args: Namespace) -> int:
    """``airflow ai reuse purge``"""
    from airflow_ai_provider.core.administration.reuse import purge_reuse
    from airflow_ai_provider.core.cache.purge import Selection
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    settings = settings_from_airflow()
    before = int(time.time()) - _seconds(args.older_than) if args.older_than else None
    selection = Selection(args.team, before, _subjects(settings, args), args.unreadable)
    if selection == Selection():
        raise PrivacyError("nothing to go by: give --team, --older-than, --token, --subjects or --unreadable")
    with progress("answers looked at") as told:
        done = purge_reuse(settings, selection, dry_run=args.dry_run, progress=told)
    removed = "would_remove" if args.dry_run else "removed"
    show([{"looked_at": done.seen, removed: done.removed, "bytes": done.size, "left_unreadable": done.unreadable}],
         args.output)  # fmt: skip
    if done.unreadable:
        print(
            f"{done.unreadable} answers cannot be opened, so that their owner is unknown: run this where the "
            "keyring has every key, or remove them with --unreadable",
            file=sys.stderr,
        )
    return FINDING if done.unreadable else GOOD


def _subjects(settings: Settings, args: Namespace) -> Subjects | None:
    from airflow_ai_provider.core.administration.reuse import subjects_of

    values = _values(args.subjects) if args.subjects else []
    if args.subjects and not values:
        raise PrivacyError(f"--subjects {args.subjects}: expected values, one per line, and found none")
    return subjects_of(settings, named=args.token, values=values) if args.token or values else None


def _values(name: str) -> list[str]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise PrivacyError(f"--subjects {name}: cannot be read: {reason}") from None
    return [line for line in text.splitlines() if line.strip()]


def _seconds(age: str) -> int:
    return int(age[:-1]) * _SECONDS[age[-1]]


def _stats_row(found: TeamStats) -> dict[str, Any]:
    known = found.team is not None
    return {
        "team": found.team if known else "(not ours)",
        "answers": found.answers,
        "bytes": found.size,
        "oldest": _moment(found.oldest) if known else "",
        "newest": _moment(found.newest) if known else "",
    }


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


_LISTED = ("team_id", "dag_id", "run_id", "row_key", "reason_kind", "status", "decision")


@command
def list_reviews(args: Namespace) -> int:
    """``airflow ai review list``"""
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.ledger.reviews import list_reviews
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    wanted = {"team": args.team, "dag_id": args.dag, "run_id": args.run, "reason_kind": args.kind}
    status = None if args.status == "all" else args.status
    settings = settings_from_airflow()
    with Installation(settings) as installation, installation.ledger.read() as conn:
        items = list_reviews(conn, **wanted, status=status, limit=args.limit)
    show(
        [{"item": item["item_id"], "created_at": _time(item["created_at"]), **_some(item, _LISTED)} for item in items],
        args.output,
    )
    return GOOD


@command
def show_review(args: Namespace) -> int:
    """``airflow ai review show``"""
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.ledger.reviews import review_of
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    settings = settings_from_airflow()
    with Installation(settings) as installation, installation.ledger.read() as conn:
        item = review_of(conn, args.item)
    times = {name: _time(item[name]) for name in ("created_at", "decided_at", "updated_at")}
    # SQLAlchemy's names of columns are texts of a kind of their own, which YAML does not take.
    whole = {str(name): "" if value is None else value for name, value in {**item, **times}.items()}
    down = args.output in ("table", "plain")  # its columns are too many for the width of a screen
    show([{"column": name, "value": value} for name, value in whole.items()] if down else [whole], args.output)
    return GOOD


@command
def decide(args: Namespace) -> int:
    """``airflow ai review decide``"""
    from airflow_ai_provider.core.administration.ledger import decide_reviews
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    caller = current_person(args.by)
    decide_reviews(settings_from_airflow(), args.items, args.decision, caller=caller, note=args.note)
    for item in dict.fromkeys(args.items):
        say(args, f"{item}: {args.decision} by {caller.user}")
    return GOOD


def _some(item: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name.removesuffix("_id"): "" if item[name] is None else item[name] for name in names}


def _time(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else ""
