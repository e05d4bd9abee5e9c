"""Ask a person before money is spent.

A task whose plan is expensive waits in Airflow's ``awaiting_input`` state, which holds no slot, and goes on after a
decision under Required Actions or through the API. An approval is for an amount: it is kept with the task instance
over retries and clears, and serves as long as what was spent since and what is planned now stay within it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from logging import Logger
from typing import TYPE_CHECKING, Any, NoReturn, cast

from airflow.sdk.exceptions import AirflowFailException, TaskAwaitingInput

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ai_provider.core.installation import Installation
    from airflow_ai_provider.core.job import Caller, MapJob
    from airflow_ai_provider.core.jobs.plan import SpendPlan

APPROVE, REJECT = "Approve", "Reject"
RESUME = "resume_decided"
"""The operator's method that Airflow calls with the decision."""
_STATE = "ai_spend"
"""Key of the task instance's state: what was shown, and what was approved."""
_NANO = 10**9
_SLACK_PERCENT = 10
"""By how much a plan may have grown since it was approved: estimates move a little while other shards are at work."""


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """When to ask, whom, and for how long to wait."""

    over_nano: int
    """A whole source expected to cost more than this is asked for."""
    approvers: Sequence[Mapping[str, str]]
    """Airflow users as ``{"id": …, "name": …}``; none is everybody who may answer."""
    timeout: timedelta | None


def approval_rule(
    over_usd: Decimal | str | float | None, approvers: object = None, timeout: timedelta | None = None
) -> ApprovalRule | None:
    """The rule from an operator's arguments, or ``None`` where nothing is asked. Raises ``ValueError``."""
    if over_usd is None:
        if approvers is not None or timeout is not None:
            raise ValueError("approvers and approval_timeout need approve_over_usd, the amount from which on to ask")
        return None
    try:
        usd = Decimal(str(over_usd))
    except InvalidOperation:
        raise ValueError(f"approve_over_usd {over_usd!r}: expected an amount in USD, such as 25") from None
    if not usd.is_finite() or usd < 0:
        raise ValueError(f"approve_over_usd {over_usd!r}: expected an amount of 0 USD or more")
    if timeout is not None and timeout <= timedelta(0):
        raise ValueError(f"approval_timeout {timeout}: expected more than nothing")
    return ApprovalRule(int(usd * _NANO), _users(approvers), timeout)


def require_approval(
    rule: ApprovalRule,
    job: MapJob,
    caller: Caller,
    installation: Installation,
    context: Context,
    log: Logger,
    *,
    tries: int = 1,
) -> None:
    """Return if the job may be run: its plan is cheap enough, or was approved. Otherwise park the task.

    ``tries`` is how often Airflow runs the task at most.

    Raises ``TaskAwaitingInput``; ``AirflowFailException`` where no approver can be asked.
    """
    from airflow_ai_provider.core.jobs.plan import plan_spend
    from airflow_ai_provider.core.jobs.plan_text import dollars, plan_line

    plan = plan_spend(job, caller, installation)
    log.info("%s", plan_line(plan))
    for warning in plan.warnings:
        log.warning("%s", warning)
    whole = whole_nano(plan)
    if whole <= rule.over_nano:
        log.info("no approval is needed: %s of at most %s", dollars(whole), dollars(rule.over_nano))
        return
    state = _state(context)
    approved = state.get("approved")
    if approved and approved["plan"] == plan.fingerprint:
        spent = _spent_since(installation, caller, datetime.fromisoformat(approved["at"]))
        if covers(approved["nano"], plan.expected_nano + spent):
            log.info("approved by %s at %s: %s", approved["by"], approved["at"], dollars(approved["nano"]))
            return
    _ask(rule, plan, job, caller, installation, context, state, tries)


def take_decision(
    context: Context, caller: Caller, installation: Installation, asked: Mapping[str, Any], event: Any
) -> None:
    """Keep and record what was decided. Returns if it was approved, else raises ``AirflowFailException``."""
    from airflow_ai_provider.core.audit.trail.events import format_time
    from airflow_ai_provider.core.jobs.plan_text import dollars

    fields = {name: asked[name] for name in ("plan_hash", "cost_nano", "worst_nano")}
    fields |= {"team": asked["team"], "route": asked["route"]}
    amount = dollars(asked["cost_nano"])
    if "error" in event:
        kind = str(event.get("error_type") or "unknown")
        installation.record("plan.rejected", caller, outcome="error", reason=kind, **fields)
        waited = "nobody decided in time" if kind == "timeout" else f"the request for approval failed ({kind})"
        raise AirflowFailException(f"{waited}: expected {amount}, nothing was spent; clear the task to ask again")
    user = event.get("responded_by_user") or {}
    by, at = str(user.get("name") or user.get("id") or "unknown"), format_time(event["responded_at"])
    fields |= {"decided_by": by[:256].replace("\n", " "), "decided_at": at}
    if event["chosen_options"] != [APPROVE]:
        installation.record("plan.rejected", caller, outcome="error", reason="rejected", **fields)
        raise AirflowFailException(f"{by} rejected the plan at {at}: expected {amount}, nothing was spent")
    installation.record("plan.approved", caller, **fields)
    approved = {"plan": asked["plan_hash"], "nano": asked["cost_nano"], "by": by, "at": at}
    _store(context).set(_STATE, {**_state(context), "approved": approved})


