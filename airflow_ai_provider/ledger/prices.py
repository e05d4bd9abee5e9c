"""What a deployment's tokens cost: the policy's price, else litellm's map, else refused.

The map is read as JSON from litellm's own files, without importing litellm (which takes seconds).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from airflow_ai_provider.errors import PolicyError
from airflow_ai_provider.ledger.money import NANO, Rate, Step, flat_rate
from airflow_ai_provider.policy import Deployment, Price

_ABOVE = re.compile(r"input_cost_per_token_above_(\d+)k_tokens")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a deployment's model before it is called."""

    rate: Rate
    context_tokens: int | None
    """Input tokens the model takes; ``None`` where nobody says."""


def model_facts(name: str, deployment: Deployment, policy_digest: str) -> ModelFacts:
    """Price and context of a deployment. Raises ``PolicyError`` where it has no price: no price, no call."""
    entry = {} if deployment.provider == "offline" else _litellm_entry(deployment.model)
    context = deployment.context_tokens or entry.get("max_input_tokens") or entry.get("max_tokens")
    if deployment.price is not None:
        rate = _policy_rate(deployment.price, f"policy-{policy_digest[:12]}")
    elif deployment.provider == "offline":
        rate = _policy_rate(Price(), "offline")
    else:
        rate = _litellm_rate(name, deployment.model, entry)
    return ModelFacts(rate, int(context) if context else None)


def _policy_rate(price: Price, source: str) -> Rate:
    cached = price.input_per_mtok if price.cached_input_per_mtok is None else price.cached_input_per_mtok
    return flat_rate(
        input_per_mtok=price.input_per_mtok,
        output_per_mtok=price.output_per_mtok,
        cached_per_mtok=cached,
        per_request=price.per_request,
        version=source,
    )


def _litellm_rate(name: str, model: str, entry: Mapping[str, Any]) -> Rate:
    base_in, base_out = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    searches = model.startswith("perplexity/") and entry.get("search_context_cost_per_query")  # with every call
    if not base_in or not base_out or searches:
        raise PolicyError(
            f"deployments.{name}: no price is known for model {model!r}; "
            "add price: {input_per_mtok: …, output_per_mtok: …} in USD (0 if it is free)"
        )
    thresholds = sorted(int(m[1]) * 1000 for key in entry if (m := _ABOVE.fullmatch(key)) and entry[key])
    steps = tuple(_step(entry, above) for above in (0, *thresholds))
    return Rate(steps, _nano(entry.get("input_cost_per_request")), f"litellm-{_litellm_version()}")


def _step(entry: Mapping[str, Any], above: int) -> Step:
    """The price above a threshold; what the map does not give there is as below it."""
    suffix = f"_above_{above // 1000}k_tokens" if above else ""

    def price(field: str, otherwise: Decimal) -> Decimal:
        value = entry.get(field + suffix) or entry.get(field)
        return _nano(value) if value else otherwise

    fresh = price("input_cost_per_token", Decimal(0))
    return Step(
        above_input_tokens=above,
        input=fresh,
        output=max(price("output_cost_per_token", Decimal(0)), price("output_cost_per_reasoning_token", Decimal(0))),
        cached_input=price("cache_read_input_token_cost", fresh),
        cache_write=price("cache_creation_input_token_cost", fresh),
    )


def _nano(usd: float | None) -> Decimal:
    return Decimal(repr(usd)) * NANO if usd else Decimal(0)


def _litellm_entry(model: str) -> Mapping[str, Any]:
    """The map's entry for ``provider/name``; a bare ``name`` counts only if it is that provider's."""
    provider, _, name = model.partition("/")
    prices = _litellm_map()
    if model in prices:
        return prices[model]
    entry = prices.get(name, {})
    return entry if entry.get("litellm_provider") == provider else {}


@lru_cache(maxsize=1)
def _litellm_map() -> dict[str, dict[str, Any]]:
    spec = find_spec("litellm")
    if spec is None or spec.origin is None:
        return {}
    path = Path(spec.origin).parent / "model_prices_and_context_window_backup.json"
    try:
        loaded: dict[str, dict[str, Any]] = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return loaded


def _litellm_version() -> str:
    try:
        return version("litellm")
    except PackageNotFoundError:
        return "unknown"
