"""Who may spend how much, and what the ledger keeps."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
)

from airflow_ai_provider.core.errors import PolicyError
from airflow_ai_provider.core.policy.fields import Section, Usd, listed


class Budget(Section):
    """A hard limit on what a scope may spend in a period. No scope at all is the whole organisation."""

    limit_usd: Annotated[Usd, Field(le=9_000_000_000)]
    period: Literal["day", "week", "month", "run", "total"]
    team: str | None = None
    dag: str | None = None
    route: str | None = None
    timezone: str = "UTC"
    thresholds: tuple[Annotated[int, Field(ge=1, le=100)], ...] = (50, 80, 100)
    """Percent of the limit at which a notice is sent, once each."""

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{name!r} is no time zone; expected a name such as Europe/Berlin") from None
        return name

    @property
    def name(self) -> str:
        """Identifies the budget in the ledger: its scope, period and time zone, not its limit."""
        scope = [f"{k}={v}" for k, v in (("team", self.team), ("dag", self.dag), ("route", self.route)) if v]
        zone = "" if self.timezone == "UTC" else f"[{self.timezone}]"
        return f"{'&'.join(scope) or 'organisation'}/{self.period}{zone}"

    def applies(self, *, team: str, dag: str, route: str) -> bool:
        wanted = ((self.team, team), (self.dag, dag), (self.route, route))
        return all(mine is None or mine == theirs for mine, theirs in wanted)


class DagBudget(Budget):
    """A budget of a DAG's own file: a row of its own in the ledger, beside the governing ones."""

    file: str
    """Tells the files apart in the budget's name."""

    @property
    def name(self) -> str:
        return f"policy={self.file}&{super().name}"


class Team(Section):
    """Which DAGs may make calls for a team, and over which routes."""

    dags: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)]
    """Ids of DAGs; ``*`` stands for any characters."""
    routes: Annotated[tuple[str, ...] | None, BeforeValidator(listed)] = None
    """``None`` is every route."""

    def has(self, dag: str) -> bool:
        """Whether a DAG may act for the team."""
        return any(fnmatchcase(dag, pattern) for pattern in self.dags)


class LedgerRules(Section):
    """What the ledger keeps, and how it is tied to this policy."""

    pinned: bool = False
    """Calls need a ledger in which this policy is pinned."""

    reconcile_dags: Annotated[tuple[str, ...] | None, BeforeValidator(listed)] = None
    """Ids of DAGs whose tasks may change the ledger by an invoice, ``*`` stands for any characters; ``None`` is all."""

    keep_months: int | None = Field(default=None, ge=1, le=1200)
    """Full months of ``llm_requests`` kept before the present one; ``None`` keeps all. The rollup stays for ever."""

    def require_reconciler(self, dag: str) -> None:
        """Raise ``PolicyError`` where a DAG's tasks may not change the ledger by an invoice."""
        allowed = self.reconcile_dags
        if allowed is not None and not any(fnmatchcase(dag, pattern) for pattern in allowed):
            raise PolicyError(
                f"DAG {dag!r} may not change the ledger by an invoice: it could give itself room in budgets. Compare "
                "only, or ask the owner of the policy to add it under ledger.reconcile_dags"
            )
