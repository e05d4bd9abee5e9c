"""What a plan warns of: settings that are allowed and will disappoint. Pure: deployments go in, sentences come out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_ai_provider.core.ledger.prices import litellm_map
from airflow_ai_provider.core.pipeline.deployments import PricedDeployment
from airflow_ai_provider.core.policy import Tier

ENOUGH_TO_REASON = 2048
"""Tokens that a reasoning model often uses before it answers; OpenAI's guide asks for far more."""
_REASONS = re.compile(
    r"(?:^|[/.:-])(?:o[1-9]|gpt-[5-9]|gpt-oss|deepseek-r\d|deepseek-reasoner|qwq|qwen-?3|magistral|grok-[4-9]"
    r"|gemini-(?:2\.5|[3-9])|kimi-k\d-thinking|glm-[5-9]|glm-4\.[5-9]|minimax-m\d)(?![a-z0-9])|reason|think"
)
"""Names of models that reason unless they are told not to."""
_OFF = frozenset({"none", "disabled", "off", "false"})


def warnings_of(tiers: Mapping[Tier, Sequence[PricedDeployment]]) -> list[str]:
    """One sentence for each deployment and tier that is likely to give cut answers."""
    return [sentence for tier, offers in tiers.items() for offer in offers for sentence in _small_limit(tier, offer)]


def _small_limit(tier: Tier, offer: PricedDeployment) -> Iterator[str]:
    params = {**offer.deployment.params, **offer.terms.params}
    if offer.terms.max_tokens < ENOUGH_TO_REASON and _reasons(offer.deployment.model, params):
        yield (
            f"{tier}: {offer.name} ({offer.deployment.model}) reasons before it answers, and max_tokens"
            f" {offer.terms.max_tokens:,} covers both: rows may end as truncated, and are paid for; give it"
            f" {ENOUGH_TO_REASON:,} or more, or switch reasoning off in params"
        )


def _reasons(model: str, params: Mapping[str, Any]) -> bool:
    asked = [params.get(name) for name in ("reasoning_effort", "reasoning", "thinking", "enable_thinking")]
    given = [value for value in asked if value is not None]
    if any(_is_off(value) for value in given):
        return False
    return bool(given) or (bool(_REASONS.search(model.lower())) and not _cannot(model))


def _is_off(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_is_off(part) for name, part in value.items() if name in ("type", "effort", "enabled"))
    return value is False or str(value).lower() in _OFF


def _cannot(model: str) -> bool:
    """Whether litellm's map knows the model, and not as one that reasons."""
    entry = litellm_map().entry(model)
    return bool(entry) and not entry.get("supports_reasoning")
