"""The embedded index over 1,000,000 events: how long auditors' questions take, beside reading the archive for them.

Prints three tables: filling the index, each question (best of three, with the events returned and decoded), and the
same question put to the archive without an index: every segment unpacked, every line that holds the name parsed.
"""

from __future__ import annotations

import gzip
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from airflow_ai_provider.core.audit.sinks.search import Query
from airflow_ai_provider.core.audit.sinks.sqlite_index import SqliteIndex
from airflow_ai_provider.core.audit.trail.events import build_event, format_time

EVENTS = 1_000_000
DAYS = 90
USERS = 200
START = datetime(2025, 1, 1, tzinfo=UTC)
END = START + timedelta(days=DAYS)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    with tempfile.TemporaryDirectory() as folder:
        archive, path = Path(folder) / "segment.jsonl.gz", Path(folder) / "search.db"
        with SqliteIndex(path) as index:
            _fill(index, archive, path, count)
            _ask(index, archive)


def _fill(index: SqliteIndex, archive: Path, path: Path, count: int) -> None:
    spent = 0.0
    with gzip.open(archive, "wb", compresslevel=6) as segment:
        events = _events(count)
        while chunk := list(islice(events, 5000)):
            started = time.process_time()
            index.add(chunk)
            spent += time.process_time() - started
            segment.write(b"".join(orjson.dumps(event) + b"\n" for event in chunk))
    size = path.stat().st_size + Path(f"{path}-wal").stat().st_size
    print(f"{'events':>12}{'events/CPU s':>14}{'bytes/event':>13}{'archive':>10}")
    print(f"{count:>12,}{count / spent:>14,.0f}{size / count:>13,.0f}{archive.stat().st_size / count:>10,.0f}")


def _ask(index: SqliteIndex, archive: Path) -> None:
    month = END - timedelta(days=30)
    questions = {
        "a user's 30 days": Query(user="user-7", since=month, limit=100_000),
        "the same, newest 100": Query(user="user-7", since=month),
        "a user's failures, 30 days": Query(user="user-7", outcome="failure", since=month, limit=100_000),
        "an action, one day": Query(action="policy.loaded", since=END - timedelta(days=1), limit=100_000),
        "one DAG run": Query(dag_id="dag-3", run_id="run-3-1", limit=100_000),
        "one request": Query(request_id=f"{4242:032x}"),
        "newest 100 of all": Query(),
    }
    print(f"\n{'question':<30}{'found':>8}{'ms':>9}")
    for name, query in questions.items():
        found, spent = _best(lambda query=query: index.search(query))
        print(f"{name:<30}{len(found):>8,}{spent * 1000:>9.1f}")
    found, indexed = _best(lambda: index.actions_of("user-7", days=30, now=END))
    scanned, spent = _best(lambda: _scan(archive, "user-7", month), tries=1)
    assert len(found) == len(scanned)
    print(f"\n{'a user_s 30 days, without index'.replace('_', chr(39)):<34}{spent * 1000:>10,.0f} ms")
    print(f"{'without index / with index':<34}{spent / indexed:>10,.0f}")


def _scan(archive: Path, user: str, since: datetime) -> list[dict[str, Any]]:
    """What zcat and grep would do."""
    needle, first = f'"user.name":"{user}"'.encode(), format_time(since)
    with gzip.open(archive) as lines:
        found = [orjson.loads(line) for line in lines if needle in line]
    return [event for event in found if event["@timestamp"] >= first]


def _best(ask: Callable[[], list[Any]], tries: int = 3) -> tuple[list[Any], float]:
    """The answer, and the seconds of the fastest try: an interactive question waits for the clock, not the CPU."""
    times = []
    for _ in range(tries):
        started = time.perf_counter()
        answer = ask()
        times.append(time.perf_counter() - started)
    return answer, min(times)


def _events(count: int) -> Iterator[dict[str, Any]]:
    rng, step = random.Random(1), timedelta(days=DAYS) / count
    for number in range(count):
        dag = rng.randrange(40)
        fields: dict[str, Any] = {
            "user": f"user-{rng.randrange(USERS)}",
            "dag_id": f"dag-{dag}",
            "run_id": f"run-{dag}-{number * 200 // count}",
            "task_id": "answer",
            "try_number": 1,
        }
        action, outcome = "policy.loaded", "ok"
        if number % 50:
            action, outcome = "llm.call", "error" if rng.random() < 0.02 else "ok"
            fields |= {
                "request_id": f"{number:032x}",
                "attempt_id": f"{rng.getrandbits(128):032x}",
                "model": "openai/gpt-4o-mini",
                "input_tokens": rng.randrange(3000),
                "output_tokens": rng.randrange(400),
                "cost_nano": rng.randrange(500_000),
                "prompt_hash": f"{rng.getrandbits(128):032x}",
            }
        else:
            fields["policy_hash"] = f"{dag:064x}"
        at = format_time(START + number * step)
        yield build_event(action, outcome, f"{dag:012x}0123456789abcdef-{number + 1}", at, fields)


if __name__ == "__main__":
    main()
