"""One governed pass on the embedded defaults, with the offline model: speed and memory.

1,000 rows, 10,000 rows, and the 10,000 again with everything reused, each in a process of its own, imports included:
what a task of this size costs all told. ``bench_peers.py`` compares calls, ``bench_reused.py`` large reruns.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from lab import Client, keep_to_core, parquet, policy

_PASSES = (("first", 1_000, "a"), ("first", 10_000, "b"), ("reused", 10_000, "c"))


def main() -> None:
    keep_to_core(1)
    client = Client("governed", "governed.py", "run")
    print(f"{'pass':<10}{'rows':>8}{'rows/s':>9}{'CPU ms/row':>12}{'peak MB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        offline = policy(home / "policy.yaml", model="offline/extractive", concurrency=64)
        for name, rows, run in _PASSES:
            source = parquet(home / f"{rows}.parquet", 0, rows)
            files = {"source": str(source), "sink": f"{home}/{run}", "policy": str(offline)}
            done = client.run(**files, run=run, home=f"{home}/home-{rows}")
            assert (done.lost, done.reused) == (0, rows if name == "reused" else 0), done
            print(f"{name:<10}{rows:>8,}{done.rate:>9,.0f}{done.cpu_ms:>12.3f}{done.peak_mb:>9.0f}")


if __name__ == "__main__":
    main()
