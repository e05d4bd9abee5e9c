"""The steps of a row that cost nothing: route it, look its answer up, check the answer.

A run takes them for each row before and after it asks a vendor; a plan takes the same ones and stops where a run would
spend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Generic

from airflow_ai_provider.core.cache import ResponseStore, Stored
from airflow_ai_provider.core.checks.answer_checks import AnswerChecks
from airflow_ai_provider.core.errors import PrivacyError, RoutingError
from airflow_ai_provider.core.pipeline import transitions
from airflow_ai_provider.core.pipeline.deployments import answer_keys
from airflow_ai_provider.core.pipeline.job_context import CacheScope
from airflow_ai_provider.core.pipeline.row import D, RoutedRequest, RowState
from airflow_ai_provider.core.pipeline.transitions import Rules
from airflow_ai_provider.core.policy import Tier
from airflow_ai_provider.core.routing.router import Router


class RowLookup(Generic[D]):
    """Routes the rows of one job, finds their stored answers and checks answers."""

    def __init__(
        self,
        tiers: Mapping[Tier, Sequence[D]],
        router: Router,
        store: ResponseStore | None,
        scope: CacheScope,
        checks: AnswerChecks,
        rules: Rules,
    ) -> None:
        """``store`` is ``None`` where nothing can have been stored yet."""
        self._first = {tier: found[0] for tier, found in tiers.items()}
        self._by_tier = {tier: {each.name: each for each in found} for tier, found in tiers.items()}
        self._by_name = {each.name: each for found in tiers.values() for each in found}
        self._router = router
        self._store = store
        self._scope = scope
        self._checks = checks
        self._rules = rules

    def route(self, row: RowState[D]) -> None:
        """Find the deployments of the row's tier that can take it, and the cache keys of its answer."""
        try:
            routed = self._routed(row)
        except (RoutingError, PrivacyError) as error:
            transitions.unroutable(row, error, self._first[row.tier])
            return
        if row.other_than is not None:
            routed = _without(routed, row.other_than)
        if routed.deployments:
            transitions.routed(row, routed)
        else:
            transitions.no_other_model(row)

    async def find(self, rows: Sequence[RowState[D]]) -> None:
        """Look up the answers of routed rows together: those of each row's first deployment, then of its second."""
        missing = list(rows)
        place = 0
        while missing and self._store is not None:
            asked = [(row, row.routed.keys[place]) for row in missing if row.routed and place < len(row.routed.keys)]
            missing = [row for row, _ in asked]
            place += 1
            if not asked:
                return
            keys = [key for _, key in asked]
            found = await self._store.find_many(keys, run=self._scope.run, ttl=self._scope.ttl)
            for row, stored in zip(missing, found, strict=True):
                if stored is not None:
                    self.found(row, stored)
            missing = [row for row in missing if row.step == "routed"]

    def found(self, row: RowState[D], stored: Stored) -> None:
        """Give a row an answer that was found, of whichever deployment it is."""
        by_tier, name = self._by_tier[row.tier], stored.deployment
        transitions.found(row, stored, by_tier.get(name) or self._by_name.get(name) or self._first[row.tier])

    def judge(self, row: RowState[D]) -> None:
        """Check the answer of a row, as the tier was asked that gave it."""
        assert row.answered is not None
        assert row.routed is not None
        transitions.judged(row, self._checks.verdict(row.answered.stored, row.routed.request), self._rules)

    def _routed(self, row: RowState[D]) -> RoutedRequest[D]:
        request, tier = row.request.at(row.tier), row.tier
        order = self._router.order(tier, request.needs, request.row_key)
        deployments = [self._by_tier[tier][name] for name in order]
        arms = self._router.stands_for(tier, order)
        keys = answer_keys(deployments, arms, self._scope.of(request.row_key), request.messages)
        return RoutedRequest(request, deployments, keys)


def _without(routed: RoutedRequest[D], model: str) -> RoutedRequest[D]:
    """The deployments of other models than this one."""
    pairs = zip(routed.deployments, routed.keys, strict=True)
    kept = [(deployment, key) for deployment, key in pairs if deployment.model != model]
    return replace(routed, deployments=[deployment for deployment, _ in kept], keys=[key for _, key in kept])
