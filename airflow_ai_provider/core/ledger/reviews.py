"""Answers that wait for a person: opened by the call path, closed by a later answer or by a decision.

A request has at most one open item, which says what its last try came to. Each function runs inside the caller's
transaction; what opens and answers may be run again after a commit whose outcome was lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, bindparam, or_, select, update

from airflow_ai_provider.core.errors import LedgerError
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef
from airflow_ai_provider.core.ledger.bulk import among, id_lists
from airflow_ai_provider.core.ledger.database import insert_ignore
from airflow_ai_provider.core.ledger.schema import review_items

Decision = Literal["accepted", "rejected", "corrected"]
DECISIONS: Final[Mapping[str, str]] = {
    "accepted": "the answer stands as it is",
    "rejected": "the answer is not to be used; the row stays without one",
    "corrected": "a person has put another answer in its place; the note says where",
}
STATUSES: Final = ("open", "answered", "decided")
MAX_NOTE: Final = 1000
_MAX_BY: Final = 200
_FOLLOWING: Final = ("try_number", "tier", "deployment", "model", "reason_kind", "reason", "sink")
"""What an open item takes over from a later try that came to something else."""
_items = review_items.c


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """A row whose answer a check rejected, or that no try will answer before something is changed."""

    item_id: str
    request_id: str
    task: TaskRef
    row_key: str
    route: str
    reason_kind: str
    """Which check or error: ``schema``, ``content_policy``, …"""
    reason: str
    """In words, free of row data."""
    sink: str
    """Where the row stands with its answer."""
    tier: str | None = None
    deployment: str | None = None
    model: str | None = None
    new_answer: bool = False
    """There is an answer that was made just now: no earlier decision can have been about it."""


def any_open(conn: Connection, task: TaskRef) -> bool:
    """Whether a task instance has items open, from any of its tries."""
    instance = [_items[name] == getattr(task, name) for name in ("dag_id", "task_id", "run_id", "map_index")]
    query = select(_items.item_id).where(*instance, _items.status == "open").limit(1)
    return conn.execute(query).first() is not None


def news_of(conn: Connection, items: Sequence[ReviewItem]) -> list[ReviewItem]:
    """The items of which no notice has been sent yet.

    What is open for the same reason is left out, and so is what was decided and comes back unchanged: an error
    that has not changed, or the very answer from the response store. What is open for another reason has its item's id.
    """
    known = _known(conn, [item.request_id for item in items])
    news = []
    for item in items:
        earlier = known.get(item.request_id, [])
        if open_now := next((row for row in earlier if row["status"] == "open"), None):
            if _reason(open_now) != (item.reason_kind, item.reason):
                news.append(replace(item, item_id=open_now["item_id"]))
        elif item.new_answer or not any(_decided_alike(row, item) for row in earlier):
            news.append(item)
    return news


def open_reviews(conn: Connection, items: Sequence[ReviewItem], now: datetime) -> None:
    """Open items; one that is open under the same id says from now on what this try came to."""
    if not items:
        return
    rows = [_row(item, now) for item in items]
    made = conn.execute(insert_ignore(conn, review_items), rows, execution_options={"preserve_rowcount": True})
    if made.rowcount != len(rows):  # some were there
        _follow(conn, rows)


def _follow(conn: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Let what is open under the same id, for another reason, say what ``rows`` say."""
    following: dict[str, Any] = {name: bindparam(f"new_{name}") for name in (*_FOLLOWING, "updated_at")}
    differs = or_(_items.reason_kind != bindparam("new_reason_kind"), _items.reason != bindparam("new_reason"))
    changed = update(review_items).where(_items.item_id == bindparam("of_item"), _items.status == "open", differs)
    conn.execute(
        changed.values(following),
        [{"of_item": row["item_id"], **{f"new_{name}": row[name] for name in following}} for row in rows],
    )


def open_of(conn: Connection, request_ids: Sequence[str]) -> list[tuple[str, str]]:
    """(item, request) of what is open for these requests."""
    found = (
        conn.execute(select(_items.item_id, _items.request_id).where(*_open_among(conn, ids)).order_by(_items.item_id))
        for ids in id_lists(conn, request_ids)
    )
    return [(row.item_id, row.request_id) for rows in found for row in rows]


def answer_reviews(conn: Connection, request_ids: Sequence[str], now: datetime) -> None:
    """Close what is open for these requests: a later try has answered them."""
    for ids in id_lists(conn, request_ids):
        conn.execute(update(review_items).where(*_open_among(conn, ids)).values(status="answered", updated_at=now))


