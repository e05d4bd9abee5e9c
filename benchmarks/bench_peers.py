"""The call path beside the clients that users would write with instead, on one double, in one run.

``zero`` and ``latency``: CPU of the client's process per row, rows a second, and both beside bare litellm and the
openai SDK. Every client sends the same distinct rows of 450 characters, in the same number at once; the double's
answers have about 90. The governed rows are masked, looked up, held, paced, sent, settled on PostgreSQL, kept in Redis
and audited, from Parquet to Parquet. Figures are medians of three runs, which take turns. The peers run on asyncio's
own loop; on uvloop theirs are the same within a tenth.

``quota``: the double lets 100 requests in within any second. What share of that a client uses while it runs, how often
it is refused, and what becomes of the rows. Peers have their default retries. ``busy`` is the same beside a busy loop
on every core. There the double runs at a raised priority, as a vendor is not slowed by its clients' machines, and its
lag says how far that held: requests that it sees late, it sees together.

    python benchmarks/bench_peers.py [zero] [latency] [quota | quota=ROWS] [busy | busy=ROWS]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from lab import Client, Figures, environment, keep_to_core, knows_adapters, medians, parquet, policy, servers

from airflow_ai_provider.testing.behaviour import Latency, Limits
from airflow_ai_provider.testing.vendor import Vendor, VendorProcess

_ROUNDS = 3
_BASE = "litellm.acompletion"
_SDK = "openai SDK over aiohttp"
_SDK_PYTHON = environment("openai")
_PEERS = [
    Client("raw aiohttp", "peers.py", "raw_aiohttp"),
    Client(_SDK, "peers.py", "openai_sdk", _SDK_PYTHON),
    Client(_BASE, "peers.py", "litellm"),
    Client("curator, openai backend", "peers.py", "curator", environment("curator")),
    Client("common.ai LLMOperator, dag.test", "peer_dag.py", "common_ai", rows=20, rounds=1),
]
_RETRYING = [
    Client(f"{_BASE}, its retries", "peers.py", "litellm", options=(("retries", True),)),
    Client(f"{_SDK}, its retries", "peers.py", "openai_sdk", _SDK_PYTHON, options=(("retries", True),)),
]
_QUOTA = 100
_QUOTA_ROWS = 1_000
_PRIORITY = -5
_LOOP = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


def main(scenarios: Sequence[str]) -> None:
    keep_to_core(1)
    with tempfile.TemporaryDirectory() as folder, servers() as addresses:
        lab = _Lab(Path(folder), addresses)
        if "zero" in scenarios:
            compare(lab, "No latency", latency=0.0, rows=2_000, concurrency=64)
        if "latency" in scenarios:
            compare(lab, "0.2 to 0.4 s latency", latency=0.3, rows=4_000, concurrency=200)
        for scenario in scenarios:
            name, _, rows = scenario.partition("=")
            if name in ("quota", "busy"):
                within_quota(lab, int(rows or _QUOTA_ROWS), busy=name == "busy")


class _Lab:
    """Rows that nobody has sent yet, and our own client on one set of servers."""

    def __init__(self, home: Path, addresses: dict[str, str]) -> None:
        self._home = home
        self._addresses = addresses
        self._next = 0

    def take(self, rows: int) -> int:
        """The first of so many rows, and of some more for a warm-up, none of which was sent before."""
        first, self._next = self._next, self._next + rows + 1_000
        return first

    def job(self, adapter: str, rows: int, **deployment: Any) -> dict[str, Any]:
        """A job over new rows, as the arguments of ``governed.run``. It has no warm-up yet."""
        place, first = Path(tempfile.mkdtemp(dir=self._home)), self.take(rows)
        named = {"adapter": adapter} if knows_adapters() else {}
        return {
            "policy": str(policy(place / "policy.yaml", **named, **deployment)),
            "home": str(self._home / "home"),  # one ledger, one keyring
            "source": str(parquet(place / "rows.parquet", first, rows)),
            "sink": str(place / "out"),
            "run": f"{adapter}-{first}",
            **self._addresses,
        }

    def warm_up(self) -> str:
        return str(parquet(Path(tempfile.mkdtemp(dir=self._home)) / "rows.parquet", self.take(100), 100))


def compare(lab: _Lab, title: str, *, latency: float, rows: int, concurrency: int) -> None:
    """Every client in turn, three times over, on rows that none has sent before."""
    runs: dict[str, list[Figures]] = {}
    with VendorProcess(latency=Latency(latency, latency / 3)) as vendor:
        for number in range(_ROUNDS):
            first = lab.take(rows)
            for peer in (peer for peer in _PEERS if number < peer.rounds):
                given = {"base_url": vendor.base_url, "first": first, "rows": peer.rows or rows}
                runs.setdefault(peer.name, []).append(peer.run(**given, concurrency=concurrency))
            for adapter in _adapters():
                for name, done in _first_and_again(lab, adapter, vendor, rows, concurrency).items():
                    runs.setdefault(name, []).append(done)
    _print(f"{title}, {rows:,} rows, {concurrency} at once", runs, concurrency / latency if latency else None)


def _first_and_again(lab: _Lab, adapter: str, vendor: Vendor, rows: int, concurrency: int) -> dict[str, Figures]:
    """A first pass, and another run that reuses every row."""
    job = lab.job(adapter, rows, api_base=vendor.base_url, rpm=10_000_000, concurrency=concurrency)
    job["warm_up"] = lab.warm_up()
    client = Client(f"governed, {adapter}", "governed.py", "run")
    first = client.run(**job)
    again = client.run(**job | {"sink": f"{job['sink']}-again", "run": f"{job['run']}-again"})
    assert (first.reused, again.reused) == (0, rows), "the first pass reuses nothing and the second all"
    return {client.name: first, f"{client.name}, reused": again}


def _adapters() -> list[str]:
    return ["openai_compatible", "litellm"] if knows_adapters() else ["litellm"]


def _print(title: str, runs: dict[str, list[Figures]], ideal: float | None) -> None:
    done = {name: medians(figures) for name, figures in runs.items()}
    print(f"\n{title}")
    print(f"{'client':<38}{'CPU ms/row':>11}{'÷ litellm':>10}{'÷ SDK':>7}{'rows/s':>9}{'ideal':>7}  notes")
    for name, one in done.items():
        beside = [one.cpu_ms / done[base].cpu_ms for base in (_BASE, _SDK)]
        share = f"{one.rate / ideal:.0%}" if ideal and "reused" not in name else ""
        notes = [one.version, f"{one.rows:,} rows" if one.rows != done[_BASE].rows else ""]
        notes.append(f"{one.lost} lost" if one.lost else "")
        print(
            f"{name:<38}{one.cpu_ms:>11.3f}{beside[0]:>10.2f}{beside[1]:>7.2f}{one.rate:>9,.0f}{share:>7}"
            f"  {', '.join(filter(None, notes))}"
        )


def within_quota(lab: _Lab, rows: int, *, busy: bool) -> None:
    limits = Limits(requests_per_minute=_QUOTA, window_s=1.0)
    sends: dict[str, Callable[[Vendor], int]] = {peer.name: partial(_retrying, lab, rows, peer) for peer in _RETRYING}
    adapter = _adapters()[0]
    for workers, named in ((1, "1 process"), (4, "4 processes")):
        sends[f"governed, {adapter}, {named}"] = partial(_paced, lab, rows, adapter, workers)
    where = ", beside a busy loop on every core" if busy else ""
    print(f"\nA quota of {_QUOTA} requests a second, {rows:,} rows, 0.2 to 0.4 s latency{where}")
    print(f"{'client':<42}{'of the quota':>13}{'refused':>9}{'':>7}{'rows lost':>10}{'lag p99':>9}{'most':>7} ms")
    for name, send in sends.items():
        with (
            VendorProcess(limits=limits, latency=Latency(0.3, 0.1)) as vendor,
            _busy_loops() if busy else nullcontext(),
        ):
            if busy:
                vendor.prioritize(_PRIORITY)
            lost = send(vendor)
            stats = vendor.stats()
            refused = stats.outcomes.get("over_limit", 0)
            print(
                f"{name:<42}{_share(vendor):>13.1%}{refused:>9,}{refused / stats.requests:>7.2%}{lost / rows:>10.1%}"
                f"{1000 * stats.lag_p99_s:>9.0f}{1000 * stats.lag_max_s:>7.0f}",
                flush=True,
            )


@contextmanager
def _busy_loops() -> Iterator[None]:
    """A process on every core that never rests."""
    cores = range(os.cpu_count() or 1)
    loops = [subprocess.Popen([sys.executable, "-c", _LOOP, str(core)]) for core in cores]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _share(vendor: Vendor) -> float:
    """What was let in over what could have been: within any second 100, so one second's worth more than the time."""
    times = [line.at for line in vendor.invoice()]
    return len(times) / (_QUOTA * (max(times) - min(times) + 1))


def _retrying(lab: _Lab, rows: int, peer: Client, vendor: Vendor) -> int:
    first = lab.take(rows)
    return peer.run(base_url=vendor.base_url, first=first, rows=rows, concurrency=200, warm_up=0).lost


def _paced(lab: _Lab, rows: int, adapter: str, workers: int, vendor: Vendor) -> int:
    """As many processes as ``workers``, each with its share of the rows, which begin together once all have started."""
    job = lab.job(adapter, rows, api_base=vendor.base_url, rpm=60 * _QUOTA, concurrency=200)
    client = Client("governed", "governed.py", "run")
    batch_rows = min(250, rows // workers)
    start_at = time.time() + 5 + 5 * workers  # what imports take
    with ThreadPoolExecutor(workers) as pool:
        runs = [
            pool.submit(client.run, **job, shard=(n, workers), batch_rows=batch_rows, start_at=start_at)
            for n in range(workers)
        ]
        return sum(run.result().lost for run in runs)


if __name__ == "__main__":
    main(sys.argv[1:] or ["zero", "latency", "quota"])
