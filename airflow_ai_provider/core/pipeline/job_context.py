"""What is the same for every row of a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from airflow_ai_provider.core.identity import reuse_scope, run_tag
from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef
from airflow_ai_provider.core.policy import Budget, Route
from airflow_ai_provider.core.policy.loading import PolicyFile


@dataclass(frozen=True, slots=True)
class JobContext:
    """Caller, route, budgets and request options of one job."""

    caller: Caller
    task: TaskRef
    team: str
    route_name: str
    route: Route
    budgets: Sequence[Budget]
    output_schema: Mapping[str, object] | None
    tools: Sequence[Mapping[str, object]]
    tool_choice: str | Mapping[str, object] | None
    owner: str
    """Names this process in the ledger."""
    read_at: datetime
    """When the policy, and with it ``budgets``, was read."""
    stated_in: Callable[[Budget], PolicyFile | None]
    """Returns the policy file that sets a budget."""


class CacheScope:
    """Who shares the stored answers of a job, and for how long."""

    def __init__(self, route: Route, team: str, caller: Caller) -> None:
        self._route, self._team, self._caller = route, team, caller
        self.run = run_tag(caller)
        """Tag of the run: a run always finds the answers that it has paid for."""
        self.ttl = route.reuse.ttl if route.reuse.scope != "off" else 0
        """Seconds for which other runs may use an answer."""
        self.shared = not route.shares_nothing
        """Whether rows share answers at all."""
        self._of_all = reuse_scope(route, team, caller, "") if self.shared else None

    def of(self, row_key: str) -> str:
        """Return the scope of a row's cache keys: that of the row alone if no answers are shared."""
        return self._of_all or reuse_scope(self._route, self._team, self._caller, row_key)
