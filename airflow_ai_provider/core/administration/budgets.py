"""Budgets: what is left of them, limits set by people, holds of tasks that are over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.core.administration.people import require_person
from airflow_ai_provider.core.installation import Installation
from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.policy import Budget
from airflow_ai_provider.core.settings import Settings

if TYPE_CHECKING:
    from airflow_ai_provider.core.ledger.attempts.attempts import Settled
    from airflow_ai_provider.core.ledger.budgets.availability import Room, Scope
    from airflow_ai_provider.core.ledger.budgets.limits import LimitChange
    from airflow_ai_provider.core.ledger.budgets.orphaned_holds import Holder

TaskState = tuple[bool, str | None]
"""Whether Airflow knows a task instance, and its state."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep came to. Amounts in nano-dollars."""

    holders: int
    """Processes that were silent."""
    over: int
    """Of them, those whose task is over."""
    holds: int
    attempts: int
    captured_nano: int


def room_now(settings: Settings, scope: Scope) -> list[Room]:
    """The budgets that apply to a scope, and what each has left. Raises ``PolicyError`` where there is none."""
    from airflow_ai_provider.core.ledger.budgets.availability import rooms
    from airflow_ai_provider.core.ledger.budgets.limits import budgets_in_force
    from airflow_ai_provider.core.ledger.installation_checks import require_pinned

    with Installation(settings) as installation:
        loaded = installation.policy
        policy = loaded.policy
        policy.require_team(scope.team, dag=scope.dag_id)
        ledger = installation.ledger
        with ledger.read() as conn:
            require_pinned(conn, loaded.file, always=policy.ledger.pinned)
            in_force = [budget for budget, _ in budgets_in_force(conn, policy.budgets)]
            policy.budgets_for(team=scope.team, dag=scope.dag_id, route=scope.route, in_force=in_force)
            return rooms(conn, policy.budgets, scope, ledger.now())


def set_budget(settings: Settings, budget: Budget, *, clear: bool, caller: Caller, reason: str) -> LimitChange:
    """Set a limit by hand, or with ``clear`` give the budget back to the policy.

    It is in the trail before it holds: a limit that nobody could account for does not come into force. Raises
    ``LedgerError`` where the person or the reason is missing, and where there is nothing to clear, and
    ``PermanentError`` inside a task.
    """
    require_person("a limit cannot be set")
    from airflow_ai_provider.core.ledger.budgets.limits import planned_change, set_limit

    with Installation(settings) as installation:
        ledger = installation.ledger
        with ledger.read() as conn:
            change = planned_change(conn, budget, clear=clear, by=caller.user, reason=reason)
        said = {"limit_nano": change.new_nano or 0, "old_limit_nano": change.old_nano}
        why = _one_line(f"back to the policy: {reason}" if clear else reason)
        with installation.trail(caller) as trail:
            trail.emit("budget.changed", budget=change.name, period=change.period, reason=why, **said)
        with ledger.write() as conn:
            return set_limit(conn, budget, clear=clear, by=caller.user, reason=reason, now=ledger.now())


def resume_deployment(settings: Settings, deployment: str, *, caller: Caller, reason: str) -> None:
    """Let calls go to a stopped deployment again.

    Raises ``LedgerError`` where it is not stopped, and ``PermanentError`` inside a task.
    """
    require_person("a deployment cannot be resumed")
    from airflow_ai_provider.core.ledger.attempts import disabled_deployments

    with Installation(settings) as installation:
        ledger = installation.ledger
        with ledger.read() as conn:
            disabled_deployments.require_stopped(conn, deployment)
        with installation.trail(caller) as trail:
            trail.emit("deployment.resumed", deployment=deployment, reason=_one_line(reason))
        with ledger.write() as conn:
            disabled_deployments.resume_deployment(conn, deployment)


def sweep_holds(
    settings: Settings, states: Callable[[Sequence[Holder]], Sequence[TaskState]], *, caller: Caller, dry_run: bool
) -> Swept:
    """Capture what tasks that are over left open, and release what they hold. ``states`` asks Airflow about them."""
    from airflow_ai_provider.core.ledger.budgets.orphaned_holds import is_over, silent_holders, sweep

    with Installation(settings) as installation:
        ledger = installation.ledger
        now = ledger.now()
        with ledger.read() as conn:
            silent = silent_holders(conn, now)
        over = [
            holder.owner
            for holder, (known, state) in zip(silent, states(silent) if silent else (), strict=True)
            if is_over(holder, state, known=known, now=now)
        ]
        if dry_run or not over:
            return Swept(len(silent), len(over), 0, 0, 0)
        with installation.trail(caller) as trail:
            trail.prepare()
            with ledger.write() as conn:
                holds, settled = sweep(conn, over, now)
                captured = sum(item.cost_nano for item in settled)
                # Inside: what the ledger says was paid is in the trail, whenever this process dies.
                trail.emit_many(_call_event(item) for item in settled)
                trail.emit("holds.swept", holds=holds, attempts=len(settled), cost_nano=captured, reason="task is over")
                trail.flush()
    return Swept(len(silent), len(over), holds, len(settled), captured)


def _call_event(settled: Settled) -> tuple[str, str, dict[str, Any]]:
    from airflow_ai_provider.core.pipeline.audit_log import call_fields

    whose = asdict(settled.request.task)
    return "llm.call", settled.status, {**call_fields(settled), "team": whose.pop("team_id"), **whose}


def usd(text: str) -> Decimal:
    """Read an amount in USD. Raises ``ValueError`` for what is no number from 0 on with at most nine decimals."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r}: expected an amount in USD such as 250.00") from None
    if not amount.is_finite() or amount < 0 or amount != round(amount, 9):
        raise ValueError(f"{text!r}: expected an amount in USD from 0 on, with at most nine decimals")
    return amount


def _one_line(text: str) -> str:
    return " ".join(text.split())[:256]