def list_reviews(
    conn: Connection,
    *,
    team: str | None = None,
    dag_id: str | None = None,
    run_id: str | None = None,
    reason_kind: str | None = None,
    status: str | None = "open",
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Items that fit all that is given, the newest first; a ``status`` of ``None`` takes every one."""
    wanted = {"team_id": team, "dag_id": dag_id, "run_id": run_id, "reason_kind": reason_kind, "status": status}
    conditions = [_items[name] == value for name, value in wanted.items() if value is not None]
    newest = (_items.created_at.desc(), _items.item_id)
    query = select(review_items).where(*conditions).order_by(*newest).limit(limit)
    return [dict(row) for row in conn.execute(query).mappings()]


def review_of(conn: Connection, item_id: str) -> dict[str, Any]:
    """One item with every column. Raises ``LedgerError`` where there is none."""
    row = conn.execute(select(review_items).where(_items.item_id == item_id)).mappings().first()
    if row is None:
        raise LedgerError(f"review item {item_id!r}: there is none; airflow ai review list --status all shows them")
    return dict(row)


def require_open(conn: Connection, item_id: str) -> dict[str, Any]:
    """One item with every column. Raises ``LedgerError`` where it is not open."""
    item = review_of(conn, item_id)
    if item["status"] == "decided":
        raise LedgerError(f"review item {item_id} was decided by {item['decided_by']}: {item['decision']}")
    if item["status"] != "open":
        raise LedgerError(f"review item {item_id} waits no more: a later try has answered its row")
    return item


def check_decision(decision: str, by: str, note: str | None) -> None:
    """Raises ``LedgerError`` for what no item can be given."""
    if decision not in DECISIONS:
        raise LedgerError(f"decision {decision!r}: expected one of {', '.join(DECISIONS)}")
    if not by.strip() or len(by) > _MAX_BY:
        raise LedgerError(f"a decision needs the name of who decides, of at most {_MAX_BY} characters")
    if len(note or "") > MAX_NOTE or "\0" in f"{note}{by}":
        raise LedgerError(f"a note has at most {MAX_NOTE} characters, and no NUL")


def decide(conn: Connection, item_id: str, decision: Decision, *, by: str, note: str | None, now: datetime) -> None:
    """Close an open item by a person's decision. Raises ``LedgerError`` if it is not open, or ``by`` is missing."""
    check_decision(decision, by, note)
    said = {"decision": decision, "decided_by": by, "decided_at": now, "note": note, "updated_at": now}
    done = conn.execute(
        update(review_items)
        .where(_items.item_id == item_id, _items.status == "open")
        .values(status="decided", **said)
        .returning(_items.item_id)
    )
    if done.first() is None:
        require_open(conn, item_id)


def _open_among(conn: Connection, request_ids: Sequence[str]) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return among(conn, _items.request_id, request_ids), _items.status == "open"


def _known(conn: Connection, request_ids: Sequence[str]) -> dict[str, list[RowMapping]]:
    """What was ever opened for these requests, by request."""
    found: dict[str, list[RowMapping]] = {}
    for row in _rows_of(conn, request_ids):
        found.setdefault(row["request_id"], []).append(row)
    return found


def _rows_of(conn: Connection, request_ids: Sequence[str]) -> Iterator[RowMapping]:
    columns = (_items.item_id, _items.request_id, _items.status, _items.reason_kind, _items.reason)
    for ids in id_lists(conn, request_ids):
        yield from conn.execute(select(*columns).where(among(conn, _items.request_id, ids))).mappings()


def _reason(row: RowMapping) -> tuple[str, str]:
    return row["reason_kind"], row["reason"]


def _decided_alike(row: RowMapping, item: ReviewItem) -> bool:
    return row["status"] == "decided" and _reason(row) == (item.reason_kind, item.reason)


def _row(item: ReviewItem, now: datetime) -> dict[str, Any]:
    task = item.task
    return {
        "item_id": item.item_id,
        "created_at": now,
        "request_id": item.request_id,
        "team_id": task.team_id,
        "dag_id": task.dag_id,
        "run_id": task.run_id,
        "task_id": task.task_id,
        "map_index": task.map_index,
        "try_number": task.try_number,
        "row_key": item.row_key,
        "route": item.route,
        "tier": item.tier,
        "deployment": item.deployment,
        "model": item.model,
        "reason_kind": item.reason_kind,
        "reason": item.reason,
        "sink": item.sink,
        "status": "open",
        "updated_at": now,
    }
