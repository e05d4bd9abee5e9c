"""Validate a job before money is spent: what fails here costs nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import CodeType
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.core.checks.answer_checks import AnswerChecks
from airflow_ai_provider.core.errors import AIProviderError, PolicyError
from airflow_ai_provider.core.installation import Installation, opened
from airflow_ai_provider.core.job import Caller, MapJob
from airflow_ai_provider.core.jobs.answers import check_output_columns
from airflow_ai_provider.core.jobs.runner import Feed, fingerprint
from airflow_ai_provider.core.ledger.prices import model_facts
from airflow_ai_provider.core.policy import NO_MASKING, Budget, Policy, Route, Tier, load_policy
from airflow_ai_provider.core.policy.loading import LoadedPolicy
from airflow_ai_provider.core.prompts.attachments import AttachmentReader
from airflow_ai_provider.core.prompts.templates import Renderer, read_system
from airflow_ai_provider.core.providers import check_deployment
from airflow_ai_provider.core.routing.router import Terms, terms_of
from airflow_ai_provider.core.rows.source import ROW_NUMBER_KEY, Inspection, inspect, require_columns
from airflow_ai_provider.core.settings import Settings

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A job that can be run: its policy, its rows and its prompt fit together."""

    policy: Policy
    route: Route
    budgets: Sequence[Budget]
    """Those of the policy; the ledger knows of others."""
    renderer: Renderer
    checks: AnswerChecks
    feed: Feed
    inspection: Inspection
    terms: Mapping[Tier, Terms]
    """What each tier asks with; system prompts are their text."""
    fingerprint: str
    """Names the job and the rows it is over; the same for all shards and tries, new for each run."""
    loaded: LoadedPolicy
    """The policy, its files, and when they were read."""


def plan_job(
    job: MapJob,
    caller: Caller,
    where: Settings | Installation,
    in_force: Sequence[Budget] | None = None,
    *,
    defaults: Mapping[str, str] | None = None,
) -> JobPlan:
    """Validate a job, its source included (one pass over its key column).

    ``in_force`` are the policy's budgets and those set by hand, where the ledger is at hand; ``defaults`` are columns
    that the rows get where the source lacks them. Raises ``PolicyError``, ``PromptError`` or ``SourceError`` that names
    the place and the remedy, and ``PrivacyError`` for a prompt with attachments that the route does not let out.
    """
    with opened(where) as installation:
        return _plan_job(job, caller, installation, in_force, defaults)


def _plan_job(
    job: MapJob,
    caller: Caller,
    installation: Installation,
    in_force: Sequence[Budget] | None,
    defaults: Mapping[str, str] | None,
) -> JobPlan:
    loaded = installation.policy
    policy = loaded.policy
    policy.require_team(job.team, dag=caller.dag_id, route=job.route)
    route = policy.route(job.route)
    scope = {"team": job.team, "dag": caller.dag_id, "route": job.route}
    policy.budgets_for(**scope, in_force=in_force)
    budgets = tuple(budget for budget in policy.budgets if budget.applies(**scope))
    for name in route.deployments:
        model_facts(name, policy.deployments[name], policy.digest)
    terms = _terms(job, route)
    renderer = Renderer(job.prompt, terms[route.default_tier].system_prompt)
    AttachmentReader(route.attachments).check_kinds(sorted(renderer.attached))
    checks = AnswerChecks(
        route.escalate.on,
        job.output_schema,
        output_model=job.output_model,
        tools=job.tools,
        tool_choice=job.tool_choice,
    )
    source = installation.source(job.source, defaults)
    columns = source.columns()
    require_columns(job.source, columns, {"key": [] if job.key == ROW_NUMBER_KEY else [job.key]})
    _check_routing_columns(job.route, route, columns)
    renderer.check_columns(columns)
    check_output_columns(job.source, columns, job.key)
    inspection = inspect(source, key=job.key, columns=[])
    feed = Feed(source, job.key, job.shard, job.batch_rows)
    return JobPlan(
        policy=policy,
        route=route,
        budgets=budgets,
        renderer=renderer,
        checks=checks,
        feed=feed,
        inspection=inspection,
        terms=terms,
        fingerprint=fingerprint(
            caller,
            feed,
            (inspection.version, inspection.rows, inspection.columns),
            **_decides(job, policy, renderer, terms),
        ),
        loaded=loaded,
    )


def _terms(job: MapJob, route: Route) -> dict[Tier, Terms]:
    """Raises ``PromptError`` where a system prompt's file cannot be read."""
    terms = {
        tier: terms_of(route, tier, max_tokens=job.max_tokens, system_prompt=job.system_prompt) for tier in route.tiers
    }
    return {tier: replace(found, system_prompt=read_system(found.system_prompt)) for tier, found in terms.items()}


def _check_routing_columns(name: str, route: Route, columns: Sequence[str]) -> None:
    for column, key in route.needed_columns.items():
        if column not in columns:
            raise PolicyError(
                f"routes.{name}.{key}: no column {column!r} in the rows; they have: {', '.join(sorted(columns))}"
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
    used = {name for route in policy.routes.values() for name in route.deployments}
    findings += [f"deployments.{name}: no route uses it" for name in policy.deployments if name not in used]
    return findings


def _finding(look: Callable[[], Any]) -> list[str]:
    try:
        look()
    except AIProviderError as error:
        return [str(error)]
    return []


def _decides(job: MapJob, policy: Policy, renderer: Renderer, terms: Mapping[Tier, Terms]) -> dict[str, Any]:
    """What decides the answers, besides the rows. Budgets are left out: a raise changes no row."""
    route = policy.routes[job.route]
    used = sorted(route.deployments)
    return {
        "job": (job.team, job.route, job.max_tokens, job.output_schema),
        "answer": (_model_version(job.output_model), job.tools, job.tool_choice),
        "prompt": (renderer.version, _code_version(job.prompt), [terms[tier].system_prompt for tier in sorted(terms)]),
        "route": route.model_dump(mode="json", by_alias=True),
        "deployments": {name: policy.deployments[name].model_dump(mode="json") for name in used},
        "masking": None if route.masking == NO_MASKING else policy.masking[route.masking].model_dump(mode="json"),
    }


def _code_version(prompt: object) -> str | None:
    """A hash of a prompt function's own code, wherever its file lies: a changed function makes its parts anew."""
    code = getattr(prompt, "__code__", None)
    return hashlib.sha256(repr(_essence(code)).encode()).hexdigest() if isinstance(code, CodeType) else None


def _model_version(model: type[BaseModel] | None) -> str | None:
    """A hash of the code in a pydantic model and its bases: a changed validator looks at finished rows anew."""
    if model is None:
        return None
    bodies = [vars(base) for base in model.__mro__ if base.__module__.partition(".")[0] != "pydantic"]
    members = [getattr(member, "__wrapped__", member) for body in bodies for _, member in sorted(body.items())]
    codes = [_code_version(getattr(member, "__func__", member)) for member in members]
    return hashlib.sha256(repr([code for code in codes if code]).encode()).hexdigest()


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
