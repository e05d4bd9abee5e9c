"""The audit trail on a schedule: seal it often, verify it now and then."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_ai_provider.core.errors import AIProviderError
from airflow_ai_provider.operators.base import AIBaseOperator, at_least_one

if TYPE_CHECKING:
    from airflow_ai_provider.core.audit.sinks.deliver import SinkReport
    from airflow_ai_provider.core.audit.trail.spool import Spool
    from airflow_ai_provider.core.audit.verify.findings import Finding
    from airflow_ai_provider.core.settings import Settings

_SHOWN = 20
_ALARM_PERCENT = 80
"""Of the spool's limit, from which on the log says so."""


class AuditSealOperator(AIBaseOperator):
    """Move finished segments of the trail to the archive, sign and pin a manifest of them, and index their events.

    A manifest is written even when nothing happened, so that silence is a statement too. Run it often: until a segment
    is sealed, any process that may write the spool can change it.

    :param pin_file: a file to which each manifest's number and hash are added, for ``verify --pin``; best where nobody
        who can write archive or database can write (templated).
    """

    template_fields: Sequence[str] = ("pin_file",)
    ui_color = "#efeaf6"

    def __init__(self, *, pin_file: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pin_file = pin_file

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.core.administration.audit import seal_audit, write_pin
        from airflow_ai_provider.core.administration.audit_delivery import spool_alarm
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        settings = settings_from_airflow()
        delivered = self._deliver(settings)
        try:
            report = seal_audit(settings)
        finally:
            if alarm := spool_alarm(settings, datetime.now(UTC)):
                self.log.error("%s", alarm)
        if report.sequence is None:
            self.log.warning("another sealer holds the lock: no manifest was written by this run")
        else:
            if self.pin_file:
                write_pin(Path(self.pin_file), report.sequence, report.manifest_hash)
            self.log.info(
                "manifest %d: %d events in %d segments, hash %s",
                report.sequence,
                report.events,
                report.segments,
                report.manifest_hash,
            )
        for refusal in report.refused:
            self.log.error("left in the spool: %s", refusal.reason)
        spool = settings.audit_spool()
        return {**report.fields(), "refused": len(report.refused), "spool_bytes": self._spool_bytes(spool), **delivered}

    def _spool_bytes(self, spool: Spool) -> int:
        """What still waits: as a metric for an alert, and as an alarm in the log long before calls stop."""
        from airflow.sdk.observability import stats

        used = spool.used_bytes()
        percent = 100 * used // spool.limit_bytes
        stats.gauge("ai.audit.spool_bytes", used)
        stats.gauge("ai.audit.spool_percent", percent)
        if percent >= _ALARM_PERCENT:
            self.log.error("AUDIT SPOOL %d%% FULL (%s): no call is made once it is full", percent, spool.folder)
        return used

    def _deliver(self, settings: Settings) -> dict[str, int]:
        """Deliver to archive and index, and tell what is left; no trouble of a sink keeps the trail from its seal."""
        from airflow_ai_provider.core.administration.audit_delivery import deliver_audit

        try:
            sinks = deliver_audit(settings).sinks
        except AIProviderError as error:
            self.log.error("delivery: %s", error)
            sinks = {}
        for name, sink in sinks.items():
            self._tell(name, sink)
        index = sinks.get("index")
        return {"indexed": index.events if index else 0, "dead_letters": index.dead if index else 0}

    def _tell(self, name: str, sink: SinkReport) -> None:
        for problem in sink.problems:
            self.log.error("%s: %s: %s", name, problem.place, problem.reason)
        if sink.dead:
            self.log.error("%s: %d events refused for good; run airflow ai audit dead-letters", name, sink.dead)
        if sink.error:
            self.log.error("%s: %s; the rest waits for the next run", name, sink.error)


class AuditVerifyOperator(AIBaseOperator):
    """Read the trail, compare it with its pins and with the ledger, and fail if it is not what was written.

    :param days: read only what was written on the last days (UTC, today included); ``None`` reads all.
    :param pin_file: manifest hashes that were kept elsewhere, lines of ``SEQUENCE HASH`` (templated).
    """

    template_fields: Sequence[str] = ("pin_file",)
    ui_color = "#efeaf6"

    def __init__(self, *, days: int | None = None, pin_file: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.days = None if days is None else at_least_one("days", days)
        self.pin_file = pin_file

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.core.administration.audit import pins_from, verify_audit
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        since = datetime.now(UTC).date() - timedelta(days=self.days - 1) if self.days else None
        pins = pins_from(Path(self.pin_file)) if self.pin_file else None
        report = verify_audit(settings_from_airflow(), since=since, pins=pins)
        for note in report.notes:
            self.log.info("%s", finding_line(note))
        for finding in report.findings:
            self.log.error("%s", finding_line(finding))
        if report.findings:
            shown = "; ".join(finding_line(finding) for finding in report.findings[:_SHOWN])
            raise AirflowFailException(f"the audit trail does not verify, {len(report.findings)} findings: {shown}")
        if report.error:
            raise AirflowException(f"the audit trail could not be verified to its end: {report.error}")
        self.log.info(
            "the audit trail verifies: %d events, %d segments, %d manifests",
            report.events,
            report.segments,
            report.manifests,
        )
        return {"events": report.events, "segments": report.segments, "manifests": report.manifests}


def finding_line(finding: Finding) -> str:
    """One line of a verification."""
    probably = f" (probably: {finding.attack})" if finding.attack else ""
    return f"{finding.kind} at {finding.place}: {finding.detail}{probably}"
