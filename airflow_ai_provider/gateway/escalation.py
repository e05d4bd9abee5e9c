"""Which rejected answers are asked for again in a higher tier. Pure decisions."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_ai_provider.policy import TIERS, Route, Tier

_NOT_WHOLE = frozenset({"truncated", "filtered", "refused"})
_BY_THE_MODEL = frozenset({"filtered", "refused"})
"""Another model may answer what one does not."""


def upper_tier(problem: str | None, route: Route, tier: Tier, max_tokens: Mapping[Tier, int]) -> Tier | None:
    """The tier to ask because of ``problem`` with an answer of ``tier``; ``None`` where the answer stays rejected.

    ``problem`` is ``kind: reason``. An answer that is not whole is asked for again only where the route's
    ``escalate.on`` names its kind, and one that was cut only in a tier with a larger limit (``max_tokens`` by tier).
    """
    upper = route.escalate.to
    if not problem or upper is None or TIERS.index(upper) <= TIERS.index(tier):
        return None
    kind = kind_of(problem)
    if kind in _NOT_WHOLE and kind not in route.escalate.on:
        return None
    if kind == "truncated" and max_tokens[upper] <= max_tokens[tier]:
        return None
    return upper


def wants_another_model(problem: str) -> bool:
    """Whether only another model than the one that answered is to be asked."""
    return kind_of(problem) in _BY_THE_MODEL


def kind_of(problem: str) -> str:
    return problem.partition(":")[0]
