"""A lane: one deployment ready for use, with its adapter, its limits and its price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from airflow_ai_provider.gateway.identity import ReuseKey
from airflow_ai_provider.gateway.pace import Pacer
from airflow_ai_provider.gateway.providers import open_provider
from airflow_ai_provider.gateway.providers.base import Provider
from airflow_ai_provider.gateway.settings import Settings
from airflow_ai_provider.ledger.prices import ModelFacts, model_facts
from airflow_ai_provider.policy import Deployment, Policy, Route, Tier


@dataclass(frozen=True, slots=True)
class Lane:
    """One deployment as one job uses it."""

    name: str
    deployment: Deployment
    provider: Provider
    pacer: Pacer
    facts: ModelFacts
    key: ReuseKey


def open_lanes(
    policy: Policy,
    route: Route,
    settings: Settings,
    *,
    max_tokens: int,
    output_schema: Mapping[str, Any] | None,
    prompt_version: str,
) -> dict[Tier, tuple[Lane, ...]]:
    """The lanes of every tier of a route, in order of preference; a deployment in two tiers is one lane.

    Raises ``PolicyError`` where a deployment has no price or its connection cannot be resolved.
    """
    names = dict.fromkeys(name for tier in route.tiers.values() for name in tier)
    key = partial(ReuseKey, max_tokens=max_tokens, output_schema=output_schema, prompt_version=prompt_version)
    lanes = {name: _open(name, policy, settings, key(policy.deployments[name])) for name in names}
    return {tier: tuple(lanes[name] for name in names) for tier, names in route.tiers.items()}


def _open(name: str, policy: Policy, settings: Settings, key: ReuseKey) -> Lane:
    deployment = policy.deployments[name]
    provider = open_provider(name, deployment, settings)
    facts = model_facts(name, as_called(deployment, settings), policy.digest)
    pacer = Pacer(
        requests_per_minute=deployment.requests_per_minute,
        tokens_per_minute=deployment.tpm,
        concurrency=deployment.concurrency,
    )
    return Lane(name, deployment, provider, pacer, facts, key)


def as_called(deployment: Deployment, settings: Settings) -> Deployment:
    """The deployment with what its connection adds to a call: a price may depend on where that goes.

    Raises ``LookupError`` where there is no such connection.
    """
    if deployment.connection is None or deployment.provider == "offline":
        return deployment
    endpoint = settings.endpoint(deployment.connection)
    added = {
        "api_base": deployment.api_base or endpoint.api_base,
        "params": {**endpoint.extra, **deployment.params},
    }
    return deployment.model_copy(update=added)
