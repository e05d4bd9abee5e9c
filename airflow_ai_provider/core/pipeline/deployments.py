"""The deployments of a route: with their price and terms, and opened, with adapter and rate limiter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from airflow_ai_provider.core.errors import PolicyError
from airflow_ai_provider.core.identity import ReuseKey, arm_scope
from airflow_ai_provider.core.job import Message
from airflow_ai_provider.core.ledger.prices import ModelFacts, model_facts
from airflow_ai_provider.core.policy import Deployment, Policy, Route, Tier
from airflow_ai_provider.core.providers import open_provider
from airflow_ai_provider.core.providers.base import Provider
from airflow_ai_provider.core.providers.vendors import host_of
from airflow_ai_provider.core.ratelimit import CircuitChanged, Gate, open_gates
from airflow_ai_provider.core.routing.router import Needs, Terms, attachment_tokens
from airflow_ai_provider.core.settings import Settings

_SCHEMA_OVERHEAD = 512
"""Tokens a vendor may add for a schema; Anthropic documents up to 346 for the tool it becomes there."""


@dataclass(frozen=True, slots=True)
class PricedDeployment:
    """A deployment with its price, on the terms of one tier: enough to know what a call can cost."""

    name: str
    deployment: Deployment
    facts: ModelFacts
    key: ReuseKey
    terms: Terms

    @property
    def model(self) -> str:
        """Model name, as the policy gives it."""
        return self.deployment.model

    def bound(self, needs: Needs, *, schema: int, messages: int) -> int:
        """Upper bound of the cost of one request, in nano-dollars.

        ``schema`` is the size of output schema and tools in bytes, ``messages`` the number of messages.
        """
        size = needs.size + schema + attachment_tokens(self.deployment, needs)  # a token is a byte at least
        return self.facts.rate.bound(input_bytes=size, messages=messages, max_tokens=self.terms.max_tokens)


@dataclass(frozen=True, slots=True)
class OpenDeployment(PricedDeployment):
    """A deployment with its adapter and its rate limiter, as one job uses it."""

    provider: Provider
    gate: Gate
    host: str = ""
    """Host name, for messages."""


OpenTiers = Mapping[Tier, Sequence[OpenDeployment]]
"""The deployments of each tier, in the order of the policy."""


def answer_keys(
    deployments: Sequence[PricedDeployment], arms: Sequence[str | None], scope: str, messages: Sequence[Message]
) -> list[bytes]:
    """Cache keys of a row's answer, one per deployment; ``arms`` is the result of ``Router.stands_for``."""
    return [
        priced.key.of(scope if arm is None else arm_scope(scope, arm), messages)
        for priced, arm in zip(deployments, arms, strict=True)
    ]


def schema_bytes(output_schema: Mapping[str, Any] | None) -> int:
    """Bytes that an output schema adds to a prompt: its JSON, and an allowance for what a vendor wraps it in."""
    return len(orjson.dumps(output_schema)) + _SCHEMA_OVERHEAD if output_schema else 0


def price_deployments(
    policy: Policy,
    route: Route,
    settings: Settings,
    *,
    terms: Mapping[Tier, Terms],
    output_schema: Mapping[str, Any] | None,
    prompt_version: str,
    tools: Sequence[Mapping[str, Any]] = (),
    tool_choice: str | Mapping[str, Any] | None = None,
) -> dict[Tier, tuple[PricedDeployment, ...]]:
    """Return the deployments of every tier of a route with prices and terms, in the order of the policy.

    Raises ``PolicyError`` if a deployment has no price or its connection does not exist.
    """
    called: dict[str, Deployment] = {}
    for name in route.deployments:
        try:
            called[name] = as_called(policy.deployments[name], settings)
        except LookupError as error:
            raise PolicyError(f"deployments.{name}: {error}") from None

    def priced(name: str, terms: Terms) -> PricedDeployment:
        key = ReuseKey(
            policy.deployments[name],
            max_tokens=terms.max_tokens,
            params=terms.params,
            output_schema=output_schema,
            prompt_version=prompt_version,
            tools=tools,
            tool_choice=tool_choice,
        )
        params = {**called[name].params, **terms.params}
        facts = model_facts(name, called[name].model_copy(update={"params": params}), policy.digest)
        return PricedDeployment(name, policy.deployments[name], facts, key, terms)

    return {tier: tuple(priced(name, terms[tier]) for name in route.names(tier)) for tier in route.tiers}


def open_deployments(
    policy: Policy,
    route: Route,
    settings: Settings,
    *,
    team: str,
    worker: str,
    on_circuit: Callable[[CircuitChanged], None],
    terms: Mapping[Tier, Terms],
    output_schema: Mapping[str, Any] | None,
    prompt_version: str,
    tools: Sequence[Mapping[str, Any]] = (),
    tool_choice: str | Mapping[str, Any] | None = None,
) -> OpenTiers:
    """Open the deployments of every tier of a route; one that is in two tiers is opened once.

    ``worker`` names this process for the rate limiter; ``on_circuit`` is called when a circuit opens or closes.
    Raises ``PolicyError`` if a deployment has no price or its connection cannot be resolved.
    """
    tiers = price_deployments(
        policy,
        route,
        settings,
        terms=terms,
        output_schema=output_schema,
        prompt_version=prompt_version,
        tools=tools,
        tool_choice=tool_choice,
    )
    each = {priced.name: priced for priced in _each(tiers)}
    called = {name: as_called(priced.deployment, settings) for name, priced in each.items()}
    gates = open_gates(called, team=team, cache_url=settings.cache_url, worker=worker, on_change=on_circuit)
    opened = {name: _open(priced, settings, gates[name], called[name].api_base) for name, priced in each.items()}

    def on_terms(priced: PricedDeployment) -> OpenDeployment:
        return replace(opened[priced.name], facts=priced.facts, key=priced.key, terms=priced.terms)

    return {tier: tuple(map(on_terms, found)) for tier, found in tiers.items()}


def batches_at_once(tiers: Mapping[Tier, Iterable[PricedDeployment]], batch_rows: int) -> int:
    """Number of batches to run at once, so that the last, slow rows of one leave no slot idle."""
    slots = sum(priced.deployment.concurrency for priced in _each(tiers))
    return 2 + -(-slots // batch_rows)


def _each(tiers: Mapping[Tier, Iterable[PricedDeployment]]) -> Iterable[PricedDeployment]:
    return {priced.name: priced for tier in tiers.values() for priced in tier}.values()


def _open(priced: PricedDeployment, settings: Settings, gate: Gate, api_base: str | None) -> OpenDeployment:
    provider = open_provider(priced.name, priced.deployment, settings)
    host = host_of(priced.deployment, api_base)
    return OpenDeployment(priced.name, priced.deployment, priced.facts, priced.key, priced.terms, provider, gate, host)


def as_called(deployment: Deployment, settings: Settings) -> Deployment:
    """Return the deployment with the base URL and parameters of its connection; a price may depend on them.

    Raises ``LookupError`` if the connection does not exist.
    """
    if deployment.connection is None or deployment.provider == "offline":
        return deployment
    endpoint = settings.endpoint(deployment.connection)
    added = {
        "api_base": deployment.api_base or endpoint.api_base,
        "params": {**endpoint.extra, **deployment.params},
    }
    return deployment.model_copy(update=added)
