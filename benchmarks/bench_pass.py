"""One governed pass: speed, memory, and its cost beside the bare client.

Prints two tables. The first runs the offline model over 1,000 and 10,000 rows, then again with everything reused, each
in a process of its own: rows/s of the pass and peak memory. The second sends 1,000 rows to a vendor double without
latency, governed through either adapter and bare (``litellm.acompletion`` under a semaphore, what a hand-rolled script
does), and prints the CPU of each over that of the bare client.
"""

from __future__ import annotations

import asyncio
import csv
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from airflow_ai_provider.testing.vendor import VendorProcess

_WORDS = "card transfer refund balance limit abroad fee pending cash machine app statement charge date account".split()
_CONTEXT = (
    "A new card arrives within five working days. You can freeze a card in the app at once. "
    "A transfer that is pending for more than two days is looked into by our team. Cash abroad costs 1.5%."
)
_PROMPT = f"<context>{_CONTEXT}</context>\n<question>{{{{ text }}}}</question>"
_PRICE = "{input_per_mtok: 0.15, output_per_mtok: 0.60}"
_CALLS = 1000
_CONCURRENCY = 64


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        _offline(home)
        _vendor(home)


def _offline(home: Path) -> None:
    policy = _policy(home / "offline.yaml", "offline/extractive", "")
    print(f"{'pass':<10}{'rows':>8}{'rows/s':>9}{'CPU ms/row':>12}{'peak MB':>9}")
    for name, rows, run in (("first", 1_000, "a"), ("first", 10_000, "b"), ("reused", 10_000, "c")):
        source = _rows(home / f"{rows}.csv", rows)
        done = _measured(home, source, policy, f"{home}/out-{run}", run, home / f"home-{rows}")
        print(f"{name:<10}{rows:>8,}{done['rate']:>9,.0f}{done['cpu_ms']:>12.3f}{done['peak_mb']:>9.0f}")


def _vendor(home: Path) -> None:
    source = _rows(home / "calls.csv", _CALLS)
    found = {}
    with VendorProcess() as vendor:
        for adapter in ("openai_compatible", "litellm"):
            more = f", api_base: '{vendor.base_url}', rpm: 10000000, adapter: {adapter}"
            policy = _policy(home / f"{adapter}.yaml", "openai/gpt-4o-mini", more)
            measured = _measured(home, source, policy, f"{home}/out-{adapter}", adapter, home / f"home-{adapter}")
            found[f"governed, through {adapter}"] = measured
        bare = found["litellm.acompletion, bare"] = _run("bare", source, vendor.base_url)
    print(f"\n{'client':<36}{'CPU ms/call':>12}{'÷ bare':>9}{'calls/s':>9}")
    for client, figures in found.items():
        ratio = figures["cpu_ms"] / bare["cpu_ms"]
        print(f"{client:<36}{figures['cpu_ms']:>12.2f}{ratio:>9.2f}{figures['rate']:>9,.0f}")


def _measured(home: Path, source: Path, policy: Path, sink: str, run: str, ai_home: Path) -> dict[str, float]:
    return _run("governed", source, str(policy), sink, run, str(ai_home))


def _run(mode: str, source: Path, *arguments: str) -> dict[str, float]:
    """One measurement in a process of its own, so that memory and imports are its own."""
    command = [sys.executable, __file__, mode, str(source), *arguments]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    measured: dict[str, float] = json.loads(answer.splitlines()[-1])
    return measured


def _governed(source: str, policy: str, sink: str, run: str, ai_home: str) -> dict[str, float]:
    from airflow_ai_provider.gateway.job import Caller, MapJob
    from airflow_ai_provider.gateway.run import run_map
    from airflow_ai_provider.gateway.settings import Settings

    if "litellm" in policy:
        _import_litellm()
    job = MapJob(source, sink, _PROMPT, "id", "bench", "bench")
    settings = Settings(home=Path(ai_home), policy_path=Path(policy))
    cpu = time.process_time()
    summary = run_map(job, Caller("bench", run, "answer"), settings, log=logging.getLogger("bench"))
    assert summary.ok == summary.rows, summary
    return _figures(summary.rows, time.process_time() - cpu, summary.seconds)


def _bare(source: str, base_url: str) -> dict[str, float]:
    litellm = _import_litellm()
    with Path(source).open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    slots = asyncio.Semaphore(_CONCURRENCY)

    async def call(text: str) -> Any:
        async with slots:
            return await litellm.acompletion(
                model="openai/gpt-4o-mini",
                api_base=base_url,
                api_key="none",
                max_retries=0,
                max_tokens=100,
                messages=[{"role": "user", "content": _PROMPT.replace("{{ text }}", text)}],
            )

    async def everything() -> None:
        await asyncio.gather(*map(call, texts))

    started, cpu = time.monotonic(), time.process_time()
    asyncio.run(everything())
    return _figures(len(texts), time.process_time() - cpu, time.monotonic() - started)


def _import_litellm() -> Any:
    from airflow_ai_provider.gateway.providers.litellm import _import_litellm as imported

    return imported()


def _figures(rows: int, cpu: float, seconds: float) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": rows / seconds, "cpu_ms": 1000 * cpu / rows, "peak_mb": peak}


def _rows(path: Path, count: int) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        for number in range(count):
            words = " ".join(_WORDS[(number * step + step) % len(_WORDS)] for step in range(1, 9))
            writer.writerow([number, f"Question {number} about my {words}, write to customer{number}@example.com"])
    return path


def _policy(path: Path, model: str, more: str) -> Path:
    path.write_text(
        f"version: 1\n"
        f"deployments:\n  only: {{model: {model}, concurrency: {_CONCURRENCY}, price: {_PRICE}{more}}}\n"
        f"routes:\n  bench: {{tiers: {{simple: [only]}}, masking: standard, max_tokens: 100, reuse: {{scope: team}}}}\n"
        f"budgets:\n  - {{period: total, limit_usd: 1000}}\n"
        f"masking:\n  standard: {{detect: [email, phone, cn_id, card, iban, ip, secret]}}\n"
    )
    return path


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps({"governed": _governed, "bare": _bare}[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
