"""What a deployment charges: the policy's price, else litellm's map, else refused.

The map is read as JSON from litellm's own files, without importing litellm (which takes seconds). Its keys mean what
litellm's own cost calculation (``litellm/litellm_core_utils/llm_cost_calc``) takes them to mean; where that would take
the lower of two possible prices, the higher one is taken here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from airflow_ai_provider.core.errors import PolicyError
from airflow_ai_provider.core.ledger.call_costs import NANO, Rate, Step
from airflow_ai_provider.core.policy import Deployment, Price, PriceAbove

_KINDS = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cached_input": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
}
"""Kinds of token: our name, and the key of its price in the map."""
_ABOVE = re.compile(rf"(?:{'|'.join(_KINDS.values())})_above_(\d+k?)_tokens(?:_[a-z]+)?")
_BATCH = "_batches"
_TIERS = {"batch": _BATCH, "flex": "_flex", "priority": "_priority"}
"""Service tiers of vendors, by the ends of their prices' keys in the map."""
_OTHER = {
    f"{kind}_{side}": f"{side}_cost_per_{kind}_token"
    for kind in ("audio", "image", "video")
    for side in ("input", "output")
}
"""Kinds of token that an answer may have besides text."""
_FROM_THE_THRESHOLD_ON = frozenset({"xai"})
"""Providers whose next step begins at the threshold itself and not one token above it, as litellm has it."""
_REGIONAL_HOST = re.compile(r"(eu|us)\.api\.openai\.com")
_MAP = "model_prices_and_context_window_backup.json"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a deployment's model before it is called."""

    rate: Rate
    context_tokens: int | None
    """Input tokens the model takes; ``None`` if unknown."""
    json: bool = True
    """Whether it answers by a schema: so, unless the policy or the map says no. The same with ``tools``."""
    tools: bool = True
    tiers: Mapping[str, Rate] = field(default_factory=dict)
    """Prices of other service tiers than the standard one, as far as the map has them."""
    surcharge: Decimal = Decimal(0)
    """USD of each request for its parameters; ``rate`` and ``tiers`` hold it."""


def model_facts(name: str, deployment: Deployment, policy_digest: str) -> ModelFacts:
    """Price and context of a deployment. Raises ``PolicyError`` where it has no price: no price, no call.

    Some prices depend on where a call goes and with which parameters, so ``deployment`` should have the ``api_base``
    and the ``params`` of the connection and of the route; what its ``surcharges`` say of them is a fee of each request.
    """
    entry = {} if deployment.provider == "offline" else litellm_map().entry(deployment.model)
    context = deployment.context_tokens or entry.get("max_input_tokens") or entry.get("max_tokens")
    if deployment.price is not None:
        rate = policy_rate(deployment.price, f"policy-{policy_digest[:12]}")
    elif deployment.provider == "offline":
        rate = policy_rate(Price(input_per_mtok=Decimal(0), output_per_mtok=Decimal(0)), "offline")
    else:
        rate = litellm_rate(deployment, f"deployments.{name}")
    surcharge = deployment.surcharge(deployment.params)
    tiers = {} if deployment.price is not None else _tier_rates(deployment)
    return ModelFacts(
        replace(_with_fee(rate, surcharge), most_seconds=deployment.longest_timeout),
        int(context) if context else None,
        json=_able(deployment.json_, entry.get("supports_response_schema")),
        tools=_able(deployment.tools, entry.get("supports_function_calling")),
        tiers={tier: _with_fee(found, surcharge) for tier, found in tiers.items()},
        surcharge=surcharge,
    )


def served_rate(deployment: Deployment, model: str, surcharge: Decimal) -> Rate | None:
    """The rate of another model that a deployment's provider has answered with; ``None`` where the map has none.

    ``surcharge`` is the fee of each request in USD.
    """
    name = f"{deployment.provider}/{model.removeprefix(f'{deployment.provider}/')}"
    with suppress(PolicyError):
        return _with_fee(litellm_rate(deployment.model_copy(update={"model": name}), ""), surcharge)
    return None


def _with_fee(rate: Rate, surcharge: Decimal) -> Rate:
    if not surcharge:
        return rate
    version = f"{rate.version}+{surcharge.normalize():f}"
    return replace(rate, per_request_nano=rate.per_request_nano + surcharge * NANO, version=version)


def knows_model(name: str) -> bool:
    """Whether a name, with or without a provider, is a model of the map, and not one that an installation made up."""
    entries = litellm_map().entries
    return name in entries or name.partition("/")[2] in entries or name.rpartition("/")[2] in entries


def _tier_rates(deployment: Deployment) -> dict[str, Rate]:
    found = {}
    for tier in _TIERS:
        with suppress(PolicyError):
            found[tier] = replace(litellm_rate(deployment, "", tier=tier), most_seconds=deployment.longest_timeout)
    return found


def _able(said: bool | None, known: Any) -> bool:
    """The policy's word, else the map's, which leaves out much: what it does not mention may be tried."""
    return known is not False if said is None else said


