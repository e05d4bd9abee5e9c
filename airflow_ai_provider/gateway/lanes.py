"""A lane: one deployment ready for use, with its adapter, its limits and its price."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from airflow_ai_provider.errors import PolicyError
from airflow_ai_provider.gateway.identity import ReuseKey
from airflow_ai_provider.gateway.providers import open_provider
from airflow_ai_provider.gateway.providers.base import Provider
from airflow_ai_provider.gateway.settings import Settings
from airflow_ai_provider.gateway.traffic import CircuitChanged, Gate, open_gates
from airflow_ai_provider.ledger.prices import ModelFacts, model_facts
from airflow_ai_provider.policy import Deployment, Policy, Route, Tier

_SCHEMA_OVERHEAD = 512
"""Tokens a vendor may add for a schema; Anthropic documents up to 346 for the tool it becomes there."""
_BYTES_PER_TOKEN = 8
"""No tokenizer in use packs more text than this into a token on average: what is over it cannot fit a context."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One deployment on one job's terms, before anything is opened: enough to know what a call can cost."""

    name: str
    deployment: Deployment
    facts: ModelFacts
    key: ReuseKey

    def takes(self, size: int) -> bool:
        """Whether a prompt of ``size`` bytes can fit the model at all."""
        limit = self.facts.context_tokens
        return not limit or size / _BYTES_PER_TOKEN <= limit

    def bound(self, *, size: int, messages: int, max_tokens: int) -> int:
        """The most that one request of ``size`` bytes, its schema included, can cost, in nano-dollars."""
        return self.facts.rate.bound(input_bytes=size, messages=messages, max_tokens=max_tokens)


@dataclass(frozen=True, slots=True)
class Lane(Offer):
    """One deployment as one job uses it."""

    provider: Provider
    gate: Gate


def schema_bytes(output_schema: Mapping[str, Any] | None) -> int:
    """What an answer's schema adds to a prompt, in bytes: its JSON, and what a vendor may wrap it in."""
    return len(orjson.dumps(output_schema)) + _SCHEMA_OVERHEAD if output_schema else 0


def offers(
    policy: Policy,
    route: Route,
    settings: Settings,
    *,
    max_tokens: int,
    output_schema: Mapping[str, Any] | None,
    prompt_version: str,
) -> dict[Tier, tuple[Offer, ...]]:
    """What every tier of a route has on offer, in order of preference; a deployment in two tiers is one offer.

    Raises ``PolicyError`` where a deployment has no price, or a connection that there is not.
    """
    key = partial(ReuseKey, max_tokens=max_tokens, output_schema=output_schema, prompt_version=prompt_version)
    made = {}
    for name in dict.fromkeys(name for tier in route.tiers.values() for name in tier):
        deployment = policy.deployments[name]
        try:
            called = as_called(deployment, settings)
        except LookupError as error:
            raise PolicyError(f"deployments.{name}: {error}") from None
        made[name] = Offer(name, deployment, model_facts(name, called, policy.digest), key(deployment))
    return {tier: tuple(made[name] for name in names) for tier, names in route.tiers.items()}


def open_lanes(
    policy: Policy,
    route: Route,
    settings: Settings,
    *,
    team: str,
    on_circuit: Callable[[CircuitChanged], None],
    max_tokens: int,
    output_schema: Mapping[str, Any] | None,
    prompt_version: str,
) -> dict[Tier, tuple[Lane, ...]]:
    """The lanes of every tier of a route, in order of preference; a deployment in two tiers is one lane.

    ``on_circuit`` hears of every circuit that opens or closes.

    Raises ``PolicyError`` where a deployment has no price or its connection cannot be resolved.
    """
    terms: dict[str, Any] = {"max_tokens": max_tokens, "output_schema": output_schema, "prompt_version": prompt_version}
    tiers = offers(policy, route, settings, **terms)
    each = {offer.name: offer for offer in _each(tiers)}
    called = {name: as_called(offer.deployment, settings) for name, offer in each.items()}
    gates = open_gates(called, team=team, cache_url=settings.cache_url, on_change=on_circuit)
    lanes = {name: _open(offer, settings, gates[name]) for name, offer in each.items()}
    return {tier: tuple(lanes[offer.name] for offer in found) for tier, found in tiers.items()}


def batches_at_once(tiers: Mapping[Tier, Iterable[Offer]], batch_rows: int) -> int:
    """Enough batches under way that the last, slow rows of one leave no slot idle."""
    slots = sum(offer.deployment.concurrency for offer in _each(tiers))
    return 2 + -(-slots // batch_rows)


def _each(tiers: Mapping[Tier, Iterable[Offer]]) -> Iterable[Offer]:
    return {offer.name: offer for tier in tiers.values() for offer in tier}.values()


def _open(offer: Offer, settings: Settings, gate: Gate) -> Lane:
    provider = open_provider(offer.name, offer.deployment, settings)
    return Lane(offer.name, offer.deployment, offer.facts, offer.key, provider, gate)


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
