"""A lane: one deployment ready for use, with its adapter, its limits and its price."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from airflow_ai_provider.errors import PolicyError
from airflow_ai_provider.gateway.identity import ReuseKey, arm_scope
from airflow_ai_provider.gateway.job import Message
from airflow_ai_provider.gateway.providers import open_provider
from airflow_ai_provider.gateway.providers.base import Provider
from airflow_ai_provider.gateway.providers.vendors import host_of
from airflow_ai_provider.gateway.routing import Needs, Terms, attachment_tokens
from airflow_ai_provider.gateway.settings import Settings
from airflow_ai_provider.gateway.traffic import CircuitChanged, Gate, open_gates
from airflow_ai_provider.ledger.prices import ModelFacts, model_facts
from airflow_ai_provider.policy import Deployment, Policy, Route, Tier

_SCHEMA_OVERHEAD = 512
"""Tokens a vendor may add for a schema; Anthropic documents up to 346 for the tool it becomes there."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One deployment on one tier's terms, before anything is opened: enough to know what a call can cost."""

    name: str
    deployment: Deployment
    facts: ModelFacts
    key: ReuseKey
    terms: Terms

    def bound(self, needs: Needs, *, schema: int, messages: int) -> int:
        """The most that one request can cost, in nano-dollars; ``schema`` are the bytes that the answer's adds."""
        size = needs.size + schema + attachment_tokens(self.deployment, needs)  # a token is a byte at least
        return self.facts.rate.bound(input_bytes=size, messages=messages, max_tokens=self.terms.max_tokens)


@dataclass(frozen=True, slots=True)
class Lane(Offer):
    """One deployment as one job uses it."""

    provider: Provider
    gate: Gate
    host: str = ""
    """Whom it calls, for messages."""


Lanes = Mapping[Tier, Sequence[Lane]]
"""The lanes of each tier, in the order of the policy."""


def answer_keys(
    asked: Sequence[Offer], arms: Sequence[str | None], scope: str, messages: Sequence[Message]
) -> list[bytes]:
    """By which the answers of deployments to a row are found; ``arms`` is what ``Router.stands_for`` says of them."""
    return [
        offer.key.of(scope if arm is None else arm_scope(scope, arm), messages)
        for offer, arm in zip(asked, arms, strict=True)
    ]


def schema_bytes(output_schema: Mapping[str, Any] | None) -> int:
    """What an answer's schema adds to a prompt, in bytes: its JSON, and what a vendor may wrap it in."""
    return len(orjson.dumps(output_schema)) + _SCHEMA_OVERHEAD if output_schema else 0


def offers(
    policy: Policy,
    route: Route,
    settings: Settings,
    *,
    terms: Mapping[Tier, Terms],
    output_schema: Mapping[str, Any] | None,
    prompt_version: str,
    tools: Sequence[Mapping[str, Any]] = (),
    tool_choice: str | Mapping[str, Any] | None = None,
) -> dict[Tier, tuple[Offer, ...]]:
    """What every tier of a route has on offer on its terms, in the order of the policy.

    Raises ``PolicyError`` where a deployment has no price, or a connection that there is not.
    """
    called: dict[str, Deployment] = {}
    for name in route.deployments:
        try:
            called[name] = as_called(policy.deployments[name], settings)
        except LookupError as error:
            raise PolicyError(f"deployments.{name}: {error}") from None

    def offer(name: str, terms: Terms) -> Offer:
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
        return Offer(name, policy.deployments[name], facts, key, terms)

    return {tier: tuple(offer(name, terms[tier]) for name in route.names(tier)) for tier in route.tiers}


def open_lanes(
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
) -> Lanes:
    """The lanes of every tier of a route, in the order of the policy; a deployment in two tiers is opened once.

    ``worker`` is what pacing knows this process by; ``on_circuit`` hears of every circuit that opens or closes.

    Raises ``PolicyError`` where a deployment has no price or its connection cannot be resolved.
    """
    tiers = offers(
        policy,
        route,
        settings,
        terms=terms,
        output_schema=output_schema,
        prompt_version=prompt_version,
        tools=tools,
        tool_choice=tool_choice,
    )
    each = {offer.name: offer for offer in _each(tiers)}
    called = {name: as_called(offer.deployment, settings) for name, offer in each.items()}
    gates = open_gates(called, team=team, cache_url=settings.cache_url, worker=worker, on_change=on_circuit)
    opened = {name: _open(offer, settings, gates[name], called[name].api_base) for name, offer in each.items()}

    def lane(offer: Offer) -> Lane:
        return replace(opened[offer.name], facts=offer.facts, key=offer.key, terms=offer.terms)

    return {tier: tuple(map(lane, found)) for tier, found in tiers.items()}


def batches_at_once(tiers: Mapping[Tier, Iterable[Offer]], batch_rows: int) -> int:
    """Enough batches under way that the last, slow rows of one leave no slot idle."""
    slots = sum(offer.deployment.concurrency for offer in _each(tiers))
    return 2 + -(-slots // batch_rows)


def _each(tiers: Mapping[Tier, Iterable[Offer]]) -> Iterable[Offer]:
    return {offer.name: offer for tier in tiers.values() for offer in tier}.values()


def _open(offer: Offer, settings: Settings, gate: Gate, api_base: str | None) -> Lane:
    provider = open_provider(offer.name, offer.deployment, settings)
    host = host_of(offer.deployment, api_base)
    return Lane(offer.name, offer.deployment, offer.facts, offer.key, offer.terms, provider, gate, host)


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
