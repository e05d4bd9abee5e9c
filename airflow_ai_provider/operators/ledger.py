"""The ledger on a schedule: kept in order, exported, and held against what the vendor says it charged."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException

from airflow_ai_provider.operators.base import AIBaseOperator, at_least_one, day_of, require_text
from airflow_ai_provider.operators.cost import text_table

_SHOWN = 20


class LedgerMaintenanceOperator(AIBaseOperator):
    """Make months ahead, drop those past their retention, and check the daily rollup against its rows.

    Months that are still needed stay, and the log says why. A figure that differs fails the task, after everything
    else is done.

    :param keep_months: full months kept before the present one; ``None`` takes ``ledger.keep_months`` of the policy.
    :param check_days: days that are checked, the present one included; days that an invoice adjusted in this time are
        checked as well. 0 checks nothing.
    :param force: drop months even if they are still needed.
    """

    ui_color = "#f4f1e8"

    def __init__(
        self, *, keep_months: int | None = None, check_days: int = 7, force: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.keep_months = None if keep_months is None else at_least_one("keep_months", keep_months)
        if check_days < 0:
            raise ValueError(f"check_days {check_days}: expected 0 or more")
        self.check_days = check_days
        self.force = force

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.core.administration.ledger import maintain_ledger
        from airflow_ai_provider.hooks.context import caller_from_context
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        settings = settings_from_airflow()
        done = maintain_ledger(
            settings, keep_months=self.keep_months, force=self.force, caller=caller_from_context(context)
        )
        for old in done.kept:
            self.log.warning("%s stays: %s", old.name, old.needed or "an older month is kept")
        checked = self._check(settings) if self.check_days else 0
        self.log.info("%d months made, %d dropped, %d days checked", len(done.made), len(done.dropped), checked)
        return {
            "made": list(done.made),
            "dropped": [old.name for old in done.dropped],
            "kept": [old.name for old in done.kept],
            "checked_days": checked,
        }

    def _check(self, settings: Any) -> int:
        """Number of days checked. Raises ``AirflowFailException`` where a figure differs."""
        from airflow_ai_provider.core.installation import Installation
        from airflow_ai_provider.core.ledger.maintenance.upkeep import check_days, days_to_check

        with Installation(settings) as installation:
            ledger = installation.ledger
            today = ledger.now().date()
            with ledger.read() as conn:
                days, _ = days_to_check(conn, today - timedelta(days=self.check_days - 1), today)
            found = [drift for drifts in check_days(ledger, days) for drift in drifts]
        if not found:
            return len(days)
        shown = "; ".join(
            f"{one.day} {one.team} {one.dag} {one.model}: {one.column} is {one.rollup}, its rows say {one.rows}"
            for one in found[:_SHOWN]
        )
        raise AirflowFailException(
            f"{len(found)} figures of llm_cost_daily differ from their rows; airflow ai ledger check --repair "
            f"rewrites them: {shown}"
        )


class LedgerExportOperator(AIBaseOperator):
    """Write closed days of ``llm_requests`` and ``llm_adjustments`` as Parquet, one file for each day and table.

    What is there already is passed over, so that a run exports what is new and mends what is missing.

    :param target: folder or object-store URL, which may name a connection: ``s3://CONN_ID@bucket/prefix`` (templated).
    :param since: first day, UTC, such as ``2025-01-31`` or ``{{ ds }}``; ``None`` is the ledger's first (templated).
    :param until: last day, UTC; ``None`` is the last closed one (templated).
    """

    template_fields: Sequence[str] = ("target", "since", "until")
    ui_color = "#f4f1e8"

    def __init__(self, *, target: str, since: str | None = None, until: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_text(f"LedgerExportOperator {self.task_id}", target=target)
        self.target = target
        self.since = since
        self.until = until

    def run(self, context: Context) -> dict[str, Any]:
        from airflow_ai_provider.core.administration.audit import record
        from airflow_ai_provider.core.installation import Installation
        from airflow_ai_provider.core.reporting.export import export_ledger
        from airflow_ai_provider.hooks.context import caller_from_context
        from airflow_ai_provider.hooks.settings import settings_from_airflow, store

        settings = settings_from_airflow()
        uri, options = store(settings, self.target, f"target of {self.task_id}")
        with Installation(settings) as installation:
            ledger = installation.ledger
            done = export_ledger(
                ledger,
                uri,
                now=ledger.now(),
                since=day_of(self.since),
                until=day_of(self.until),
                storage_options=options,
                progress=lambda at, total: self.log.info("day %d of %d is written", at, total),
            )
        if done.written:
            record(
                settings,
                "ledger.exported",
                caller_from_context(context),
                days=done.written,
                rows=done.rows,
                bytes=done.bytes,
                manifest_hash=done.manifest_sha256,
            )
        self.log.info("%d days written, %d there already, %d rows", done.written, done.skipped, done.rows)
        return {
            "days": done.written,
            "skipped": done.skipped,
            "rows": done.rows,
            "bytes": done.bytes,
            "manifest_sha256": done.manifest_sha256,
        }


class LedgerReconcileOperator(AIBaseOperator):
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
        from airflow_ai_provider.core.administration.ledger import reconcile_invoice
        from airflow_ai_provider.hooks.context import caller_from_context
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
