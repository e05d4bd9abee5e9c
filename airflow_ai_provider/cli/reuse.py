"""``airflow ai reuse``. No value of a person is ever on a command line, on screen or in the trail."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.cli.output import FINDING, GOOD, command, progress, say, show
from airflow_ai_provider.errors import PrivacyError

if TYPE_CHECKING:
    from airflow_ai_provider.gateway.reuse.subjects import Subjects
    from airflow_ai_provider.gateway.reuse.upkeep import TeamStats
    from airflow_ai_provider.gateway.settings import Settings

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
    from airflow_ai_provider.gateway.reuse.upkeep import Selection
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
            f"{done.unreadable} answers cannot be opened, so nobody can tell whose they are: run this where the "
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
