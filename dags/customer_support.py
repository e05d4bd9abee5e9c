"""Answer customers' questions from a bank's own knowledge base, under one policy.

    sync the knowledge base ──┐
    look the inquiries over ──┴─▶ find passages ─▶ answer, in shards ─▶ one file ─▶ seal the audit trail ─▶ what it cost

Everything between a question and its answer is decided in ``include/policy.yaml``: which models may answer, what may
be spent, what is masked before it leaves the house, who may be answered from the response store. This file only says
what is to be done. With nothing configured it runs on embedded parts: no server, no key, no account.

Your own questions: set the parameter ``input`` to a CSV, JSONL or Parquet file with a column ``text``. Rows are named
by a column ``inquiry_id``, or by their number where there is none.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from airflow.sdk import Param, dag

from airflow_ai_provider.operators.audit import AuditSealOperator
from airflow_ai_provider.operators.cost import CostReportOperator
from airflow_ai_provider.operators.llm import LLMMapOperator
from airflow_ai_provider.operators.rows import GatherOperator, PlanShardsOperator
from airflow_ai_provider.operators.vectors import EmbedSyncOperator, RetrieveOperator

INCLUDE = Path(__file__).resolve().parent.parent / "include"
TEAM = "support"
RUN = "{{ params.output or macros.ai.home() ~ '/runs' }}/{{ macros.ai.run_folder(run_id) }}"
"""Where one run keeps its rows: a folder of its own, so that a retry goes on and a new run starts afresh."""


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    params={
        "input": Param(str(INCLUDE / "inquiries.csv"), type="string", description="Questions: CSV, JSONL or Parquet"),
        "output": Param("", type="string", description="Folder of the answers; empty: runs/ in [ai] home"),
    },
    tags=["ai", "example"],
    doc_md=__doc__,
)
def customer_support() -> None:
    sync = EmbedSyncOperator(
        task_id="sync_knowledge",
        source=str(INCLUDE / "knowledge"),
        collection="bank_knowledge",
        team=TEAM,
    )
    # One pass that finds missing columns and repeated keys before a single call is paid for.
    plan = PlanShardsOperator(
        task_id="read_inquiries",
        source="{{ params.input }}",
        key=["inquiry_id", "#row"],
        columns=["text"],
    )
    retrieve = RetrieveOperator(
        task_id="find_passages",
        source="{{ params.input }}",
        sink=f"{RUN}/questions",
        collection="bank_knowledge",
        query="{{ text }}",
        top_k=3,
        # The prompt asks for it; where nobody says, it is left to the model.
        defaults={"language": ""},
    )
    answer = LLMMapOperator.partial(
        task_id="answer",
        source=f"{RUN}/questions",
        sink=f"{RUN}/answers",
        prompt=f"file:{INCLUDE / 'prompts' / 'support.j2'}",
        key="{{ ti.xcom_pull(task_ids='read_inquiries', key='key') }}",
        team=TEAM,
        route="support",
    ).expand(shard=plan.output)
    gather = GatherOperator(
        task_id="gather_answers",
        source=f"{RUN}/answers",
        target=f"{RUN}/answers.csv",
        key="{{ ti.xcom_pull(task_ids='read_inquiries', key='key') }}",
    )
    # Sealing and reporting are wanted most when something went wrong.
    seal = AuditSealOperator(task_id="seal_audit", trigger_rule="all_done")
    report = CostReportOperator(task_id="cost_report", by=["team", "model"], trigger_rule="all_done")

    [sync, plan] >> retrieve >> answer >> [gather, seal]
    seal >> report


customer_support()
