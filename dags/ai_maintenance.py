"""Keep the audit trail: seal it every few minutes, read all of it once a day.

Until a segment is sealed, whoever may write the spool can change it; so sealing is often, and a manifest is signed even
when nothing happened. Verification reads the trail against its pins and against the ledger, and fails where anything is
not what was written: give it an alert.

Workers on several hosts have a spool each: run ``ai_audit_seal`` on every one of them, for example with one copy of the
task for each host's queue. Only the sealer needs the signing key; keep it from the other workers
(``[ai] audit_signing_key``).
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from airflow_ai_provider.operators.audit import AuditSealOperator, AuditVerifyOperator

RETRIES = {"retries": 3, "retry_delay": timedelta(minutes=1)}


@dag(
    schedule=timedelta(minutes=10),
    catchup=False,
    max_active_runs=1,
    default_args=RETRIES,
    tags=["ai", "audit"],
    doc_md=__doc__,
)
def ai_audit_seal() -> None:
    AuditSealOperator(task_id="seal")


@dag(
    schedule="@daily",
    catchup=False,
    max_active_runs=1,
    default_args=RETRIES,
    tags=["ai", "audit"],
    doc_md=__doc__,
)
def ai_audit_verify() -> None:
    AuditVerifyOperator(task_id="verify")


ai_audit_seal()
ai_audit_verify()
