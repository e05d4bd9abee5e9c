"""The policy that applies to a task, read from the governing file and a DAG's own.

A DAG's own policy file: it may restrict what the governing policy allows, and nothing else.

Each function compares one section of the two files and yields what the DAG's file would loosen, as (place, problem).
Pure: ``load_governing`` reads the files and puts the two together.

The policy that applies to a task: the governing file, narrowed by a file of the DAG's own where there is one.

The governing deployments, prices, grants, teams and ledger rules always apply, and so do all governing budgets. From
the DAG's file come routes and masking profiles, none looser than the governing ones, and further budgets, which are
rows of their own in the ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_ai_provider.core.policy import Policy, load_policy, parse_document, parse_policy, read_document
from airflow_ai_provider.core.policy.budgets import Budget, DagBudget
from airflow_ai_provider.core.policy.masking import NO_MASKING, Grant, MaskingProfile
from airflow_ai_provider.core.policy.routes import Attachments, Classification, Route
from airflow_ai_provider.core.policy.yaml_document import Inconsistencies

_SCOPES = ("off", "run", "dag", "team")
"""Reuse, from the narrowest scope to the widest."""
_NOT_STANDARD = frozenset({"date", "url", "all"})
Finding = tuple[tuple[str | int, ...], str]


def loosened_budgets(governing: Sequence[Budget], own: Sequence[Budget]) -> Iterator[Finding]:
    """Budgets of the same scope and period with a higher limit."""
    limits = {budget.name: budget.limit_usd for budget in governing}
    for index, budget in enumerate(own):
        limit = limits.get(budget.name)
        if limit is not None and budget.limit_usd > limit:
            yield ("budgets", index, "limit_usd"), f"{budget.limit_usd} is above the governing limit of {limit}"


def loosened_grants(place: str, governing: Sequence[Grant], own: Sequence[Grant]) -> Iterator[Finding]:
    """Permissions that the governing policy does not give."""
    for index, grant in enumerate(own):
        given = (found for found in governing if (found.dag, found.team) == (grant.dag, grant.team))
        if not any(found.columns is None or found.covers(grant.columns) for found in given):
            yield ("privacy", place, index), f"the governing policy does not let DAG {grant.dag!r} {place} this"


def loosened_route(governing: Route, own: Route) -> Iterator[Finding]:
    """What a route allows and the governing one does not, masking aside."""
    yield from _tiers(governing, own)
    yield from _at_most(governing, own)
    if missing := [check for check in governing.escalate.on if check not in own.escalate.on]:
        yield ("escalate", "on"), f"leaves out {', '.join(missing)}, which the governing policy checks"
    if own.escalate.to is not None and own.escalate.to != governing.escalate.to:
        yield ("escalate", "to"), f"expected {governing.escalate.to or 'none'}, as the governing policy has it"
    yield from _attachments(governing.attachments, own.attachments)
    yield from _classification(governing.classification, own.classification)
    yield from _among("regions", governing.regions, own.regions)


def loosened_profile(governing: MaskingProfile, own: MaskingProfile) -> Iterator[Finding]:
    """What a masking profile leaves unmasked and the governing one masks."""
    if missing := [kind for kind in governing.detect if not _detects(own.detect, kind)]:
        yield ("detect",), f"leaves out {', '.join(missing)}"
    if changed := _changed(governing.columns, own.columns):
        yield ("columns",), f"leaves out or changes {', '.join(changed)}"
    if changed := _changed(governing.patterns, own.patterns):
        yield ("patterns",), f"leaves out or changes {', '.join(changed)}"
    if (governing.confidence, own.confidence) == ("context", "validated"):
        yield ("confidence",), "validated finds less than the governing context"
    for key in ("allow", "skip"):
        if more := set(getattr(own, key)) - set(getattr(governing, key)):
            yield (key,), f"adds {len(more)} that the governing profile does not have"
    if governing.names is not None and own.names != governing.names:
        yield ("names",), f"expected {governing.names}, as the governing policy has it"


def _tiers(governing: Route, own: Route) -> Iterator[Finding]:
    for tier in own.tiers:
        if tier not in governing.tiers:
            yield ("tiers", tier), "the governing route has no such tier"
            continue
        if more := [name for name in own.names(tier) if name not in governing.names(tier)]:
            yield ("tiers", tier), f"deployment {', '.join(more)} is not in this tier of the governing route"
        if _params(own, tier) != _params(governing, tier):
            yield ("params",), f"expected those of the governing route (tier {tier})"
        if _max_tokens(own, tier) > _max_tokens(governing, tier):
            place = ("tier_options", tier, "max_tokens") if tier in own.tier_options else ("max_tokens",)
            yield place, f"{_max_tokens(own, tier)} is above the governing {_max_tokens(governing, tier)} (tier {tier})"


def _params(route: Route, tier: Any) -> Mapping[str, Any]:
    options = route.tier_options.get(tier)
    return {**route.params, **(options.params if options else {})}


def _max_tokens(route: Route, tier: Any) -> int:
    options = route.tier_options.get(tier)
    return (options.max_tokens if options else None) or route.max_tokens


def _detects(kinds: Sequence[str], kind: str) -> bool:
    groups = {"all", *(() if kind in _NOT_STANDARD else ("standard",))}
    return kind in kinds or bool(groups & set(kinds))


def _changed(governing: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    return [name for name, value in governing.items() if own.get(name) != value]


def _at_most(governing: Route, own: Route) -> Iterator[Finding]:
    """Figures that may only become smaller, and waits that may only become longer."""
    figures: tuple[tuple[tuple[str, str], Callable[[Route], float | None]], ...] = (
        (("reuse", "scope"), lambda route: _SCOPES.index(route.reuse.scope)),
        (("reuse", "ttl"), lambda route: 0 if route.reuse.scope == "off" else route.reuse.ttl),
        (("retry", "attempts"), lambda route: route.retry.attempts),
        (("retry", "wait"), lambda route: -route.retry.wait),
        (("retry", "max_wait"), lambda route: -route.retry.max_wait),
        (("deadline", "row"), lambda route: route.deadline.row),
        (("deadline", "batch"), lambda route: route.deadline.batch),
    )
    for place, figure in figures:
        limit, mine = figure(governing), figure(own)
        if limit is not None and (mine is None or mine > limit):
            section, key = place
            allowed = getattr(getattr(governing, section), key)
            yield place, f"{getattr(getattr(own, section), key)} loosens the governing {allowed}"


def _attachments(governing: Attachments | None, own: Attachments | None) -> Iterator[Finding]:
    if own is None:
        return
    if governing is None:
        yield ("attachments",), "the governing route lets none out"
        return
    yield from _among("attachments.kinds", governing.kinds, own.kinds)
    for folder in own.from_:
        if not any(f"{folder}/".startswith(f"{allowed}/") for allowed in governing.from_):
            yield ("attachments", "from"), f"{folder} is outside the governing folders"
    if own.max_mb > governing.max_mb:
        yield ("attachments", "max_mb"), f"{own.max_mb} is above the governing {governing.max_mb}"


def _classification(governing: Classification | None, own: Classification | None) -> Iterator[Finding]:
    if governing is None:
        return
    if own is None:
        yield ("classification",), "left out, where the governing route has one"
        return
    if own.column != governing.column:
        yield ("classification", "column"), f"expected {governing.column}, as the governing policy has it"
    yield from _among("classification.vendor", governing.vendor, own.vendor)
    if own.default in own.vendor and governing.default not in governing.vendor:
        yield ("classification", "default"), f"{own.default} may go to vendors, the governing default may not"


def _among(place: str, governing: Sequence[str] | None, own: Sequence[str] | None) -> Iterator[Finding]:
    if governing is None:
        return
    path = tuple(place.split("."))
    if own is None:
        yield path, f"left out, where the governing route allows {', '.join(governing)} alone"
    elif more := [name for name in own if name not in governing]:
        yield path, f"adds {', '.join(more)} to the governing {', '.join(governing) or 'none'}"


_SHOWN_CHARS = 250
"""Characters of a path that the ledger and the audit trail keep."""


def shown_path(path: Path) -> str:
    """A path as one short line; a longer one keeps its end."""
    text = " ".join(str(path).splitlines())
    return text if len(text) <= _SHOWN_CHARS else f"…{text[1 - _SHOWN_CHARS :]}"


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy file that was read."""

    path: Path
    digest: str
    """SHA-256 of its meaning."""


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """The policy that applies, and the files it was read from."""

    policy: Policy
    file: PolicyFile
    """The governing file."""
    dag_file: PolicyFile | None
    """The DAG's own file, which narrows it."""
    read_at: datetime

    def stated_in(self, budget: Budget) -> PolicyFile:
        """The file that says a budget."""
        return self.dag_file if self.dag_file is not None and isinstance(budget, DagBudget) else self.file


