"""The audit trail on a schedule: seal it often, verify it now and then."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_ai_provider.errors import AIProviderError
from airflow_ai_provider.operators.base import HeartOperator

if TYPE_CHECKING:
    from airflow_ai_provider.audit.deliver import SinkReport
    from airflow_ai_provider.audit.findings import Finding
    from airflow_ai_provider.gateway.settings import Settings

_SHOWN = 20


class AuditSealOperator(HeartOperator):
    """Move finished segments of the trail to the archive, sign and pin a manifest of them, and index their events.

    A manifest is written even when nothing happened, so that silence is a statement too. Run it often: until a segment
    is sealed, whoever may write the spool can change it.
    """

    ui_color = "#efeaf6"

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.hooks.audit import seal_audit
        from airflow_ai_provider.hooks.audit_sinks import spool_alarm
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        settings = settings_from_airflow()
        delivered = self._deliver(settings)
        try:
            report = seal_audit(settings)
        finally:
            if alarm := spool_alarm(settings, datetime.now(UTC)):
                self.log.error("%s", alarm)
        if report.sequence is None:
            self.log.info("another sealer is at work; nothing to do")
        else:
            self.log.info(
                "manifest %d: %d events in %d segments, hash %s",
                report.sequence,
                report.events,
                report.segments,
                report.manifest_hash,
            )
        for refusal in report.refused:
            self.log.error("left in the spool: %s", refusal.reason)
        return {**report.fields(), "refused": len(report.refused), **delivered}

    def _deliver(self, settings: Settings) -> dict[str, int]:
        """Deliver to archive and index, and tell what is left; no trouble of a sink keeps the trail from its seal."""
        from airflow_ai_provider.hooks.audit_sinks import deliver_audit

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


class AuditVerifyOperator(HeartOperator):
    """Read the whole trail and fail if it is not what was written."""

    ui_color = "#efeaf6"

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.hooks.audit import verify_audit
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        report = verify_audit(settings_from_airflow())
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
