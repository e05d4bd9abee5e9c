"""Everything about a job that can be known before money is spent: what fails here costs nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import CodeType
from typing import Any

import orjson

from airflow_ai_provider.errors import AIProviderError
from airflow_ai_provider.gateway.checks import AnswerChecks
from airflow_ai_provider.gateway.job import Caller, MapJob
from airflow_ai_provider.gateway.providers import check_deployment
from airflow_ai_provider.gateway.render import Renderer
from airflow_ai_provider.gateway.results import check_output_columns
from airflow_ai_provider.gateway.settings import Settings
from airflow_ai_provider.ledger.prices import model_facts
from airflow_ai_provider.policy import NO_MASKING, Budget, Policy, Route, load_policy
from airflow_ai_provider.rows.defaults import DefaultedSource
from airflow_ai_provider.rows.inspect import ROW_NUMBER_KEY, Inspection, inspect, require_columns
from airflow_ai_provider.rows.source import Source, open_source


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A job that can be run: its policy, its rows and its prompt fit together."""

    policy: Policy
    route: Route
    budgets: Sequence[Budget]
    """Those of the policy; the ledger knows of others."""
    renderer: Renderer
    checks: AnswerChecks
    source: Source
    inspection: Inspection
    max_tokens: int
    fingerprint: str
    """Names the job and the rows it is over; the same for all shards and tries, new for each run."""
    read_at: datetime
    """When the policy was read."""


def plan_job(
    job: MapJob,
    caller: Caller,
    settings: Settings,
    in_force: Sequence[Budget] | None = None,
    *,
    defaults: Mapping[str, str] | None = None,
) -> JobPlan:
    """Look everything over, the source included (one pass over its key column).

    ``in_force`` are the policy's budgets and those set by hand, where the ledger is at hand; ``defaults`` are columns
    that the rows get where the source lacks them. Raises ``PolicyError``, ``PromptError`` or ``SourceError`` that names
    the place and the remedy.
    """
    read_at = datetime.now(UTC)
    policy = load_policy(settings.policy_path)
    route = policy.route(job.route)
    scope = {"team": job.team, "dag": caller.dag_id, "route": job.route}
    policy.budgets_for(**scope, in_force=in_force)
    budgets = tuple(budget for budget in policy.budgets if budget.applies(**scope))
    for name in dict.fromkeys(name for names in route.tiers.values() for name in names):
        model_facts(name, policy.deployments[name], policy.digest)
    renderer = Renderer(job.prompt, job.system_prompt or route.system_prompt)
    checks = AnswerChecks(route.escalate.on, job.output_schema)
    source: Source = open_source(job.source, storage_options=settings.storage_options, database=settings.database)
    if defaults:
        source = DefaultedSource(source, defaults)
    columns = source.columns()
    require_columns(job.source, columns, {"key": [] if job.key == ROW_NUMBER_KEY else [job.key]})
    renderer.check_columns(columns)
    check_output_columns(job.source, columns, job.key)
    inspection = inspect(source, key=job.key, columns=[])
    return JobPlan(
        policy=policy,
        route=route,
        budgets=budgets,
        renderer=renderer,
        checks=checks,
        source=source,
        inspection=inspection,
        max_tokens=job.max_tokens or route.max_tokens,
        fingerprint=_fingerprint(job, caller, policy, renderer, inspection),
        read_at=read_at,
    )


def check_policy(settings: Settings) -> list[str]:
    """What would stop a task although the policy file itself is well-formed: prices, connections, budgets.

    Raises ``PolicyError`` where the file is not.
    """
    policy = load_policy(settings.policy_path)
    findings: list[str] = []
    for name, deployment in policy.deployments.items():
        findings += _finding(partial(model_facts, name, deployment, policy.digest))
        findings += _finding(partial(check_deployment, name, deployment, settings))
    if not policy.budgets:
        findings.append(
            "budgets: there are none, and a call no budget applies to is refused; add one, or set one by "
            "airflow ai budgets set"
        )
    used = {name for route in policy.routes.values() for names in route.tiers.values() for name in names}
    findings += [f"deployments.{name}: no route uses it" for name in policy.deployments if name not in used]
    return findings


def _finding(look: Callable[[], Any]) -> list[str]:
    try:
        look()
    except AIProviderError as error:
        return [str(error)]
    return []


def _fingerprint(job: MapJob, caller: Caller, policy: Policy, renderer: Renderer, inspection: Inspection) -> str:
    """A retry that finds the same fingerprint keeps finished parts. Budgets are left out: a raise changes no row."""
    route = policy.routes[job.route]
    used = sorted({name for names in route.tiers.values() for name in names})
    parts = {
        "caller": (caller.dag_id, caller.run_id, caller.task_id),
        "source": (job.source, inspection.version, inspection.rows, inspection.columns),
        "job": (job.key, job.team, job.route, job.max_tokens, job.batch_rows, job.output_schema),
        "prompt": (renderer.version, _code_version(job.prompt)),
        "route": route.model_dump(mode="json", by_alias=True),
        "deployments": {name: policy.deployments[name].model_dump(mode="json") for name in used},
        "masking": None if route.masking == NO_MASKING else policy.masking[route.masking].model_dump(mode="json"),
    }
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _code_version(prompt: object) -> str | None:
    """A hash of a prompt function's own code, wherever its file lies: a changed function makes its parts anew."""
    code = getattr(prompt, "__code__", None)
    return hashlib.sha256(repr(_essence(code)).encode()).hexdigest() if isinstance(code, CodeType) else None


def _essence(code: CodeType) -> tuple[object, ...]:
    return code.co_code, code.co_names, code.co_varnames, tuple(map(_constant, code.co_consts))


def _constant(value: object) -> object:
    """A constant as it reads in every process: the order of a set follows the process' own hash seed."""
    match value:
        case CodeType():
            return _essence(value)
        case frozenset():
            return sorted(map(repr, value))
        case tuple():
            return tuple(map(_constant, value))
        case _:
            return value
