"""``airflow ai plan``: what a DAG's LLM tasks would ask and cost, before a cent is spent."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.cli.output import FINDING, GOOD, command, progress, say, show
from airflow_ai_provider.core.errors import PermanentError, PromptError, SourceError

if TYPE_CHECKING:
    from airflow_ai_provider.cli.dags import Asking, Known
    from airflow_ai_provider.core.jobs.plan import SpendPlan


@command
def plan(args: Namespace) -> int:
    """``airflow ai plan``: 0 everything fits its budgets, 1 something does not."""
    from airflow_ai_provider.cli.dags import askings, llm_tasks, load_dag

    dag = load_dag(args.dag_id, args.bundle_name)
    known = _known(args)
    asked = [asking for task in llm_tasks(dag, args.task) for asking in askings(task, known)]
    defaults = dict(args.default or [])
    plans = [(asking, _planned(asking, defaults)) for asking in asked]
    _print(args, plans)
    return GOOD if all(line.rows_over == 0 for line in _budgets(plans)) else FINDING


def _known(args: Namespace) -> Known:
    from airflow_ai_provider.cli.dags import Known, known_run

    known = known_run(args.dag_id, args.run_id) if args.run_id else Known()
    conf = {**known.conf, **_conf(args.conf)}
    return replace(known, conf=conf, source=args.input, key=args.key, policy=args.policy)


def _conf(text: str | None) -> Mapping[str, Any]:
    if not text:
        return {}
    try:
        conf = json.loads(text)
    except ValueError:
        conf = None
    if not isinstance(conf, dict):
        raise PermanentError("--conf: expected a JSON object, as for airflow dags trigger")
    return conf


def _planned(asking: Asking, defaults: Mapping[str, str]) -> SpendPlan:
    from airflow_ai_provider.cli.dags import latest_run
    from airflow_ai_provider.core.jobs.plan import plan_spend
    from airflow_ai_provider.hooks.settings import settings_from_airflow, with_policy

    settings = with_policy(settings_from_airflow(policy=asking.policy), asking.instead)
    name = f"{asking.caller.dag_id}.{asking.caller.task_id}"

    def earlier() -> str:
        latest = latest_run(asking.caller.dag_id)
        return f", or --run-id {latest} for the rows of the latest run" if latest else ""

    try:
        with progress(name) as watch:
            return plan_spend(asking.job, asking.caller, settings, defaults=defaults, watch=watch)
    except PromptError as error:
        hint = "" if "no column" not in str(error) else f"; say what stands there: --default COLUMN=TEXT{earlier()}"
        raise PromptError(f"{name}: {error}{hint}") from None
    except SourceError as error:
        hint = "" if "does not exist" not in str(error) else f". If an earlier task makes it: --input URI{earlier()}"
        raise SourceError(f"{name}: {error}{hint}") from None


def _budgets(plans: Sequence[tuple[Asking, SpendPlan]]) -> list[Any]:
    from airflow_ai_provider.core.jobs.plan import budget_lines

    return budget_lines([plan for _, plan in plans])


def _print(args: Namespace, plans: Sequence[tuple[Asking, SpendPlan]]) -> None:
    from airflow_ai_provider.core.jobs.plan_text import (
        budget_row,
        budget_table_row,
        deployment_table_row,
        plan_document,
        plan_figures,
    )

    if args.output in ("json", "yaml"):
        budgets = [budget_row(line) for line in _budgets(plans)]
        documents = [{**_head(asking), **plan_document(plan, asking.tries)} for asking, plan in plans]
        show([*documents, {"task": "total", "budgets": budgets}], args.output)
        return
    for asking, plan in plans:
        say(args, f"{asking.caller.dag_id}.{asking.caller.task_id}: {_head(asking)['source']}")
        for note in asking.notes:
            say(args, f"note: {note}")
        show(
            [{"figure": name, "value": value} for name, value in plan_figures(plan, asking.tries).items()], args.output
        )
        if plan.figures:
            show([deployment_table_row(line) for line in plan.figures], args.output)
    if len(plans) > 1:
        say(args, f"all {len(plans)} tasks together")
    show([budget_table_row(line) for line in _budgets(plans)], args.output)


def _head(asking: Asking) -> dict[str, Any]:
    from airflow_ai_provider.core.rows.filesystem import shown

    task = f"{asking.caller.dag_id}.{asking.caller.task_id}"
    return {"task": task, "source": shown(asking.job.source.split("?", 1)[0]), "notes": list(asking.notes)}
