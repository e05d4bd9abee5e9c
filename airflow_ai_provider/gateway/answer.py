"""What came of a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from airflow_ai_provider.ledger.money import Usage

RowStatus = Literal["ok", "rejected", "over_budget", "error"]
FINAL: frozenset[RowStatus] = frozenset({"ok", "rejected"})
"""What a later try of the task leaves as it is; other rows it tries again, since a key, a limit or a prompt may have
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
    """Room that a row over budget would have needed."""
