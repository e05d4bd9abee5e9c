"""The audit trail on a schedule: seal it often, verify it now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_ai_provider.operators.base import HeartOperator

if TYPE_CHECKING:
    from airflow_ai_provider.audit.findings import Finding

_SHOWN = 20


class AuditSealOperator(HeartOperator):
    """Move finished segments of the trail to the archive, and sign and pin a manifest of them.

    A manifest is written even when nothing happened, so that silence is a statement too. Run it often: until a segment
    is sealed, whoever may write the spool can change it.
    """

    ui_color = "#efeaf6"

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.hooks.audit import seal_audit
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        report = seal_audit(settings_from_airflow())
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
        return {**report.fields(), "refused": len(report.refused)}


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
