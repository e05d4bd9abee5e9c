"""What an answer is charged in the ledger, by what it says of itself. Pure: nothing is asked for and nothing is logged.

Never below the vendor's invoice: where an answer leaves open what it cost, the whole hold is charged as unknown, or
more where the answer says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal

from airflow_ai_provider.core.ledger.call_costs import NANO, Rate, Unpriced, Usage
from airflow_ai_provider.core.ledger.model_names import same_model
from airflow_ai_provider.core.ledger.prices import ModelFacts, knows_model, served_rate
from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.providers.base import Claims, ModelReply

VENDORS_PRICE = "vendor"
"""``price_version`` of a call that is charged at the vendor's own figure."""
_STANDARD_TIERS = frozenset({"default", "standard", "auto", "on_demand", "standard_only", "none"})
_SAME_TIERS = {"on_demand_priority": "priority", "on_demand_flex": "flex"}
_ROUNDING_NANO = 1


@dataclass(frozen=True, slots=True)
class Charge:
    """What the ledger says of an answer's cost."""

    cost_nano: int
    usage: Usage | None
    """``None`` where the cost is not known."""
    price_version: str
    unknown: str | None = None
    """Why the cost is not known: a short name for the ledger."""
    notes: tuple[str, ...] = ()
    """What in the answer is not as it was asked for: ``service_tier``, ``model``, ``cost``."""


def charge_of(
    reply: ModelReply, facts: ModelFacts, deployment: Deployment, *, bound_nano: int, seconds: Decimal
) -> Charge:
    """The cost of an answer from its tokens at the price of the tier and model that served it, or of the vendor's own
    figure where that is larger. ``bound_nano`` is the hold, ``seconds`` what the call took."""
    claims = reply.claims
    rate, doubt, notes = _rate(claims, facts, reply.usage)
    costs = [] if reply.usage is None else [_cost(rate, reply.usage, seconds, deployment)]
    version = rate.version
    if (served := claims.model) and not _is_asked(deployment, served):
        notes.append("model")
        other = served_rate(deployment, served, facts.surcharge)
        costs.append(None if other is None or reply.usage is None else _cost(other, reply.usage, seconds, deployment))
        if other is None or max((cost or 0 for cost in costs), default=0) > bound_nano:
            doubt = doubt or "other_model"
    known = max((cost for cost in costs if cost is not None), default=0)
    if None in costs:
        doubt = doubt or "unpriced_tokens"
    if (claimed := claims.cost_usd) is not None:
        if not claimed.is_finite():
            doubt = doubt or "unreadable_cost"
        elif (stated := _nano(claimed)) > known + _ROUNDING_NANO:
            known, version = stated, VENDORS_PRICE
            notes.append("cost")
    if reply.usage is None:
        doubt = "no_usage"
    if doubt:
        return Charge(max(bound_nano, known), None, version, doubt, tuple(notes))
    return Charge(known, reply.usage, version, None, tuple(notes))


def _rate(claims: Claims, facts: ModelFacts, usage: Usage | None) -> tuple[Rate, str | None, list[str]]:
    """The rate of the service tier that served an answer, what is in doubt, and what is to be noted."""
    tier = _SAME_TIERS.get(claims.service_tier or "", claims.service_tier)
    if tier is None or tier in _STANDARD_TIERS:
        return facts.rate, None, []
    served = facts.tiers.get(tier)
    if served is None or (usage and usage.cache_write):  # whose price in a tier may be missing from the map
        return facts.rate, "service_tier", ["service_tier"]
    same = served.version == facts.rate.version  # billed so by the policy
    return served, None, [] if same else ["service_tier"]


def _cost(rate: Rate, usage: Usage, seconds: Decimal, deployment: Deployment) -> int | None:
    """The cost; ``None`` where a part has no price. Images count as text where the policy says what one is charged."""
    other = tuple(part for part in usage.other if not (deployment.image_tokens and part[0] == "image_input"))
    priced = usage if len(other) == len(usage.other) else _with_other(usage, other)
    try:
        return rate.cost(priced, seconds)
    except Unpriced:
        return None


def _with_other(usage: Usage, other: tuple[tuple[str, int], ...]) -> Usage:
    return Usage(usage.input, usage.output, usage.cached_input, usage.cache_write, usage.cache_write_1h, other)


def _is_asked(deployment: Deployment, served: str) -> bool:
    """Whether an answer's model is the deployment's; one with a made-up name, or self-hosted, may answer with any."""
    if deployment.self_hosted or not knows_model(deployment.model):
        return True
    return same_model(deployment.model, served)


def _nano(usd: Decimal) -> int:
    """Nano-dollars, rounded up but for what the vendor's floating point has added."""
    nano = (usd * NANO).quantize(Decimal("1e-6"), ROUND_HALF_UP)
    return int(nano.to_integral_value(ROUND_CEILING))
