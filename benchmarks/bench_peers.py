"""The call path beside the clients that users would write with instead, on one double, in one run.

Prints a table a scenario: CPU of the client's process per row, rows a second, and both beside bare litellm and the
openai SDK. Every client sends the same distinct rows of 450 characters at the same concurrency; the double's answers
have about 90. The governed rows are masked, looked up, held, paced, sent, settled on PostgreSQL, kept in Redis and
audited, from Parquet to Parquet. Each figure is the median of three runs, which take turns.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import Client, Figures, environment, keep_to_core, knows_adapters, medians, parquet, policy, servers

from airflow_ai_provider.testing.behaviour import Latency
from airflow_ai_provider.testing.vendor import VendorProcess

_ROUNDS = 3
_BASE = "litellm.acompletion"
_SDK = "openai SDK, aiohttp"


def main(scenarios: Sequence[str]) -> None:
    keep_to_core(1)
    with tempfile.TemporaryDirectory() as folder, servers() as addresses:
        lab = _Lab(Path(folder), addresses)
        if "zero" in scenarios:
            lab.compare("No latency", latency=0.0, rows=2_000, concurrency=64)
        if "latency" in scenarios:
            lab.compare("0.3 s latency", latency=0.3, rows=3_000, concurrency=200)


class _Lab:
    """Peers and our own client on one set of servers."""

    def __init__(self, home: Path, addresses: dict[str, str]) -> None:
        self._home = home
        self._addresses = addresses
        self._next = 0
        sdk = environment("openai")
        self._peers = [
            Client("raw aiohttp", "peers.py", "raw_aiohttp"),
            Client("raw aiohttp, uvloop", "peers.py", "raw_aiohttp", options=(("loop", "uvloop"),)),
            Client(_SDK, "peers.py", "openai_sdk", sdk),
            Client(f"{_SDK}, uvloop", "peers.py", "openai_sdk", sdk, options=(("loop", "uvloop"),)),
            Client(_BASE, "peers.py", "litellm"),
        ]

    def compare(self, title: str, *, latency: float, rows: int, concurrency: int) -> None:
        """Every client in turn, three times over, on rows that none has sent before."""
        runs: dict[str, list[Figures]] = {}
        with VendorProcess(latency=Latency(latency)) as vendor:
            for _ in range(_ROUNDS):
                first = self._take(rows)
                for peer in self._peers:
                    sent = peer.run(base_url=vendor.base_url, first=first, rows=rows, concurrency=concurrency)
                    runs.setdefault(peer.name, []).append(sent)
                for adapter in _adapters():
                    for name, done in self._governed(adapter, vendor.base_url, rows, concurrency).items():
                        runs.setdefault(name, []).append(done)
        _print(f"{title}, {rows:,} rows, concurrency {concurrency}", runs, concurrency / latency if latency else None)

    def _governed(self, adapter: str, base_url: str, rows: int, concurrency: int) -> dict[str, Figures]:
        """A first pass, and one that reuses every row. The rows are its own: all adapters share the store."""
        place, first = Path(tempfile.mkdtemp(dir=self._home)), self._take(rows)
        named = adapter if knows_adapters() else None
        limits = {"rpm": 10_000_000, "concurrency": concurrency}
        common: dict[str, Any] = {
            "policy": str(policy(place / "policy.yaml", adapter=named, api_base=base_url, **limits)),
            "home": str(place / "home"),
            "source": str(parquet(place / "rows.parquet", first, rows)),
            "warm_up": str(parquet(place / "warm.parquet", self._take(100), 100)),
            **self._addresses,
        }
        name = f"governed, {adapter}"
        client = Client(name, "governed.py", "run")
        again = Client(f"{name}, all reused", "governed.py", "run", options=(("all_reused", True),))
        common_run = f"{adapter}-{first}"
        sent = {name: client.run(sink=str(place / "out"), run=common_run, **common)}
        return sent | {again.name: again.run(sink=str(place / "again"), run=f"{common_run}-again", **common)}

    def _take(self, rows: int) -> int:
        """The first of so many rows, none of which was sent before."""
        first, self._next = self._next, self._next + rows + 1_000
        return first


def _adapters() -> list[str]:
    return ["openai_compatible", "litellm"] if knows_adapters() else ["litellm"]


def _print(title: str, runs: dict[str, list[Figures]], ideal: float | None) -> None:
    done = {name: medians(figures) for name, figures in runs.items()}
    of_ideal = "of ideal" if ideal else ""
    print(f"\n{title}")
    print(f"{'client':<42}{'CPU ms/row':>11}{'rows/s':>8}{'÷ litellm':>11}{'÷ SDK':>8}{of_ideal:>10}  version")
    for name, one in done.items():
        beside = [one.cpu_ms / done[base].cpu_ms for base in (_BASE, _SDK)]
        share = f"{one.rate / ideal:>10.0%}" if ideal else ""
        print(
            f"{name:<42}{one.cpu_ms:>11.3f}{one.rate:>8,.0f}{beside[0]:>11.2f}{beside[1]:>8.2f}{share:>10}"
            f"  {one.version}{f'  {one.lost} lost' if one.lost else ''}"
        )


if __name__ == "__main__":
    main(sys.argv[1:] or ["zero", "latency"])