def policy_rate(price: Price, source: str) -> Rate:
    """The rate of a price as a policy writes it."""
    named = _named(price)
    steps = [_step(0, named)]
    for above, change in sorted(price.above.items()):
        named |= {kind: nano for kind, nano in _named(change).items() if nano is not None}
        steps.append(_step(above, named))
    return Rate(tuple(steps), price.per_request * NANO, source, per_second_nano=price.per_second * NANO)


def litellm_rate(deployment: Deployment, place: str, *, tier: str | None = None) -> Rate:
    """The rate of a deployment by litellm's map, in the service ``tier`` that it is billed in if none is named.

    Raises ``PolicyError``, beginning with ``place``, where the map has none.
    """
    prices = litellm_map()
    entry = prices.entry(deployment.model)
    ending = _TIERS[tier] if tier else _BATCH if deployment.billing == "batch" else ""
    steps = _map_steps(entry, ending)
    if not steps or _always_searches(deployment.model, entry):
        kind = "batch price" if deployment.billing == "batch" else "price"
        why = f" ({prices.problem})" if prices.problem else ""
        raise PolicyError(
            f"{place}: no {kind} is known for model {deployment.model!r}{why}; "
            "add price: {input_per_mtok: …, output_per_mtok: …} in USD (0 if it is free)"
        )
    if deployment.provider in _FROM_THE_THRESHOLD_ON:
        steps = [replace(step, above_input_tokens=max(0, step.above_input_tokens - 1)) for step in steps]
    if (uplift := _uplift(deployment, entry)) != 1:
        steps = [_times(step, uplift) for step in steps]
    per_request = _nano(entry.get("input_cost_per_request")) or Decimal(0)
    other = tuple((kind, nano) for kind, key in _OTHER.items() if (nano := _nano(entry.get(key + ending))))
    return Rate(tuple(steps), per_request, f"litellm-{prices.version}-{_digest(steps, per_request)}", other=other)


def _always_searches(model: str, entry: Mapping[str, Any]) -> bool:
    """Whether a model searches the web with every call, for a fee that the map gives by sizes we do not choose."""
    if model.startswith("openrouter/"):
        return model.endswith(":online")
    always = model.startswith("perplexity/") or "-search-" in model or "deep-research" in model
    return always and bool(entry.get("search_context_cost_per_query"))


def _named(price: Price | PriceAbove) -> dict[str, Decimal | None]:
    """A policy's prices by kind, in nano-dollars per token."""
    usd = {kind: getattr(price, f"{kind}_per_mtok") for kind in _KINDS}
    return {kind: None if per_mtok is None else per_mtok * 1000 for kind, per_mtok in usd.items()}


def _step(above: int, named: Mapping[str, Decimal | None]) -> Step:
    """What has no price of its own: a cache costs what input costs, an hour in it what other writes cost."""

    def price(kind: str, otherwise: Decimal) -> Decimal:
        found = named.get(kind)
        return otherwise if found is None else found

    fresh = price("input", Decimal(0))
    write = price("cache_write", fresh)
    return Step(
        above_input_tokens=above,
        input=fresh,
        output=price("output", Decimal(0)),
        cached_input=price("cached_input", fresh),
        cache_write=write,
        cache_write_1h=price("cache_write_1h", write),
    )


def _map_steps(entry: Mapping[str, Any], ending: str) -> list[Step]:
    """The steps of an entry, lowest first; none where a price of input or output is missing, or 0.

    ``ending`` is that of the keys of a service tier, empty for the standard one.
    """
    if tiers := _tiers(entry):
        return [] if ending else [_step(above, named) for above, named in tiers]
    named = _first_prices(entry, ending)
    if not named.get("input") or not named.get("output"):
        return []
    steps = [_step(0, _dearer(named, entry))]
    for threshold in sorted({m[1] for key in entry if (m := _ABOVE.fullmatch(key))}, key=_tokens):
        above = _prices_above(entry, threshold, ending)
        named |= {kind: max(nano, named.get(kind) or nano) if ending else nano for kind, nano in above.items()}
        steps.append(_step(_tokens(threshold), _dearer(named, entry)))
    return steps


def _first_prices(entry: Mapping[str, Any], ending: str) -> dict[str, Decimal | None]:
    if not ending:
        return {kind: _nano(entry.get(key)) for kind, key in _KINDS.items()}
    # A cache write without a price in the tier may not have its discount; cached input is below input anyway.
    standard = {kind: _nano(entry.get(_KINDS[kind])) for kind in ("cache_write", "cache_write_1h")}
    return standard | {kind: nano for kind, key in _KINDS.items() if (nano := _nano(entry.get(key + ending)))}


def _prices_above(entry: Mapping[str, Any], threshold: str, ending: str) -> dict[str, Decimal]:
    """What changes above a threshold. Without a price of the tier there, the standard one may be what is charged."""
    keys = {kind: f"{key}_above_{threshold}_tokens" for kind, key in _KINDS.items()}
    found = {kind: _nano(ending and entry.get(key + ending)) or _nano(entry.get(key)) for kind, key in keys.items()}
    return {kind: nano for kind, nano in found.items() if nano is not None}


