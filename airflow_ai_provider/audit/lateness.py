"""Decides whether sealing has stopped: no manifest for too long. Pure; time is passed in."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

SEAL_WITHIN: Final = timedelta(hours=1)
"""Six runs of the sealing DAG, which runs every ten minutes."""


def seal_overdue(
    newest: datetime | None, waiting: Iterable[datetime], now: datetime, within: timedelta
) -> timedelta | None:
    """How long something has waited for its seal, where that is longer than ``within``; ``None`` where it is not.

    ``newest`` is when the last manifest was pinned, ``waiting`` when segments that no manifest has were opened. A
    trail to which nothing was added since is not overdue.
    """
    oldest = min(waiting, default=None)
    if oldest is None:
        return None
    since = oldest if newest is None else max(oldest, newest)
    return now - since if now - since > within else None
