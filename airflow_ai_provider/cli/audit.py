"""``airflow ai audit …``: seal, verify, export and prove. Exit status: 0 good, 1 a finding, 2 could not run."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from airflow_ai_provider.cli.output import FINDING, GOOD, command, say, show
from airflow_ai_provider.errors import AuditError

if TYPE_CHECKING:
    from airflow_ai_provider.audit.findings import VerifyReport
    from airflow_ai_provider.gateway.settings import Settings


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
