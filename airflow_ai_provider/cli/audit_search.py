"""``airflow ai audit search``, ``deliver``, ``dead-letters``, ``index rebuild`` and ``archive``."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.cli.output import COULD_NOT_RUN, FINDING, GOOD, command, say, show
from airflow_ai_provider.errors import AuditError

if TYPE_CHECKING:
    from airflow_ai_provider.audit.deliver import SinkReport
    from airflow_ai_provider.audit.s3_archive import BucketState

_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


@command
def search(args: Namespace) -> int:
    """``airflow ai audit search``"""
    from airflow_ai_provider.audit.search import FIELDS, Query
    from airflow_ai_provider.core.administration.audit_delivery import open_index
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    now = datetime.now(UTC)
    query = Query(
        user=args.user,
        action=args.action,
        outcome=args.outcome,
        dag_id=args.dag,
        run_id=args.run,
        task_id=args.task,
        request_id=args.request,
        since=moment(args.since, now) if args.since else None,
        until=moment(args.until, now, end=True) if args.until else None,
        limit=args.limit,
    )
    with open_index(settings_from_airflow()) as index:
        found = index.search(query)
        if not found:
            print(f"nothing of the kind in {index.name}", file=sys.stderr)
    if args.output in ("json", "yaml"):
        show(found, args.output)
    else:
        columns = {"time": "@timestamp", **FIELDS, "event": "event.id"}
        show([{name: event.get(field, "") for name, field in columns.items()} for event in found], args.output)
    return GOOD


@command
def deliver(args: Namespace) -> int:
    """``airflow ai audit deliver``"""
    from airflow_ai_provider.core.administration.audit_delivery import deliver_audit, spool_alarm
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    settings = settings_from_airflow()
    report = deliver_audit(settings)
    if report.busy:
        say(args, "another delivery is at work; nothing to do")
        return GOOD
    show([_sink_row(name, sink) for name, sink in report.sinks.items()], args.output)
    for sink in report.sinks.values():
        _tell_problems(sink)
    if alarm := spool_alarm(settings, datetime.now(UTC)):
        print(f"alarm: {alarm}", file=sys.stderr)
    return GOOD if report.is_good and not alarm else FINDING


@command
def dead_letters(args: Namespace) -> int:
    """``airflow ai audit dead-letters``"""
    from airflow_ai_provider.core.administration import audit_delivery
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    letters = audit_delivery.dead_letters(settings_from_airflow())
    if letters or args.output != "table":
        show([asdict(letter) for letter in letters], args.output)
    say(args, f"{len(letters)} dead letters")
    return FINDING if letters else GOOD


@command
def index_rebuild(args: Namespace) -> int:
    """``airflow ai audit index rebuild``"""
    from airflow_ai_provider.core.administration.audit_delivery import rebuild_audit_index
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    report = rebuild_audit_index(settings_from_airflow())
    show([_sink_row("index", report)], args.output)
    _tell_problems(report)
    if report.error:
        return COULD_NOT_RUN
    return FINDING if report.dead or report.problems else GOOD


@command
def archive(args: Namespace) -> int:
    """``airflow ai audit archive``"""
    from airflow_ai_provider.core.administration.audit_delivery import open_bucket
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    if args.expire_days is not None and not args.set_up:
        raise AuditError("--expire-days is part of --set-up")
    bucket = open_bucket(settings_from_airflow())
    state = bucket.set_up(expire_days=args.expire_days) if args.set_up else bucket.state()
    show([_bucket_row(state)], args.output)
    bucket.check()
    return GOOD


def moment(text: str, now: datetime, *, end: bool = False) -> datetime:
    """``30d``, ``12h`` or ``15m`` before now; a day, or with ``end`` the end of it; or a time, UTC if it names no zone.

    Raises ``AuditError``.
    """
    if text[:-1].isdigit() and text[-1] in _UNITS:
        return now - timedelta(**{_UNITS[text[-1]]: int(text[:-1])})
    try:
        if len(text) == len("2025-01-31"):
            day = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
            return day + timedelta(days=1) if end else day
        found = datetime.fromisoformat(text)
    except ValueError:
        raise AuditError(f"{text!r}: expected 30d, 12h, 15m, 2025-01-31 or 2025-01-31T12:00:00Z") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _sink_row(name: str, sink: SinkReport) -> dict[str, Any]:
    return {"sink": name, "segments": sink.segments, "events": sink.events, "dead_letters": sink.dead}


def _tell_problems(sink: SinkReport) -> None:
    for problem in sink.problems:
        print(f"left: {problem.place}: {problem.reason}", file=sys.stderr)
    if sink.error:
        print(f"error: {sink.error}; the rest waits for the next delivery", file=sys.stderr)


def _bucket_row(state: BucketState) -> dict[str, Any]:
    return {
        "bucket": state.bucket,
        "object_lock": state.locked,
        "versioning": state.versioned,
        "default_retention": state.default_retention or "none",
        "expiring_rules": ", ".join(state.expiring) or "none",
    }
