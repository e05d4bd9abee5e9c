"""One prompt over every row of a source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from logging import Logger
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import Context

from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.operators.approval import approval_rule, require_approval, take_decision
from airflow_ai_provider.operators.base import (
    AIBaseOperator,
    at_least_one,
    governed_task,
    parse_time_shard,
    require_text,
)

if TYPE_CHECKING:
    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.job import Caller, MapJob, MapSummary, Prompt
    from airflow_ai_provider.core.ledger.budgets.thresholds import Notice


class LLMMapOperator(AIBaseOperator):
    """Ask one question of every row of a source, and write rows and answers to a sink.

    The prompt is not an Airflow template: the gateway renders it in a sandbox, once per row, and what stands in a row
    is never evaluated. Answers stay out of XCom, which receives counts and costs.

    :param source: URI of the rows: a file or folder of CSV, JSONL or Parquet, or ``sql://CONN_ID?query=…`` (templated).
    :param sink: folder or object-store URL of Parquet parts (templated). Use one sink for
        one run, for example ``…/{{ macros.ai.run_folder(run_id) }}``.
    :param prompt: sandboxed Jinja template over the row's columns, ``file:PATH`` of one, or messages whose texts and
        URIs are such templates: ``[{"role": "user", "content": "{{ text }}"}]``.
    :param key: column that names a row, unique in the source; ``#row`` is the row's number (templated).
    :param team: who pays (templated).
    :param route: route of the policy (templated).
    :param system_prompt: replaces the route's.
    :param output_schema: JSON schema that answers must satisfy, or a pydantic model, whose own validators count too.
    :param tools: functions the model may ask for, as OpenAI defines them; the calls it asks for are the answer.
    :param tool_choice: ``auto``, ``none``, ``required``, or one function, as OpenAI writes it.
    :param policy: path of a policy file that narrows ``[ai] policy_path``; refused unless ``[ai] allow_dag_policy``
        is on (templated).
    :param shard: ``"INDEX/COUNT"``, the share of the source that this task instance takes; see ``shards``.
    :param max_tokens: limit of an answer, in tokens; replaces the route's.
    :param batch_rows: rows per batch and per part of the sink.
    :param on_budget_threshold: called with the context, and the ``budget`` in it, when a threshold of a budget is
        crossed, such as one of Airflow's notifiers: ``SlackNotifier(text="{{ budget.name }}: {{ budget.percent }}%")``.
        Each threshold is told once, by the task that crosses it.
    :param budget_timeout: how long to wait for room where the route says ``over_budget: wait``.
    :param max_error_rate: the task fails when a greater share of its rows ends with status ``error``.
    :param give_up_after: the task fails when so many rows end with the same failure before any is good, such as answers
        that are all truncated; ``None`` is never.
    :param approve_over_usd: the task is planned first, and waits for approval where its whole source is expected to
        cost more than this many USD; ``0`` asks for whatever costs anything.
    :param approvers: ids of the Airflow users who may decide; ``None`` is everybody who may answer for the DAG.
    :param approval_timeout: the task fails when no decision has come for so long; ``None`` waits for ever.
    """

    template_fields: Sequence[str] = ("source", "sink", "team", "route", "key", "policy")
    ui_color = "#e8f1fb"
    _spent_before = Decimal(0)

    def __init__(
        self,
        *,
        source: str,
        sink: str,
        prompt: Prompt,
        key: str,
        team: str,
        route: str,
        system_prompt: str | None = None,
        output_schema: Mapping[str, Any] | type | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | Mapping[str, Any] | None = None,
        policy: str | None = None,
        shard: Shard | Mapping[str, Any] | str | None = None,
        max_tokens: int | None = None,
        batch_rows: int = 250,
        on_budget_threshold: Callable[[Any], None] | Sequence[Callable[[Any], None]] = (),
        budget_timeout: timedelta = timedelta(days=1),
        max_error_rate: float = 0.5,
        give_up_after: int | None = 50,
        approve_over_usd: Decimal | str | float | None = None,
        approvers: Sequence[str | Mapping[str, str]] | str | None = None,
        approval_timeout: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_text(
            f"{type(self).__name__} {self.task_id}",
            source=source,
            sink=sink,
            prompt=prompt,
            key=key,
            team=team,
            route=route,
        )
        self.source = source
        self.sink = sink
        self.prompt = prompt
        self.key = key
        self.team = team
        self.route = route
        self.system_prompt = system_prompt
        check_prompt(prompt)
        self.output_schema = json_schema(output_schema)
        self.output_model = None if output_schema is None or isinstance(output_schema, Mapping) else output_schema
        self.tools = checked_tools(tools, tool_choice)
        self.tool_choice = tool_choice
        self.policy = policy
        self.shard = parse_time_shard(shard)
        self.max_tokens = None if max_tokens is None else at_least_one("max_tokens", max_tokens)
        self.batch_rows = at_least_one("batch_rows", batch_rows)
        self.on_budget_threshold = [on_budget_threshold] if callable(on_budget_threshold) else list(on_budget_threshold)
        self.budget_timeout = budget_timeout
        if not 0 <= max_error_rate <= 1:
            raise ValueError(f"max_error_rate {max_error_rate}: expected a share between 0 and 1")
        self.max_error_rate = max_error_rate
        self.give_up_after = None if give_up_after is None else at_least_one("give_up_after", give_up_after)
        self.approval = approval_rule(approve_over_usd, approvers, approval_timeout)

    def run(self, context: Context) -> dict[str, Any]:
        with self._installation() as installation:
            return self._answer(context, installation)

    def resume_decided(self, context: Context, asked: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
        """Airflow calls this when a person has decided, or none has in time. The job is planned again before it runs:
        the days in between may have changed what it costs."""
        from airflow_ai_provider.hooks.context import caller_from_context

        with governed_task(), self._installation() as installation:
            take_decision(context, caller_from_context(context), installation, asked, event)
            return self._answer(context, installation)

    def _installation(self) -> Installation:
        from airflow_ai_provider.core.installation import Installation
        from airflow_ai_provider.hooks.settings import settings_from_airflow

        return Installation(settings_from_airflow(policy=self.policy))

    def _answer(self, context: Context, installation: Installation) -> dict[str, Any]:
        """Plan where an approval may be needed, run, and wait for budget where the route says so."""
        from airflow_ai_provider.core.jobs.llm_map import run_map
        from airflow_ai_provider.core.jobs.tally import check_error_rate
        from airflow_ai_provider.hooks.context import caller_from_context
        from airflow_ai_provider.hooks.tasks import watch_supervisor

        wanted = watch_supervisor()
        job, caller, log = self.make_job(context), caller_from_context(context), cast("Logger", self.log)
        if self.approval is not None:
            tries = (self.retries or 0) + 1
            require_approval(self.approval, job, caller, installation, context, log, tries=tries)
        on_notice = partial(tell, self.on_budget_threshold, context) if self.on_budget_threshold else None
        summary = run_map(job, caller, installation, log=log, on_notice=on_notice, wanted=wanted)
        summary = replace(summary, cost_usd=str(Decimal(summary.cost_usd) + self._spent_before))
        if summary.over_budget and summary.over_budget_then == "wait":
            self._wait_for_room(summary, caller)
        check_error_rate(summary, self.max_error_rate)
        return to_xcom(summary)

    def make_job(self, context: Context) -> MapJob:
        """What is asked, from the rendered fields."""
        from airflow_ai_provider.core.job import MapJob

        return MapJob(
            source=self.source,
            sink=self.sink,
            prompt=self.prompt,
            key=self.key,
            team=self.team,
            route=self.route,
            system_prompt=self.system_prompt,
            output_schema=self.output_schema,
            output_model=self.output_model,
            tools=self.tools,
            tool_choice=self.tool_choice,
            shard=self.shard,
            max_tokens=self.max_tokens,
            batch_rows=self.batch_rows,
            give_up_after=self.give_up_after,
        )

    def resume(self, context: Context, event: Mapping[str, Any], cost_usd: str) -> dict[str, Any]:
        """Go on with the rows that had no room; ``cost_usd`` is what was spent before."""
        from airflow_ai_provider.triggers.budget import require_room

        require_room(event)
        self._spent_before = Decimal(cost_usd)
        return cast("dict[str, Any]", self.execute(context))

    def _wait_for_room(self, summary: MapSummary, caller: Caller) -> None:
        """Leave the worker and come back when budgets have room; what was answered is kept."""
        from airflow_ai_provider.triggers.budget import BudgetTrigger

        self.log.info("%d rows are over budget; waiting for room for $%s", summary.over_budget, summary.short_usd)
        wanted = int(Decimal(summary.short_usd) * 1_000_000_000)
        trigger = BudgetTrigger(
            team=self.team,
            dag_id=caller.dag_id,
            run_id=caller.run_id,
            route=self.route,
            wanted_nano=wanted,
            least_nano=wanted // summary.over_budget,
            policy=self.policy,
        )
        kwargs = {"cost_usd": summary.cost_usd}
        self.defer(trigger=trigger, method_name="resume", kwargs=kwargs, timeout=self.budget_timeout)


def tell(callbacks: Sequence[Callable[[Any], None]], context: Context, notice: Notice) -> None:
    """Call each callback with the context and the notice as ``budget``: names, percent, and amounts in USD."""
    usd = {name: f"{Decimal(getattr(notice, f'{name}_nano')) / 1_000_000_000:f}" for name in ("limit", "spent")}
    budget = {
        "name": notice.name,
        "period_start": notice.period_start,
        "percent": notice.percent,
        "limit_usd": usd["limit"],
        "spent_usd": usd["spent"],
    }
    for callback in callbacks:
        callback({**context, "budget": budget})


def to_xcom(summary: MapSummary) -> dict[str, Any]:
    """The summary as JSON values."""
    values = {field.name: getattr(summary, field.name) for field in fields(summary)}
    return {**values, "errors": dict(summary.errors)}


def check_prompt(prompt: object) -> None:
    """Raise ``ValueError`` for messages of the wrong shape; templates are read when the task runs."""
    from airflow_ai_provider.core.prompts.messages import shape_problem

    if not isinstance(prompt, str) and not callable(prompt) and (problem := shape_problem(prompt)):
        raise ValueError(f"prompt: {problem}")


def checked_tools(tools: Sequence[Mapping[str, Any]], tool_choice: object) -> tuple[Mapping[str, Any], ...]:
    """The tools. Raises ``ValueError`` where they, or the choice among them, are not as OpenAI defines them."""
    from airflow_ai_provider.core.prompts.messages import check_tools

    check_tools(tools, tool_choice)
    return tuple(tools)


def json_schema(schema: Mapping[str, Any] | type | None) -> Mapping[str, Any] | None:
    """A JSON schema, from one or from a pydantic model. Raises ``ValueError`` for anything else."""
    if schema is None or isinstance(schema, Mapping):
        return schema
    if not hasattr(schema, "model_json_schema"):
        raise ValueError("output_schema: expected a JSON schema as a mapping, or a pydantic model")
    described: Mapping[str, Any] = schema.model_json_schema()
    return described
