"""Our own side of the benchmarks: one job in a process of its own. Run by ``lab.Client``."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from lab import Figures, Stopwatch, answer

from airflow_ai_provider.core.job import Caller, MapJob
from airflow_ai_provider.core.jobs.llm_map import run_map
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.core.settings import Settings


def run(
    source: str,
    sink: str,
    run: str,
    policy: str,
    home: str,
    ledger_url: str | None = None,
    cache_url: str | None = None,
    warm_up: str | None = None,
    shard: tuple[int, int] = (0, 1),
    batch_rows: int = 250,
    start_at: float = 0.0,
) -> Figures:
    """Answer the rows of a Parquet file into Parquet. ``warm_up`` is another source, sent before the clock starts.

    ``start_at``, in seconds since the epoch, lets processes that were started together begin together.
    """
    settings = Settings(home=Path(home), policy_path=Path(policy), ledger_url=ledger_url, cache_url=cache_url)
    log = logging.getLogger("bench")

    def send(source: str, sink: str, run: str, shard: Shard) -> tuple[int, int, int]:
        job = MapJob(source, sink, "{{ text }}", "id", "bench", "bench", shard=shard, batch_rows=batch_rows)
        map_index = shard.index if shard.count > 1 else -1  # shards are mapped tasks
        done = run_map(job, Caller("bench", run, "answer", map_index), settings, log=log)
        return done.rows, done.ok, done.reused

    if warm_up:
        send(warm_up, f"{sink}-warm", f"{run}-warm", Shard(0, 1))
    time.sleep(max(0.0, start_at - time.time()))
    watch = Stopwatch()
    rows, ok, reused = send(source, sink, run, Shard(*shard))
    return watch.figures(rows, lost=rows - ok, reused=reused)


if __name__ == "__main__":
    answer({"run": run})
