"""Progress of a job in the task's log, every few seconds."""

from __future__ import annotations

import asyncio
import logging
import time

from airflow_ai_provider.gateway.results import Tally
from airflow_ai_provider.ledger.money import usd_from_nano

EVERY_SECONDS = 5.0


class Progress:
    """Says how far a job has come. ``total`` is the rows of this shard."""

    def __init__(self, log: logging.Logger, tally: Tally, total: int) -> None:
        self._log = log
        self._tally = tally
        self._total = total
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    async def report(self) -> None:
        """Log a line every few seconds until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            self._log.info("%s", progress_line(self._tally, self._total, self.seconds))


def progress_line(tally: Tally, total: int, seconds: float) -> str:
    """``4,250/10,003 rows (42%) · 812 rows/s · reused 1,003 · $0.1234 · 7 s left``."""
    worked = tally.rows - tally.skipped
    speed = worked / seconds if seconds > 0 else 0.0
    parts = [
        f"{tally.rows:,}/{total:,} rows ({tally.rows * 100 // max(total, 1)}%)",
        f"{speed:,.0f} rows/s",
        f"reused {tally.reused:,}",
        f"${usd_from_nano(tally.cost_nano):.4f}",
    ]
    problems = {"rejected": tally.rejected, "over budget": tally.over_budget, "errors": tally.error}
    parts += [f"{name} {count:,}" for name, count in problems.items() if count]
    if speed:
        parts.append(f"{_duration((total - tally.rows) / speed)} left")
    return " · ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