def load_governing(path: Path, dag_path: Path | None = None) -> LoadedPolicy:
    """Read the governing policy and, where a DAG names one, the file that narrows it.

    Raises ``PolicyError`` with every finding of either file, and with every key by which the DAG's file would loosen
    the governing one.
    """
    read_at = datetime.now(UTC)
    governing = load_policy(path)
    file = PolicyFile(path, governing.digest)
    if dag_path is None:
        return LoadedPolicy(governing, file, None, read_at)
    text = read_document(dag_path, "no policy file there; it is the policy argument of a task")
    own = parse_policy(text, str(dag_path))
    parse_document(text, str(dag_path), Policy, "", lambda document: _loosened(governing, document))
    return LoadedPolicy(_narrowed(governing, own, dag_path), file, PolicyFile(dag_path, own.digest), read_at)


def _narrowed(governing: Policy, own: Policy, path: Path) -> Policy:
    """Keeps the governing digest, which versions the prices."""
    own_budgets = _dag_budgets(governing, own, path)
    narrowed = {"routes": own.routes, "masking": own.masking, "budgets": (*governing.budgets, *own_budgets)}
    return governing.model_copy(update=narrowed)


def _dag_budgets(governing: Policy, own: Policy, path: Path) -> tuple[DagBudget, ...]:
    """Budgets that the DAG's file adds; one that repeats a governing budget is left out."""
    limits = {budget.name: budget.limit_usd for budget in governing.budgets}
    file = f"{path.stem[:40]}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    added = (budget for budget in own.budgets if limits.get(budget.name) != budget.limit_usd)
    return tuple(DagBudget(**budget.model_dump(), file=file) for budget in added)


