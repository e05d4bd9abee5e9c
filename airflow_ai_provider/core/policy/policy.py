"""policy.yaml: the one file a platform team writes, parsed and validated whole.

A policy that loads is complete and consistent: every name it uses is defined in it. Anything wrong is one
``PolicyError`` that lists every finding with file and line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from airflow_ai_provider.core.errors import PolicyError
from airflow_ai_provider.core.policy.budgets import Budget, DagBudget, LedgerRules, Team
from airflow_ai_provider.core.policy.deployments import Deployment
from airflow_ai_provider.core.policy.fields import (
    Section,
    Tier,
    advice,
    undeclared,
)
from airflow_ai_provider.core.policy.masking import NO_MASKING, Grant, MaskingProfile, Privacy
from airflow_ai_provider.core.policy.routes import (
    Route,
    names_of,
)
from airflow_ai_provider.core.policy.yaml_document import (
    Inconsistencies,
    explained,
    parse_document,
    place_of,
    read_document,
)


class Policy(Section):
    """The whole of policy.yaml."""

    version: Literal[1]
    deployments: dict[str, Deployment] = Field(min_length=1)
    routes: dict[str, Route] = Field(min_length=1)
    budgets: tuple[Budget, ...]
    masking: dict[str, MaskingProfile] = Field(default_factory=dict)
    privacy: Privacy = Privacy()
    ledger: LedgerRules = LedgerRules()
    teams: dict[str, Team] = Field(default_factory=dict)
    """Teams by name; where there are any, no other team may make calls."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the policy's meaning, recorded in the audit trail."""
        canonical = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def route(self, name: str) -> Route:
        if name not in self.routes:
            raise PolicyError(f"route {name!r} is not in the policy; it has: {', '.join(sorted(self.routes))}")
        return self.routes[name]

    def budgets_for(
        self, *, team: str, dag: str, route: str, in_force: Sequence[Budget] | None = None
    ) -> tuple[Budget, ...]:
        """Every budget a call must fit, of the policy's own or of those ``in_force``.

        Raises ``PolicyError`` where there is none: no limit, no call. A DAG's own budgets do not replace one.
        """
        budgets = self.budgets if in_force is None else in_force
        found = tuple(b for b in budgets if b.applies(team=team, dag=dag, route=route))
        if all(isinstance(budget, DagBudget) for budget in found):
            raise PolicyError(
                f"no budget applies to team {team!r} (dag {dag!r}, route {route!r}); "
                f"add one under budgets, for example {{team: {team}, period: day, limit_usd: 10}}"
            )
        return found

    def require_team(self, team: str, *, dag: str, route: str | None = None) -> None:
        """Raise ``PolicyError`` unless a DAG may act for a team, over a route if one is given."""
        if not self.teams:
            return
        if team not in self.teams:
            known = ", ".join(sorted(self.teams))
            raise PolicyError(f"team {team!r} is not in the policy; it has: {known} (add it under teams)")
        allowed = self.teams[team]
        if not allowed.has(dag):
            raise PolicyError(f"DAG {dag!r} may not act for team {team!r}; the policy says who may: teams.{team}.dags")
        if route is not None and allowed.routes is not None and route not in allowed.routes:
            listed = ", ".join(allowed.routes) or "none"
            raise PolicyError(f"team {team!r} may not use route {route!r}; teams.{team}.routes has: {listed}")

    def require_grant(
        self, act: Literal["restore", "decrypt"], *, dag: str, team: str, columns: Sequence[str] | None
    ) -> None:
        """Raises ``PolicyError`` unless one grant covers all of it; ``columns`` of ``None`` are all there are."""
        grants: tuple[Grant, ...] = getattr(self.privacy, act)
        if any((grant.dag, grant.team) == (dag, team) and grant.covers(columns) for grant in grants):
            return
        listed = f", columns: [{', '.join(columns)}]" if columns else ""
        raise PolicyError(
            f"DAG {dag!r} has no permission to {act} for team {team!r}; the owner of the policy may add to the "
            f"policy, under privacy: {act}: [{{dag: {dag}, team: {team}{listed}}}]"
        )

    def profile(self, name: str) -> MaskingProfile:
        if name not in self.masking:
            known = ", ".join(sorted(self.masking)) or "none"
            raise PolicyError(f"masking profile {name!r} is not in the policy; it has: {known}")
        return self.masking[name]


def parse_budget(values: Mapping[str, Any]) -> Budget:
    """A budget from plain values. Raises ``PolicyError`` that names what is wrong with it."""
    try:
        return Budget.model_validate(values)
    except ValidationError as error:
        findings = (f"{place_of(item['loc'])}: {explained(item)}" for item in error.errors(include_url=False))
        raise PolicyError(f"budget: {'; '.join(findings)}") from None


