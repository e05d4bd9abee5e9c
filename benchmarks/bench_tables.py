"""The cost tables over millions of requests: the daily rollup beside the requests it was made of.

Fills a PostgreSQL of its own with rows (1,000,000, or the number given) of 90 days, 20 teams, 100 DAGs and 4 models,
makes the rollup, and asks the question of ``include/sql/cost_by_team_and_day.sql`` for the last 30 days both ways.
Both answers must be equal. Prints medians of wall time at the client, and their ratio. PostgreSQL runs with 64 MB of
shared buffers; whatever the system caches of its files is warm for both.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.postgres import postgres_server

from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.maintenance.partitions import make_months, midnight, months_from
from airflow_ai_provider.core.ledger.maintenance.upkeep import check_day

_DAYS = 90
_ASKED_DAYS = 30
_CHUNK = 500_000
_END = datetime(2026, 6, 1, tzinfo=UTC)
_START = _END - timedelta(days=_DAYS)
_FROM = (_END - timedelta(days=_ASKED_DAYS)).date()

_ROWS = """
INSERT INTO llm_requests (attempt_id, created_at, request_id, team_id, dag_id, run_id, task_id, map_index, try_number,
    row_key, route, tier, deployment, model, provider, price_version, status, input_tokens, output_tokens,
    cached_input_tokens, cost_nano, saved_nano, latency_ms, error_type, prompt_bytes, baseline_nano)
SELECT lpad(to_hex(n), 32, '0'), CAST(:start AS timestamptz) + n * make_interval(secs => CAST(:step AS float8)),
    lpad(to_hex(n), 32, '0'), 'team_' || n % 20, 'dag_' || n % 100, 'run_' || n / 10000, 'answer', -1, 1,
    'row_' || n, 'route_' || n % 20, CASE WHEN n % 3 = 0 THEN 'complex' ELSE 'simple' END, 'deployment_' || n % 4,
    'vendor/model_' || n / 7 % 4, 'vendor', 'litellm-1', s.status,
    CASE WHEN s.status = 'ok' THEN 400 + n % 300 ELSE 0 END, CASE WHEN s.status = 'ok' THEN 50 + n % 90 ELSE 0 END, 0,
    CASE WHEN s.status IN ('ok', 'unknown') THEN 100000 + n % 70000 ELSE 0 END,
    CASE WHEN s.status = 'reused' THEN 120000 ELSE 0 END, 200 + n % 1800, NULL, 1600,
    CASE WHEN s.status = 'ok' THEN 900000 ELSE 0 END
FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n,
    LATERAL (SELECT CASE WHEN n % 1000 = 0 THEN 'unknown' WHEN n % 100 = 1 THEN 'error'
                    WHEN n % 4 = 2 THEN 'reused' ELSE 'ok' END AS status) AS s
"""
_ROLLUP = """
INSERT INTO llm_cost_daily (day, team_id, dag_id, model, requests, reused, errors, unknown, input_tokens,
    output_tokens, cost_nano, saved_nano, baseline_nano)
SELECT CAST(created_at AT TIME ZONE 'UTC' AS date), team_id, dag_id, model, count(*),
    count(*) FILTER (WHERE status = 'reused'), count(*) FILTER (WHERE status = 'error'),
    count(*) FILTER (WHERE status = 'unknown'), sum(input_tokens), sum(output_tokens), sum(cost_nano),
    sum(saved_nano), sum(baseline_nano)
FROM llm_requests GROUP BY 1, 2, 3, 4
"""
_VIEW = """
SELECT day, team_id, requests, cost_usd, saved_usd, round(100.0 * reuse_rate, 1) AS reused_percent
FROM team_daily_cost WHERE day >= :since ORDER BY day, team_id
"""
_RAW = """
SELECT CAST(created_at AT TIME ZONE 'UTC' AS date) AS day, team_id, count(*) AS requests, sum(cost_usd) AS cost_usd,
    sum(saved_usd) AS saved_usd,
    round(100.0 * count(*) FILTER (WHERE status = 'reused') / count(*) FILTER (WHERE status <> 'error'), 1)
FROM llm_requests WHERE created_at >= CAST(:since AS timestamptz) GROUP BY 1, 2 ORDER BY 1, 2
"""


def main(rows: int) -> None:
    with postgres_server(fsync=False) as server, Ledger.open(server.create_database("bench")) as ledger:
        _fill(ledger, rows)
        day = (_END - timedelta(days=1)).date()
        with ledger.read() as conn:
            view, raw = _ask(conn, _VIEW, _FROM), _ask(conn, _RAW, midnight(_FROM))
            same = [tuple(row) for row in view()] == [tuple(row) for row in raw()]
            asked, gone_through = len(view()), _count(conn)
            fast, slow = _median(view, 30), _median(raw, 5)
            drift = check_day(conn, day)
            check = _median(lambda: check_day(conn, day), 5)
            size = conn.execute(text("SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits")).scalar_one()
    print(f"{rows:,} requests of {_DAYS} days, {size / 2**30:.1f} GiB; the last {_ASKED_DAYS} days: {asked} rows")
    print(f"{'cost by team and day from':<28}{'rows read':>12}{'median ms':>11}")
    for name, read, seconds in (("team_daily_cost", gone_through[0], fast), ("llm_requests", gone_through[1], slow)):
        print(f"{name:<28}{read:>12,}{seconds * 1000:>11.1f}")
    print(f"{'requests / rollup':<40}{slow / fast:>11.0f}")
    print(f"{'ledger check, one day':<40}{check * 1000:>11.1f}")
    if not same or drift:
        sys.exit("the rollup and the requests differ")


def _fill(ledger: Ledger, rows: int) -> None:
    with ledger.write() as conn:
        make_months(conn, months_from(_START, 5))
    step = timedelta(days=_DAYS).total_seconds() / rows
    for first in range(0, rows, _CHUNK):
        last = min(first + _CHUNK, rows) - 1
        with ledger.write() as conn:
            conn.execute(text(_ROWS), {"first": first, "last": last, "start": _START, "step": step})
        print(f"\r{last + 1:,} rows", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    with ledger.write() as conn:
        conn.execute(text(_ROLLUP))
    with ledger.statements() as conn:
        conn.execute(text("VACUUM ANALYZE llm_requests"))
        conn.execute(text("VACUUM ANALYZE llm_cost_daily"))


def _ask(conn: Connection, query: str, since: Any) -> Callable[[], list[Any]]:
    return lambda: list(conn.execute(text(query), {"since": since}))


def _count(conn: Connection) -> tuple[int, int]:
    daily = conn.execute(text("SELECT count(*) FROM llm_cost_daily WHERE day >= :day"), {"day": _FROM}).scalar_one()
    since = {"since": midnight(_FROM)}
    return daily, conn.execute(text("SELECT count(*) FROM llm_requests WHERE created_at >= :since"), since).scalar_one()


def _median(work: Callable[[], Any], times: int) -> float:
    return statistics.median(_timed(work, times))


def _timed(work: Callable[[], Any], times: int) -> Iterator[float]:
    for _ in range(times):
        started = time.perf_counter()
        work()
        yield time.perf_counter() - started


if __name__ == "__main__":
    main(int(sys.argv[1].replace("_", "")) if len(sys.argv) > 1 else 1_000_000)