def _loosened(governing: Policy, own: Policy) -> Inconsistencies:
    """Everything by which a DAG's file would allow more than the governing policy, as (place, problem)."""
    yield from _other_deployments(governing, own)
    for name, route in own.routes.items():
        if name not in governing.routes:
            yield ("routes", name), "the governing policy has no such route"
            continue
        allowed = governing.routes[name]
        yield from ((("routes", name, *loc), problem) for loc, problem in loosened_route(allowed, route))
        if allowed.masking == NO_MASKING:
            continue
        if route.masking == NO_MASKING:
            yield ("routes", name, "masking"), f"off, where the governing route masks by {allowed.masking}"
            continue
        profile, own_profile = governing.masking[allowed.masking], own.masking[route.masking]
        yield from ((("masking", route.masking, *loc), what) for loc, what in loosened_profile(profile, own_profile))
    yield from loosened_budgets(governing.budgets, own.budgets)
    yield from loosened_grants("restore", governing.privacy.restore, own.privacy.restore)
    yield from loosened_grants("decrypt", governing.privacy.decrypt, own.privacy.decrypt)
    for key in ("teams", "ledger"):
        if key in own.model_fields_set and getattr(own, key) != getattr(governing, key):
            yield (key,), "cannot be changed here; leave it out"


def _other_deployments(governing: Policy, own: Policy) -> Inconsistencies:
    """Deployments are shared by all DAGs: their limits, prices and connections are the governing ones."""
    for name, deployment in own.deployments.items():
        known = governing.deployments.get(name)
        if known is None:
            yield ("deployments", name), "the governing policy has no such deployment"
            continue
        for key, field in type(deployment).model_fields.items():
            if getattr(deployment, key) != getattr(known, key):
                yield ("deployments", name, field.alias or key), "differs from the governing policy; write it as there"
