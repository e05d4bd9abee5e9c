"""Decisions of people on answers that wait for one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_ai_provider.core.installation import Installation
from airflow_ai_provider.gateway.job import Caller
from airflow_ai_provider.gateway.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow_ai_provider.ledger.reviews import Decision


def decide_reviews(
    settings: Settings, item_ids: Sequence[str], decision: Decision, *, caller: Caller, note: str | None
) -> None:
    """Decide on open items, each by itself and in this order.

    A decision is in the trail before it is in the ledger; its note, which may speak of a row, is in the ledger alone.
    Raises ``LedgerError``, with nothing decided, where an item is not open, and for what no item can be given.
    """
    from airflow_ai_provider.ledger.reviews import check_decision, decide, require_open

    check_decision(decision, caller.user, note)
    with Installation(settings) as installation:
        ledger = installation.ledger
        with ledger.read() as conn:
            items = [require_open(conn, item_id) for item_id in dict.fromkeys(item_ids)]
        alone = replace(caller, dag_id="", run_id="", task_id="")  # each event names the task whose answer it is
        with installation.trail(alone) as trail:
            for item in items:
                trail.emit("review.decided", decision=decision, **_fields(item))
        for item in items:
            with ledger.write() as conn:
                decide(conn, item["item_id"], decision, by=caller.user, note=note, now=ledger.now())


def _fields(item: Mapping[str, Any]) -> dict[str, Any]:
    """What the event says of an item: names and ids, as when it was opened."""
    same = ("request_id", "route", "tier", "deployment", "model")
    whose = ("dag_id", "run_id", "task_id", "map_index", "try_number")
    named = {"review": item["item_id"], "team": item["team_id"], "reason": item["reason_kind"]}
    return {**named, **{name: item[name] for name in (*same, *whose)}}