def _dearer(named: Mapping[str, Decimal | None], entry: Mapping[str, Any]) -> dict[str, Decimal | None]:
    """Where an answer does not say which of two prices its tokens had, the dearer: reasoning is output, and an hour
    in the cache, with no price of its own above a threshold, is no cheaper than other writes."""
    output, write, hour = (named.get(kind) or Decimal(0) for kind in ("output", "cache_write", "cache_write_1h"))
    reasoning = _nano(entry.get("output_cost_per_reasoning_token")) or Decimal(0)
    if reasoning > (_nano(entry.get("output_cost_per_token")) or Decimal(0)):
        output = max(output, reasoning)
    return {**named, "output": output, "cache_write_1h": max(write, hour) if hour else None}


def _tiers(entry: Mapping[str, Any]) -> list[tuple[int, dict[str, Decimal | None]]]:
    """Prices by the tokens above which they hold, from a ``tiered_pricing`` table: each tier stands for itself."""
    tiers = sorted((t for t in entry.get("tiered_pricing") or () if _is_priced(t)), key=lambda tier: tier["range"][0])
    prices = [_dearer({kind: _nano(tier.get(key)) for kind, key in _KINDS.items()}, tier) for tier in tiers]
    starts = [0, *(int(tier["range"][0]) for tier in tiers[1:])]
    return list(zip(starts, prices, strict=False))


def _is_priced(tier: Mapping[str, Any]) -> bool:
    return bool(tier.get("input_cost_per_token") and tier.get("output_cost_per_token") and tier.get("range"))


def _tokens(threshold: str) -> int:
    return int(threshold.removesuffix("k")) * (1000 if threshold.endswith("k") else 1)


def _uplift(deployment: Deployment, entry: Mapping[str, Any]) -> Decimal:
    """What all prices are multiplied by for the region that a call goes to (the map's multipliers).

    OpenAI's regional hosts, Anthropic's ``inference_geo``, and every place of Vertex AI but ``global``, which is not
    the place that litellm takes where none is named.
    """
    params, factors = deployment.params, [Decimal(1)]
    host = urlsplit(deployment.api_base or "").hostname or ""
    if match := _REGIONAL_HOST.fullmatch(host):
        factors.append(_factor(entry, f"regional_processing_uplift_multiplier_{match[1]}"))
    if str(params.get("vertex_location", "")).lower() != "global":
        factors.append(_factor(entry, "regional_endpoint_uplift_multiplier"))
    if geo := params.get("inference_geo"):
        factors.append(_factor(entry.get("provider_specific_entry") or {}, str(geo).lower()))
    return max(factors)  # a model is of one vendor: at most one applies


def _factor(entry: Mapping[str, Any], key: str) -> Decimal:
    value = entry.get(key)
    return Decimal(repr(value)) if isinstance(value, int | float) else Decimal(1)


def _times(step: Step, factor: Decimal) -> Step:
    return replace(step, **{kind: getattr(step, kind) * factor for kind in _KINDS})


def _nano(usd: Any) -> Decimal | None:
    """Nano-dollars for a number of the map. It writes 0 for what it does not know as well as for what is free."""
    return Decimal(repr(usd)).scaleb(9) if isinstance(usd, int | float) and usd > 0 else None


def _digest(steps: list[Step], per_request: Decimal) -> str:
    """Tells apart what one version of litellm may have charged: an edited map, another region, batch prices."""
    prices = [(step.above_input_tokens, *(_digits(getattr(step, kind)) for kind in _KINDS)) for step in steps]
    return hashlib.sha256(orjson.dumps([prices, _digits(per_request)])).hexdigest()[:12]


def _digits(amount: Decimal) -> str:
    return str(amount.normalize())


@dataclass(frozen=True, slots=True)
class LitellmMap:
    """litellm's price list as it is installed."""

    entries: Mapping[str, Mapping[str, Any]]
    version: str
    problem: str | None = None
    """Why there are no entries."""

    def entry(self, model: str) -> Mapping[str, Any]:
        """The entry for ``provider/name``; a bare ``name`` counts only if it is that provider's. Empty if none."""
        provider, _, name = model.partition("/")
        if (found := self.entries.get(model)) is not None:
            return found
        found = self.entries.get(name, {})
        return found if found.get("litellm_provider") == provider else {}


@lru_cache(maxsize=1)
def litellm_map() -> LitellmMap:
    spec = find_spec("litellm")
    if spec is None or spec.origin is None:
        return LitellmMap({}, "none", "litellm is not installed")
    return _read_map(Path(spec.origin).parent / _MAP)


def _read_map(path: Path) -> LitellmMap:
    try:
        number = version("litellm")
    except PackageNotFoundError:
        number = "unknown"
    try:
        entries = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        return LitellmMap({}, number, f"litellm's price list {path} cannot be read: {type(error).__name__}")
    good = isinstance(entries, dict) and all(isinstance(entry, dict) for entry in entries.values())
    return LitellmMap(entries if good else {}, number, None if good else f"{path} is no price list")
