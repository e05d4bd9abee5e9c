"""What came of a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from airflow_ai_provider.core.errors import PrivacyError, PromptError
from airflow_ai_provider.core.ledger.call_costs import Usage

if TYPE_CHECKING:
    from airflow_ai_provider.core.cache import Stored
    from airflow_ai_provider.core.checks.answer_checks import AnswerChecks
    from airflow_ai_provider.core.pipeline.row import AnyRow

RowStatus = Literal["ok", "rejected", "over_budget", "error"]
FINAL: frozenset[RowStatus] = frozenset({"ok", "rejected"})
"""Statuses that a later try of the task keeps; other rows it tries again, since a key, a limit or a prompt may have
been mended in between, and rows that were answered cost nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One row's outcome, with its own values back in place."""

    status: RowStatus
    request_id: str
    text: str | None = field(default=None, repr=False)
    error: str | None = None
    """What went wrong, as ``kind: explanation``; free of row data."""
    permanent: bool = False
    """Of an error: no later try answers this row unless the row, the prompt or the policy is changed."""
    tier: str | None = None
    deployment: str | None = None
    model: str | None = None
    reused: bool = False
    usage: Usage | None = None
    cost_nano: int = 0
    """What this row added to the ledger now, failed attempts and escalation included."""
    saved_nano: int = 0
    short_nano: int = 0
    """Budget that a row over budget would have needed, in nano-dollars."""


def refused_answer(error: PromptError | PrivacyError, request_id: str) -> Answer:
    """Return the answer of a row that cannot be rendered or masked."""
    return Answer("error", request_id, error=f"{kind_of_error(error)}: {error}", permanent=True)


def answer_of(row: AnyRow, checks: AnswerChecks) -> Answer:
    """Return the answer of a row that has come to its end."""
    failure, answered = row.failure, row.answered
    if failure is not None:
        return Answer(
            failure.status,
            row.request_id,
            error=failure.error,
            permanent=failure.permanent,
            tier=row.tier,
            deployment=failure.deployment.name,
            model=failure.deployment.model,
            cost_nano=row.spent_nano,
            short_nano=failure.short_nano,
        )
    assert answered is not None
    stored, text, unrestored = answered.stored, None, None
    try:
        text = row.request.restored(checks.content(stored))
    except PrivacyError as error:
        unrestored = f"privacy: {error}"
    return Answer(
        "error" if unrestored else "rejected" if row.problem else "ok",
        row.request_id,
        text=text,
        error=unrestored or row.problem,
        permanent=unrestored is not None,
        tier=answered.tier,
        deployment=answered.deployment.name,
        model=answered.deployment.model,
        reused=answered.reused,
        usage=None if answered.reused else _usage(stored),
        cost_nano=row.spent_nano,
        saved_nano=stored.cost_nano if answered.reused else 0,
    )


def kind_of_error(error: PromptError | PrivacyError) -> str:
    """Return the short name under which rows, ledger and reviews count such an error."""
    return "prompt" if isinstance(error, PromptError) else "privacy"


def _usage(stored: Stored) -> Usage:
    return Usage(stored.input_tokens, stored.output_tokens, stored.cached_input_tokens)
