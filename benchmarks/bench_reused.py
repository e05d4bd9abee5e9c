"""A rerun in which everything is reused, from Parquet to Parquet: rows a second, CPU a row, peak memory.

The first pass, with the offline model, fills the store with 10,000 answers; then other runs of the same team find every
answer there: a tenth of the rows, to compare the memory, and all of them, of which many ask the same. The rows are
inquiries of some 60 characters, and then of 450 with an e-mail address each. Ledger and store are PostgreSQL and Redis,
then the embedded SQLite. Each run is a process of its own, which answers 100 other rows before the clock starts.

The peer is curator, which keeps whole data sets: the same rows again are its old file handed out, and one row more asks
for all of them anew. Its first pass takes minutes, so its rows are fewer.

    python benchmarks/bench_reused.py [ROWS]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import Client, Figures, environment, keep_to_core, long_text, parquet, policy, servers, short_text

from airflow_ai_provider.testing.vendor import VendorProcess

_ROWS = 100_000
_DISTINCT = 10_000
_PEER_ROWS = 5_000
_OURS = Client("governed", "governed.py", "run")


def main(rows: int) -> None:
    keep_to_core(1)
    print(f"{'':<46}{'rows':>10}{'asked again':>12}{'CPU ms/row':>11}{'rows/s':>9}{'peak MB':>9}")
    with tempfile.TemporaryDirectory() as folder, servers() as addresses:
        home = Path(folder)
        for kind, text in (("60 characters", short_text), ("450, an e-mail", long_text)):
            sources = _sources(home / kind.partition(" ")[0], rows, text)
            for name, parts in (("PostgreSQL and Redis", addresses), ("SQLite", {})):
                place = home / f"{kind} {name}".replace(" ", "-")
                _ours(place, f"{name}, {kind}", parts, sources, rows)
        _peer(home)


def _sources(folder: Path, rows: int, text: Callable[[int], str]) -> dict[str, Path]:
    folder.mkdir()

    def asked(number: int) -> str:
        return text(number % _DISTINCT if number < rows else _DISTINCT)  # the one row more asks something new

    counts = {"first": _DISTINCT, "tenth": rows // 10, "whole": rows, "more": rows + 1}
    made = {name: parquet(folder / f"{name}.parquet", 0, count, asked) for name, count in counts.items()}
    return made | {"warm": parquet(folder / "warm.parquet", 0, 100, lambda number: text(10**7 + number))}


def _ours(home: Path, name: str, parts: dict[str, str], sources: dict[str, Path], rows: int) -> None:
    home.mkdir()
    model = policy(home / "policy.yaml", model="offline/extractive", concurrency=64)
    keys = (home.parent if parts else home) / "home"  # one ledger, one keyring
    job: dict[str, Any] = {"policy": str(model), "home": str(keys), "warm_up": str(sources["warm"]), **parts}

    def send(run: str) -> Figures:
        return _OURS.run(**job, source=str(sources[run]), sink=str(home / run), run=f"{name} {run}")

    _line(f"{name}, first", send("first"))
    tenth, whole = send("tenth"), send("whole")
    assert (tenth.reused, whole.reused) == (rows // 10, rows), "everything is reused"
    _line(f"{name}, a tenth", tenth)
    _line(f"{name}, again", whole)
    _line(f"{name}, one row more", send("more"))
    print(f"{f'  peak memory of {rows:,} ÷ {rows // 10:,} rows':<78}{whole.peak_mb / tenth.peak_mb:>19.2f}")


def _peer(home: Path) -> None:
    peer = Client("curator", "peers.py", "curator_file", environment("curator"))
    folder = home / "curator"
    with VendorProcess() as vendor:
        for name, count in (("first pass", _PEER_ROWS), ("again", _PEER_ROWS), ("one row more", _PEER_ROWS + 1)):
            before = vendor.stats().billed
            source = parquet(home / "peer.parquet", 0, count)
            files = {"source": str(source), "sink": str(home / "peer-out.parquet"), "folder": str(folder)}
            done = peer.run(**files, base_url=vendor.base_url, rows=count, concurrency=64)
            _line(f"{done.version}, {name}", done, asked=vendor.stats().billed - before)


def _line(name: str, done: Figures, asked: int | None = None) -> None:
    asked = done.rows - done.reused if asked is None else asked
    print(
        f"{name:<46}{done.rows:>10,}{asked:>12,}{done.cpu_ms:>11.3f}{done.rate:>9,.0f}{done.peak_mb:>9.0f}", flush=True
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else _ROWS)
