"""``airflow ai audit …``.

``airflow ai audit …``: seal, verify, export and prove. Exit status: 0 good, 1 a finding, 2 could not run.

``airflow ai audit search``, ``deliver``, ``dead-letters``, ``index rebuild`` and ``archive``.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from airflow_ai_provider.cli.output import COULD_NOT_RUN, FINDING, GOOD, command, say, show
from airflow_ai_provider.core.errors import AuditError

if TYPE_CHECKING:
    from airflow_ai_provider.core.audit.sinks.deliver import SinkReport
    from airflow_ai_provider.core.audit.sinks.s3_archive import BucketState
    from airflow_ai_provider.core.audit.verify.findings import VerifyReport
    from airflow_ai_provider.core.settings import Settings


@command
def verify(args: Namespace) -> int:
    """``airflow ai audit verify``"""
    from airflow_ai_provider.core.administration.audit import pins_from, verify_audit

    settings = _settings(args)
    keys = Path(args.keys).expanduser().absolute() if args.keys else None
    if keys is not None and not keys.exists():
        raise AuditError(f"{keys}: no such file; expected the sealer's verify key, or a folder of verify_key*.pem")
    pins = pins_from(Path(args.pin)) if args.pin else None
    report = verify_audit(settings, since=args.since, until=args.until, pins=pins, keys=keys)
    rows = [
        {"kind": finding.kind, "place": finding.place, "detail": finding.detail, "probably": finding.attack}
        for finding in report.findings
    ]
    if rows or args.output != "table":
        show(rows, args.output)
    if report.error:
        print(f"error: {report.error} ({settings.home / 'audit'})", file=sys.stderr)
    else:
        say(args, f"trail {report.trail}: {report.events} events in {report.segments} segments, {len(rows)} findings")
    return report.status


@command
def seal(args: Namespace) -> int:
    """``airflow ai audit seal``"""
    from airflow_ai_provider.core.administration.audit import seal_audit
    from airflow_ai_provider.hooks.settings import settings_from_airflow

    report = seal_audit(settings_from_airflow())
    show([{**report.fields(), "refused": len(report.refused)}], args.output)
    for refusal in report.refused:
        print(f"left in the spool: {refusal.reason}", file=sys.stderr)
    return FINDING if report.refused else GOOD


@command
def export(args: Namespace) -> int:
    """``airflow ai audit export``"""
    from airflow_ai_provider.core.administration.audit import export_audit

    settings = _settings(args)
    with _target(args.output) as stream:
        count, report = export_audit(settings, stream, args.format, since=args.since, until=args.until)
    return _told(report, f"{count} events as {args.format}")


@command
def prove(args: Namespace) -> int:
    """``airflow ai audit prove``"""
    from airflow_ai_provider.core.administration.audit import prove_event

    proof = prove_event(_settings(args), args.event_id)
    with _target(args.output) as stream:
        stream.write(json.dumps(proof, indent=1, ensure_ascii=False).encode() + b"\n")
    return GOOD


def _settings(args: Namespace) -> Settings:
    from airflow_ai_provider.hooks.settings import settings_from_airflow, with_archive

    settings = settings_from_airflow()
    if not args.archive:
        return settings
    if "://" in args.archive and not args.archive.startswith("file://"):
        return with_archive(settings, args.archive)
    folder = Path(args.archive.removeprefix("file://")).expanduser().absolute()
    if not folder.is_dir():
        raise AuditError(f"{folder}: no such folder; expected an archive of the audit trail, or a copy of one")
    return with_archive(settings, str(folder))


@contextmanager
def _target(path: str) -> Iterator[BinaryIO]:
    """A file that appears whole, or standard output."""
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path).expanduser()
    temporary = target.with_name(f".{target.name}.part")
    try:
        with temporary.open("wb") as stream:
            yield stream
        temporary.replace(target)
    except OSError as error:
        raise AuditError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _told(report: VerifyReport, text: str) -> int:
    """Say on standard error what was done, and whether what was read is what was written."""
    print(f"{text}; the trail has {len(report.findings)} findings", file=sys.stderr)
    if report.error:
        print(f"error: {report.error}", file=sys.stderr)
    return report.status


_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


@command
def search(args: Namespace) -> int:
    """``airflow ai audit search``"""
    from airflow_ai_provider.core.administration.audit_delivery import open_index
    from airflow_ai_provider.core.audit.sinks.search import FIELDS, Query
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
