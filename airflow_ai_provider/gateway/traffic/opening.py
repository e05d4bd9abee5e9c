"""From the policy's deployments to gates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from airflow_ai_provider.gateway.traffic.desk import Desk
from airflow_ai_provider.gateway.traffic.gate import CircuitChanged, Gate
from airflow_ai_provider.gateway.traffic.local_desk import LocalDesk
from airflow_ai_provider.gateway.traffic.redis_desk import Link, RedisDesk
from airflow_ai_provider.gateway.traffic.terms import Terms, key_of, terms_of
from airflow_ai_provider.gateway.traffic.traffic_gate import TrafficGate
from airflow_ai_provider.policy import Deployment

_FIRST_CALLS = 5
"""Calls of a process under way at once, before one was answered: at a wrong address each may cost a whole hold."""


def open_gates(
    deployments: Mapping[str, Deployment],
    *,
    team: str,
    cache_url: str | None,
    worker: str | None = None,
    on_change: Callable[[CircuitChanged], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Gate]:
    """A gate before each deployment, by name, for the calls of one team. Close each of them.

    Deployments should be as called, with the ``api_base`` of their connection: those of the same name, model, base and
    connection share their limits. Without ``cache_url`` a process has limits of its own, and its team just its share.
    ``worker`` names who sends: who takes another one's name, as the next try of its task, has its slots. Connects to
    nothing yet. Raises ``PolicyError`` where a deployment has nothing left for the team, and ``StoreUnavailable`` where
    ``cache_url`` is no Redis URL.
    """
    terms = {name: terms_of(name, deployment, team) for name, deployment in deployments.items()}
    link = Link(cache_url) if cache_url else None

    def desk(name: str) -> tuple[Terms, Desk]:
        if link is not None:
            return terms[name], RedisDesk(link, key_of(name, deployments[name]), terms[name], clock=clock)
        own = terms[name].part(terms[name].shares[terms[name].team(team)])
        return own, LocalDesk(own, clock=clock)

    gates: dict[str, Gate] = {}
    for name in deployments:
        own, its_desk = desk(name)
        gates[name] = TrafficGate(
            name, own, team, its_desk, worker=worker, first_calls=_FIRST_CALLS, on_change=on_change, clock=clock
        )
    return gates
