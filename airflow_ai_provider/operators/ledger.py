"""The ledger on a schedule: held against what the vendor says it charged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException

from airflow_ai_provider.operators.base import HeartOperator, require_text
from airflow_ai_provider.operators.cost import text_table

_SHOWN = 20


class LedgerReconcileOperator(HeartOperator):
    """Hold the ledger against a vendor's invoice, resolve unknown calls, and fail if something differs.

    :param invoice: path or object-store URL of the vendor's export (templated).
    :param covers: ``FROM..TO``, days (UTC) or times for which the export is complete (templated).
    :param deployments: those of the policy that the vendor's account serves.
    :param invoice_format: ``csv``, ``openai-usage``, ``openai-costs``, ``anthropic-usage`` or ``anthropic-costs``;
        by the file's content if it is not given.
    :param only_compare: change nothing.
    :param fail_on_findings: ``False`` logs findings and succeeds.
    """

    template_fields: Sequence[str] = ("invoice", "covers")
    ui_color = "#f4f1e8"

    def __init__(
        self,
        *,
        invoice: str,
        covers: str | None = None,
        deployments: Sequence[str] | None = None,
        invoice_format: str | None = None,
        only_compare: bool = False,
        fail_on_findings: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_text(f"LedgerReconcileOperator {self.task_id}", invoice=invoice)
        self.invoice = invoice
        self.covers = covers
        self.deployments = [deployments] if isinstance(deployments, str) else deployments
        self.invoice_format = invoice_format
        self.only_compare = only_compare
        self.fail_on_findings = fail_on_findings

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.hooks.context import caller_from_context
        from airflow_ai_provider.hooks.reconcile import reconcile_invoice
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        report = reconcile_invoice(
            settings_from_airflow(),
            self.invoice,
            wanted=self.invoice_format,
            covers=self.covers,
            deployments=self.deployments,
            dry_run=self.only_compare,
            caller=caller_from_context(context),
        )
        totals = report.totals()
        self.log.info("%s\n%s", report.invoice, text_table([day.row() for day in report.days]))
        self.log.info("%s", totals)
        for finding in report.findings:
            self.log.warning("%s %s: %s", finding.kind, finding.place, finding.detail)
        if not report.equal and self.fail_on_findings:
            shown = "; ".join(f"{found.kind} {found.place}" for found in list(report.findings)[:_SHOWN])
            raise AirflowFailException(f"{report.invoice}: {len(report.findings)} findings: {shown}")
        return totals
