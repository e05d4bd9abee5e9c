"""Rows for a person to look at: which answers go to review, and the items of a batch.

To review goes what no later try will settle by itself: an answer that a check rejected in the end, and an error that
stays until something is changed, be it the vendor's refusal or a row that cannot be rendered or masked. A row
that is over budget, or whose deployments were all unwell, is not a person's business: the next try answers it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from airflow_ai_provider.core.ledger.attempts.group_commit import Journal
from airflow_ai_provider.core.ledger.budgets.holds import TaskRef
from airflow_ai_provider.core.ledger.reviews import ReviewItem, answer_reviews, news_of, open_of, open_reviews
from airflow_ai_provider.core.pipeline.answer import Answer
from airflow_ai_provider.core.pipeline.audit_log import AuditLog
from airflow_ai_provider.core.rows.filesystem import shown

_LONGEST_REASON: Final = 2000
"""Characters; ours are far shorter, but a schema's path may be deep."""


@dataclass(frozen=True, slots=True)
class ReviewPlace:
    """What all items of a job have in common."""

    task: TaskRef
    route: str
    sink: str
    """URI of the output."""


def review_item(answer: Answer, row_key: str, place: ReviewPlace) -> ReviewItem | None:
    """The review item that an answer opens; ``None`` if it needs no review."""
    if answer.status != "rejected" and not (answer.status == "error" and answer.permanent):
        return None
    kind, _, reason = (answer.error or "unexplained").partition(": ")
    return ReviewItem(
        item_id=uuid.uuid4().hex,
        request_id=answer.request_id,
        task=place.task,
        row_key=_storable(row_key),
        route=place.route,
        reason_kind=kind[:100],
        reason=_storable(reason)[:_LONGEST_REASON],
        sink=shown(place.sink),
        tier=answer.tier,
        deployment=answer.deployment,
        model=answer.model,
        new_answer=answer.text is not None and not answer.reused,
    )


class Reviews:
    """Opens and closes the review items of one job, a batch at a time. For one event loop.

    ``any_open`` says whether earlier tries of the task have left items open (``ledger.reviews.any_open``): without them
    a batch that needs no person costs no look-up.
    """

    def __init__(
        self,
        journal: Journal,
        recorder: AuditLog,
        place: ReviewPlace,
        *,
        any_open: bool,
        suspected: Callable[[str | None], bool] = lambda _: False,
    ) -> None:
        """``suspected`` says of a deployment that its refusals may yet turn out to have nothing to do with their rows:
        such items wait, and are not written where the job is given up."""
        self._journal = journal
        self._recorder = recorder
        self._place = place
        self._any_open = any_open
        self._suspected = suspected
        self._waiting: list[ReviewItem] = []

    async def settle(self, answers: Sequence[Answer], row_keys: Sequence[str]) -> None:
        """Bring the items of a batch up to date; durable on return. Call it before the batch's part is written.

        As everywhere, the events are durable before the ledger's transaction is. Raises ``LedgerUnavailable``,
        ``LedgerError`` and ``AuditError``.
        """
        items: list[ReviewItem] = []
        refused = self._waiting
        for answer, key in zip(answers, row_keys, strict=True):
            if (item := review_item(answer, key, self._place)) is not None:
                # Only errors may wait: the next try asks for those again, and not for rejected answers.
                (refused if answer.status == "error" else items).append(item)
        self._waiting = [item for item in refused if self._suspected(item.deployment)]
        items += [item for item in refused if not self._suspected(item.deployment)]
        ok = [answer.request_id for answer in answers if answer.status == "ok"] if self._any_open else []
        await self._write(items, ok)

    async def finish(self) -> None:
        """Write the items that still wait."""
        items, self._waiting = self._waiting, []
        await self._write(items, [])

    async def _write(self, items: Sequence[ReviewItem], ok: Sequence[str]) -> None:
        if not items and not ok:
            return
        news, answered = await self._journal.run(lambda conn: _changes(conn, items, ok))
        if not news and not answered:
            return
        self._recorder.reviews_opened(news)
        self._recorder.reviews_answered(answered)
        await self._recorder.flush()
        await self._journal.run(lambda conn: _write(conn, news, answered, self._journal.now()))


def _changes(
    conn: Connection, items: Sequence[ReviewItem], ok: Sequence[str]
) -> tuple[list[ReviewItem], list[tuple[str, str]]]:
    return news_of(conn, items), open_of(conn, ok)


def _write(conn: Connection, news: Sequence[ReviewItem], answered: Sequence[tuple[str, str]], now: datetime) -> None:
    open_reviews(conn, news, now)
    answer_reviews(conn, [request_id for _, request_id in answered], now)


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd")  # PostgreSQL keeps no NUL