def load_policy(path: Path) -> Policy:
    """Read and validate a policy. Raises ``PolicyError`` that lists every finding as ``file:line: …``."""
    text = read_document(path, "no policy file there; set [ai] policy_path to your policy.yaml")
    return parse_policy(text, str(path))


def parse_policy(text: str, name: str = "policy.yaml") -> Policy:
    """Validate the text of a policy; ``name`` is what errors call the file."""
    return parse_document(text, name, Policy, "version, deployments, routes and budgets", _inconsistencies)


def _inconsistencies(policy: Policy) -> Inconsistencies:
    """Names that are used and not defined, as (place, problem)."""
    known = ", ".join(sorted(policy.deployments))
    for name, deployment in policy.deployments.items():
        yield from _undeclared(policy, [name], ("deployments", name, "params"), deployment.params)
    for route_name, route in policy.routes.items():
        yield from _undeclared(policy, route.deployments, ("routes", route_name, "params"), route.params)
        for option_tier, options in route.tier_options.items():
            asked = route.names(option_tier) if option_tier in route.tiers else ()
            loc = ("routes", route_name, "tier_options", option_tier, "params")
            yield from _undeclared(policy, asked, loc, options.params)
        for tier, places in route.tiers.items():
            for index, place in enumerate(places):
                for name in names_of([place]):
                    if name not in policy.deployments:
                        where = ("routes", route_name, "tiers", tier, index)
                        yield where, f"no deployment {name!r}; there are: {known}"
        if route.masking != NO_MASKING and route.masking not in policy.masking:
            profiles = ", ".join(sorted(policy.masking)) or "none"
            yield (
                ("routes", route_name, "masking"),
                f"no masking profile {route.masking!r}; there are: {profiles} (or write off)",
            )
        for place, tier_name in (("complexity", route.complexity.default), ("escalate", route.escalate.to)):
            if tier_name and tier_name not in route.tiers:
                yield ("routes", route_name, place), f"the route has no tier {tier_name!r}"
        yield from ((("routes", route_name, *loc), problem) for loc, problem in _misrouted(policy, route))
    for team, allowed in policy.teams.items():
        for name in allowed.routes or ():
            if name not in policy.routes:
                yield ("teams", team, "routes"), f"no route {name!r}"
    seen: set[str] = set()
    for index, budget in enumerate(policy.budgets):
        if budget.team and policy.teams and budget.team not in policy.teams:
            yield ("budgets", index, "team"), f"no team {budget.team!r}; there are: {', '.join(sorted(policy.teams))}"
        if budget.route and budget.route not in policy.routes:
            yield ("budgets", index, "route"), f"no route {budget.route!r}"
        if budget.name in seen:
            yield ("budgets", index), f"a second budget {budget.name}; keep one limit per scope and period"
        seen.add(budget.name)


def _undeclared(
    policy: Policy, names: Sequence[str], place: tuple[str | int, ...], params: Mapping[str, Any]
) -> Inconsistencies:
    """Parameters that may cost more than the hold of a call at one of the named deployments."""
    for name in names:
        if deployment := policy.deployments.get(name):
            for parameter in undeclared(params, deployment.provider, deployment.surcharges):
                yield (*place, parameter), advice([parameter], name)


def _misrouted(policy: Policy, route: Route) -> Inconsistencies:
    """What a route's rules and limits leave without effect, or without a deployment."""
    rules, keywords = route.complexity.rules, route.complexity.keywords
    asked: list[tuple[tuple[str | int, ...], Tier]] = [
        *((("complexity", "rules", number, "tier"), rule.tier) for number, rule in enumerate(rules)),
        *((("complexity", "keywords", tier), tier) for tier in keywords),
        *((("tier_options", tier), tier) for tier in route.tier_options),
    ]
    yield from ((loc, f"the route has no tier {tier!r}") for loc, tier in asked if tier not in route.tiers)
    for number, rule in enumerate(rules):
        earlier = next((index for index in range(number) if rules[index].covers(rule)), None)
        if earlier is not None:
            yield ("complexity", "rules", number), f"never reached: rules.{earlier} takes all of its rows before it"
        known = route.classification.known if route.classification else ()
        for name in rule.classification:
            if name not in known:
                problem = f"no class {name!r}; the route's classification has: {', '.join(known) or 'none'}"
                yield ("complexity", "rules", number, "classification"), problem
    if keywords and any(not rule.conditions for rule in rules):
        yield ("complexity", "keywords"), "never reached: a rule without conditions takes every row"
    for tier in route.tiers if route.regions else ():
        named = {name: policy.deployments.get(name) for name in route.names(tier)}
        if not any(found is None or found.region in (route.regions or ()) for found in named.values()):
            regions = ", ".join(f"{name} ({found.region or 'no region'})" for name, found in named.items() if found)
            yield ("regions",), f"tier {tier} has no deployment there: {regions}"
