"""A plan in words and figures, for a terminal, a log and an approver. Never a value of a row."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from airflow_ai_provider.core.jobs.estimate import BudgetLine, DeploymentFigures
from airflow_ai_provider.core.jobs.plan import SpendPlan
from airflow_ai_provider.core.ledger.call_costs import usd_from_nano


def plan_line(plan: SpendPlan) -> str:
    """The plan in one line, for a log."""
    return (
        f"plan: {plan.rows:,} rows, {plan.calls:,} calls · expected {dollars(plan.expected_nano)}, "
        f"at worst {dollars(plan.worst_nano)} a try · {basis(plan)}"
    )


def plan_figures(plan: SpendPlan, tries: int = 1) -> dict[str, str]:
    """The plan's own figures, by what they are. ``tries`` is how often Airflow runs the task at most."""
    figures = {
        "rows": f"{plan.rows:,}",
        "finished before": f"{plan.finished:,}" if plan.finished else "",
        "stored answers": f"{plan.stored:,}",
        "equal to another row": f"{plan.equal:,}",
        "routed": _counts(plan.routed),
        "cannot be asked": _counts(plan.refused),
        "need a call": f"{plan.calls:,}",
        "tokens in, out": f"{plan.input_tokens:,}, {plan.output_tokens:,}",
        "expected cost": dollars(plan.expected_nano),
        "worst cost": _worst(plan.worst_nano, tries),
        "held at one time": f"up to {dollars(plan.held_at_once_nano)}",
        "held in all": dollars(plan.holds_nano),
        "time at the policy's rates": duration(plan.seconds),
        "estimated from": basis(plan),
        "warning": " · ".join(plan.warnings),
    }
    return {name: value for name, value in figures.items() if value}


def deployment_row(line: DeploymentFigures) -> dict[str, Any]:
    return {
        "tier": line.tier,
        "deployment": line.deployment,
        "model": line.model,
        "calls": line.calls,
        "input_tokens": line.input_tokens,
        "output_tokens": line.output_tokens,
        "expected_usd": _usd(line.expected_nano),
        "worst_usd": _usd(line.worst_nano),
        "estimated_from": line.basis,
    }


def deployment_table_row(line: DeploymentFigures) -> dict[str, str]:
    """The same for people."""
    return {
        "tier": line.tier,
        "deployment": line.deployment,
        "model": line.model,
        "calls": f"{line.calls:,}",
        "tokens in, out": f"{line.input_tokens:,}, {line.output_tokens:,}",
        "expected": dollars(line.expected_nano),
        "worst": dollars(line.worst_nano),
        "estimated from": line.basis,
    }


def budget_row(line: BudgetLine) -> dict[str, Any]:
    return {
        "budget": line.budget,
        "period": line.period,
        "limit_usd": _usd(line.limit_nano),
        "left_usd": _usd(line.left_nano),
        "after_expected_usd": _usd(line.after_expected_nano),
        "after_worst_usd": _usd(line.after_worst_nano),
        "rows_over_budget": line.rows_over,
        "verdict": verdict(line),
    }


def budget_table_row(line: BudgetLine) -> dict[str, str]:
    """The same for people."""
    return {
        "budget": line.budget,
        "period": line.period,
        "limit": dollars(line.limit_nano),
        "left now": dollars(line.left_nano),
        "after expected": dollars(line.after_expected_nano),
        "after worst": dollars(line.after_worst_nano),
        "verdict": verdict(line),
    }


def plan_document(plan: SpendPlan, tries: int = 1) -> dict[str, Any]:
    """The whole plan as plain values, for programs. Money as decimal USD; ``tries`` as in ``plan_figures``."""
    return {
        "rows": plan.rows,
        "finished": plan.finished,
        "stored": plan.stored,
        "equal": plan.equal,
        "routed": dict(plan.routed),
        "refused": dict(plan.refused),
        "calls": plan.calls,
        "input_tokens": plan.input_tokens,
        "output_tokens": plan.output_tokens,
        "expected_usd": _usd(plan.expected_nano),
        "worst_usd": _usd(plan.worst_nano),
        "worst_attempts": plan.worst_attempts,
        "tries": tries,
        "worst_all_tries_usd": _usd(plan.worst_nano * tries),
        "held_at_once_usd": _usd(plan.held_at_once_nano),
        "holds_usd": _usd(plan.holds_nano),
        "seconds": round(plan.seconds, 1),
        "warnings": list(plan.warnings),
        "deployments": [deployment_row(line) for line in plan.figures],
        "budgets": [budget_row(line) for line in plan.budgets],
    }


def verdict(line: BudgetLine) -> str:
    """Whether a budget is enough, in words."""
    if line.rows_over:
        return f"does not fit: about {line.rows_over:,} rows would be over_budget"
    return "fits, even at worst" if line.after_worst_nano >= 0 else "fits, as expected"


def basis(plan: SpendPlan) -> str:
    """Where the estimate comes from: that of the deployment with most of the cost."""
    if not plan.figures:
        return "nothing to ask"
    return max(plan.figures, key=lambda line: (line.expected_nano, line.calls)).basis


def dollars(nano: int) -> str:
    """``$1,234.57``, ``$0.0421``, ``$0.000134``: as many digits as say something."""
    usd = usd_from_nano(abs(nano))
    digits = 2 if usd >= 100 or not usd else 4 if usd >= Decimal("0.01") else 6
    return f"{'-' if nano < 0 else ''}${usd:,.{digits}f}"


def duration(seconds: float) -> str:
    """``41 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _worst(nano: int, tries: int) -> str:
    return dollars(nano) if tries == 1 else f"{dollars(nano)} a try, {dollars(nano * tries)} in all {tries}"


def _usd(nano: int) -> str:
    """Decimal USD with all its digits, never as an exponent."""
    return f"{usd_from_nano(nano):f}"


def _counts(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items()))
