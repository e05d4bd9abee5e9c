"""Keep the audit trail and the ledger: seal and sweep every few minutes, verify and tidy up once a day.

Until a segment is sealed, whoever may write the spool can change it; so sealing is often, and a manifest is signed even
when nothing happened. Verification reads the trail against its pins and against the ledger, and fails where anything is
not what was written: give it an alert.

Workers on several hosts have a spool each: run ``ai_audit_seal`` on every one of them, for example with one copy of the
task for each host's queue. Only the sealer needs the signing key; keep it from the other workers
(``[ai] audit_signing_key``).

``ai_holds_sweep`` settles what crashed tasks left open, so that they do not keep room in budgets. ``ai_ledger_upkeep``
makes the months to come, drops those past their retention, and checks the daily rollup against its rows.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from airflow_ai_provider.operators.audit import AuditSealOperator, AuditVerifyOperator
from airflow_ai_provider.operators.budgets import SweepHoldsOperator
from airflow_ai_provider.operators.ledger import LedgerMaintenanceOperator

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


@dag(
    schedule=timedelta(minutes=10),
    catchup=False,
    max_active_runs=1,
    default_args=RETRIES,
    tags=["ai", "ledger"],
    doc_md=__doc__,
)
def ai_holds_sweep() -> None:
    SweepHoldsOperator(task_id="sweep")


@dag(
    schedule="10 0 * * *",
    catchup=False,
    max_active_runs=1,
    default_args=RETRIES,
    tags=["ai", "ledger"],
    doc_md=__doc__,
)
def ai_ledger_upkeep() -> None:
    LedgerMaintenanceOperator(task_id="maintain")


ai_audit_seal()
ai_audit_verify()
ai_holds_sweep()
ai_ledger_upkeep()