def whole_nano(plan: SpendPlan) -> int:
    """What the whole source is expected to cost, by what the task instance's share of it is.

    Batches are dealt round, so that shards are alike. Without this a task could stay below any amount by having
    more shards.
    """
    return -(-plan.expected_nano * plan.source_rows // plan.rows) if plan.rows else 0


def covers(approved_nano: int, wanted_nano: int) -> bool:
    """Whether what was approved is enough for what is wanted now."""
    return wanted_nano * 100 <= approved_nano * (100 + _SLACK_PERCENT)


def request_text(plan: SpendPlan, rule: ApprovalRule, job: MapJob, caller: Caller, tries: int) -> tuple[str, str]:
    """Subject and body of the request, in Markdown."""
    from airflow_ai_provider.core.jobs.plan_text import dollars, plan_figures, verdict
    from airflow_ai_provider.core.rows.filesystem import shown

    share = "" if job.shard.count == 1 else f", shard {job.shard}, which is {plan.rows:,} of its rows"
    rows = [f"| {name} | {value} |" for name, value in plan_figures(plan, tries).items()]
    budgets = [
        f"| budget {line.budget} | {dollars(line.after_expected_nano)} would be left of {dollars(line.limit_nano)}: "
        f"{verdict(line)} |"
        for line in plan.budgets
    ]
    body = "\n".join(
        [
            f"`{caller.dag_id}.{caller.task_id}` is about to ask for the rows of `{shown(job.source.split('?')[0])}`"
            f"{share}. Team {job.team} pays. Nothing has been spent for this request yet.",
            "",
            "| | |",
            "|---|---|",
            *rows,
            *budgets,
            "",
            f"The whole source is expected to cost {dollars(whole_nano(plan))}; from {dollars(rule.over_nano)} on the "
            f"task asks. Approved is what this request is expected to cost, {dollars(plan.expected_nano)}, "
            f"and {_SLACK_PERCENT}% more.",
        ]
    )
    return f"{caller.task_id}: spend about {dollars(plan.expected_nano)} on {plan.calls:,} calls?", body


def _ask(
    rule: ApprovalRule,
    plan: SpendPlan,
    job: MapJob,
    caller: Caller,
    installation: Installation,
    context: Context,
    state: Mapping[str, Any],
    tries: int,
) -> NoReturn:
    """Put the request before people, and park."""
    from airflow_ai_provider.core.jobs.plan_text import dollars

    subject, body = request_text(plan, rule, job, caller, tries)
    if _put_request(context, subject, body, rule) == body:
        _store(context).set(_STATE, {**state, "shown_nano": plan.expected_nano})
    elif not covers(int(state.get("shown_nano") or 0), plan.expected_nano):
        # Airflow 3.3 keeps showing a task instance's first request. An approver must see what they approve.
        raise AirflowFailException(
            f"the plan has grown to {dollars(plan.expected_nano)} since this task instance first asked, and Airflow "
            "would show the old one; trigger a new run, or raise approve_over_usd"
        )
    figures: dict[str, Any] = {
        "plan_hash": plan.fingerprint,
        "cost_nano": plan.expected_nano,
        "worst_nano": plan.worst_nano,
        "team": job.team,
        "route": job.route,
    }
    counts: dict[str, Any] = {"rows": plan.rows, "calls": plan.calls, "limit_nano": rule.over_nano}
    installation.record("plan.made", caller, shard=str(job.shard), **counts, **figures)
    raise TaskAwaitingInput(method_name=RESUME, kwargs={"asked": figures}, timeout=rule.timeout)


def _put_request(context: Context, subject: str, body: str, rule: ApprovalRule) -> str | None:
    """Write the request to Airflow; returns the body that is shown, which may be that of an earlier one."""
    from airflow.sdk.api.datamodels._generated import HITLUser
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import CreateHITLDetailPayload

    # As ``upsert_hitl_detail`` does, which keeps the answer to itself.
    shown = task_runner.SUPERVISOR_COMMS.send(
        CreateHITLDetailPayload(
            ti_id=context["ti"].id,
            options=[APPROVE, REJECT],
            subject=subject,
            body=body,
            defaults=None,
            params={},
            multiple=False,
            assigned_users=[HITLUser(id=user["id"], name=user["name"]) for user in rule.approvers],
        )
    )
    return cast("str | None", getattr(shown, "body", None))


def _store(context: Context) -> Any:
    """Small values that Airflow keeps with a task instance, over its tries."""
    return context["task_state_store"]


def _state(context: Context) -> dict[str, Any]:
    return dict(_store(context).get(_STATE) or {})


def _spent_since(installation: Installation, caller: Caller, since: datetime) -> int:
    from airflow_ai_provider.core.ledger.reports.call_history import spent_since

    with installation.ledger.read() as conn:
        return spent_since(
            conn,
            dag_id=caller.dag_id,
            run_id=caller.run_id,
            task_id=caller.task_id,
            map_index=caller.map_index,
            since=since,
        )


def _users(approvers: object) -> list[Mapping[str, str]]:
    listed = [] if approvers is None else [approvers] if isinstance(approvers, str | Mapping) else approvers
    if not isinstance(listed, Sequence):
        raise ValueError("approvers: expected ids of Airflow users, as a list of texts")
    return [_user(one) for one in listed]


def _user(one: object) -> Mapping[str, str]:
    match one:
        case str() if one.strip():
            return {"id": one, "name": one}
        case {"id": str(user), "name": str(name)}:
            return {"id": user, "name": name}
    raise ValueError(f'approvers: {one!r}: expected a user\'s id, or {{"id": …, "name": …}}')
