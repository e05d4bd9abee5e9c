"""Airflow's own pattern, a task for every row: common.ai's ``LLMOperator`` mapped over the rows. Run by ``lab.Client``.

The DAG runs in one process by ``dag.test()``, which is the cheapest way to run it: an executor would start a process
for each task, and a scheduler would look at each.
"""

from __future__ import annotations

import json
import os
import tempfile
from importlib.metadata import version

from lab import MAX_TOKENS, MODEL, Figures, Stopwatch, answer, texts

_DAG = f"""
from airflow.providers.common.ai.operators.llm import LLMOperator
from airflow.sdk import DAG, task

with DAG("peer", schedule=None, params={{"texts": []}}):
    @task
    def rows(params=None):
        return params["texts"]

    LLMOperator.partial(
        task_id="ask", llm_conn_id="double", model_settings={{"max_tokens": {MAX_TOKENS}}}
    ).expand(prompt=rows())
"""


def common_ai(base_url: str, first: int, rows: int, concurrency: int) -> Figures:
    """``concurrency`` has no meaning here: ``dag.test()`` runs one task after the other."""
    del concurrency
    with tempfile.TemporaryDirectory() as home:
        os.mkdir(f"{home}/dags")
        with open(f"{home}/dags/peer.py", "w") as file:
            file.write(_DAG)
        double = {"conn_type": "pydanticai", "password": "none", "host": base_url}
        os.environ |= {
            "AIRFLOW_HOME": f"{home}/airflow",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": f"{home}/dags",
            "AIRFLOW_CONN_DOUBLE": json.dumps(double | {"extra": {"model": f"openai-chat:{MODEL}"}}),
        }
        from airflow.dag_processing.dagbag import DagBag
        from airflow.utils.db import initdb

        initdb()
        bag = DagBag(f"{home}/dags")
        assert not bag.import_errors, bag.import_errors
        dag = bag.dags["peer"]
        dag.test(run_conf={"texts": texts(first + rows, 2)})
        watch = Stopwatch()
        run = dag.test(run_conf={"texts": texts(first, rows)})
        done = [one.state for one in run.get_task_instances() if one.task_id == "ask"]
        lost = rows - done.count("success")
        return watch.figures(rows, lost=lost, version=f"common.ai {version('apache-airflow-providers-common-ai')}")


if __name__ == "__main__":
    answer({"common_ai": common_ai})
