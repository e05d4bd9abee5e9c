"""Counts of a job's rows by status, and the error rate that fails it.

How far a job has come: counts of its rows, and a line of them in the log every few seconds.

Whether too many rows of a job ended with an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

from airflow_ai_provider.core.errors import PermanentError, TransientError

EVERY_SECONDS = 5.0


@dataclass
class Tally:
    """Counts of rows; a job adds its own as further fields. Parts add up to shards, shards to sinks."""

    spent: ClassVar[frozenset[str]] = frozenset()
    """Fields that count what one try of the task spends, which a part of an earlier try does not add to."""

    rows: int = 0
    skipped: int = 0
    """Rows in parts that an earlier try had finished; counted in the other figures as well."""
    errors: Counter[str] = field(default_factory=Counter)
    """Rows by kind of error."""

    def add(self, counts: Mapping[str, Any]) -> None:
        """Add a part of this try."""
        for name in _numbers(self):
            setattr(self, name, getattr(self, name) + int(counts.get(name, 0)))
        self.errors.update(counts.get("errors", {}))

    def add_finished(self, counts: Mapping[str, Any]) -> None:
        """Add a part that an earlier try had finished."""
        kept = {name: value for name, value in counts.items() if name not in self.spent}
        self.add({**kept, "skipped": counts.get("rows", 0)})

    def to_summary(self) -> dict[str, Any]:
        """As it stands in a part's footer and in manifests."""
        return {name: getattr(self, name) for name in _numbers(self)} | {"errors": dict(self.errors.most_common())}

    def figures(self) -> list[str]:
        """What a progress line says besides rows and speed."""
        return []


def _numbers(tally: Tally) -> list[str]:
    return [each.name for each in fields(tally) if each.name != "errors"]


class Progress:
    """Says how far a job has come. ``total`` is the rows of this shard, where they are known."""

    def __init__(self, log: logging.Logger, tally: Tally, total: int | None) -> None:
        self._log = log
        self._tally = tally
        self._total = total
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the job began."""
        return time.monotonic() - self._started

    async def report(self) -> None:
        """Log a line every few seconds until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            self._log.info("%s", progress_line(self._tally, self._total, self.seconds))


def progress_line(tally: Tally, total: int | None, seconds: float) -> str:
    """``4,250/10,003 rows (42%) · 812 rows/s · reused 1,003 · $0.1234 · 7 s left``."""
    worked = tally.rows - tally.skipped
    speed = worked / seconds if seconds > 0 else 0.0
    rows = f"{tally.rows:,}" if total is None else f"{tally.rows:,}/{total:,}"
    share = "" if total is None else f" ({tally.rows * 100 // max(total, 1)}%)"
    left = [f"{_duration((total - tally.rows) / speed)} left"] if speed and total is not None else []
    return " · ".join([f"{rows} rows{share}", f"{speed:,.0f} rows/s", *tally.figures(), *left])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


_PASSING = frozenset(
    {
        "rate_limited",
        "timeout",
        "conflict",
        "server_error",
        "connection_refused",
        "connection_lost",
        "malformed",
        "unexplained",
        "certificate",
        "unknown_host",
        "circuit_open",
        "deadline",
    }
)
"""Kinds of errors for which a retry may help."""


class Outcome(Protocol):
    """What came of the rows of a job."""

    @property
    def sink(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def error(self) -> int:
        """Rows that ended with an error."""
        ...

    @property
    def errors(self) -> Mapping[str, int]:
        """Rows by kind of error."""
        ...


def check_error_rate(outcome: Outcome, limit: float, *, column: str = "error") -> None:
    """Raise where a greater share of rows ended with an error than ``limit``; ``column`` is the sink's that says why.

    Where most of them failed for reasons that may pass, such as an outage, it is a ``TransientError``, for which
    Airflow retries the task: finished parts and answers are kept. Otherwise it is a ``PermanentError``: asking again
    for rows that a vendor will never accept costs.
    """
    if not outcome.rows or outcome.error / outcome.rows <= limit:
        return
    counted = sorted(outcome.errors.items(), key=lambda item: -item[1])
    kinds = ", ".join(f"{kind} {count}" for kind, count in counted)
    passing = sum(count for kind, count in counted if kind in _PASSING)
    failure = TransientError if 2 * passing >= outcome.error else PermanentError
    raise failure(
        f"{outcome.error} of {outcome.rows} rows ended with an error, more than max_error_rate {limit:g} allows "
        f"({kinds or 'of unknown kind'}); the rows and their errors, in column {column}, are in {outcome.sink}"
    )
