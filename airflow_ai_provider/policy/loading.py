"""The policy that applies to a task: the governing file, narrowed by a file of the DAG's own where there is one.

The governing deployments, prices, grants, teams and ledger rules always apply, and so do all governing budgets. From
the DAG's file come routes and masking profiles, none looser than the governing ones, and further budgets, which are
rows of their own in the ledger.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from airflow_ai_provider.policy import Policy, load_policy, parse_document, parse_policy, read_document
from airflow_ai_provider.policy.document import Inconsistencies
from airflow_ai_provider.policy.masking import NO_MASKING
from airflow_ai_provider.policy.money import Budget, DagBudget
from airflow_ai_provider.policy.narrowing import (
    loosened_budgets,
    loosened_grants,
    loosened_profile,
    loosened_route,
)

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
