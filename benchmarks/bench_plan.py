"""The plan beside what was then spent: first run, with history, and again when everything is reused.

    bench_plan.py [FILE]

Each model gets three runs of one task: 1,000 rows without history, all rows with that history, and all rows again.
Before each run it is planned; the tables show expected, worst and actual cost in USD, how far expected was off, and
the CPU of planning a row beside that of running it. ``FILE`` is a CSV file with a column ``text``; without it 10,003
questions are made up. A third of the rows asks for the dearer tier. The last table's vendor also fails (refusals,
answers that are charged and lost, empty answers, which escalate), over 3,000 rows.

The script fails where a worst case was exceeded, or an estimate with history, of 100 calls and more, was off by more
than 15%.
"""

from __future__ import annotations

import csv
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from airflow_ai_provider.core.job import Caller, MapJob
from airflow_ai_provider.core.jobs.llm_map import run_map
from airflow_ai_provider.core.jobs.plan import plan_spend
from airflow_ai_provider.core.ledger.call_costs import nano_from_usd
from airflow_ai_provider.core.settings import Settings
from airflow_ai_provider.testing.behaviour import Faults
from airflow_ai_provider.testing.invoice import Price
from airflow_ai_provider.testing.vendor import VendorProcess

_ROWS, _FIRST, _FAILING = 10_003, 1_000, 3_000
_OFF, _ENOUGH_CALLS = Decimal("0.15"), 100
_WORDS = "card transfer refund balance limit abroad fee pending cash machine app statement charge date account".split()
_PROMPT = (
    "You answer customers of a bank, politely and briefly. Use only what the passages say.\n"
    "<context>A new card arrives within five working days. You can freeze a card in the app at once. A transfer that "
    "is pending for more than two days is looked into by our team.</context>\n<question>{{ text }}</question>"
)
_SMALL, _LARGE = ("0.15", "0.60"), ("2.50", "10.00")
_FAULTS = Faults(rate_500=0.02, rate_429=0.02, rate_drop_after=0.01, rate_empty=0.05)


def main(file: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        texts = _read(Path(file)) if file else list(_made_up())
        first = _write(home / "first.csv", random.Random(1).sample(texts, min(_FIRST, len(texts) // 2)))
        every = _write(home / "every.csv", texts)
        some = _write(home / "some.csv", texts[:_FAILING])
        good = _measure("offline model", home / "offline", first, every, {"model": "offline/extractive"})
        prices = {"small": Price(*_SMALL), "large": Price(*_LARGE)}
        for name, faults, rows in (("vendor double", Faults(), every), ("vendor double, failing", _FAULTS, some)):
            with VendorProcess(prices=prices, faults=faults, retry_after=0.01) as vendor:
                place = {"api_base": vendor.base_url, "rpm": 10_000_000}
                good &= _measure(name, home / name.replace(" ", "-"), first, rows, place)
    sys.exit(0 if good else "an estimate did not hold")


def _measure(name: str, home: Path, first: Path, every: Path, place: Mapping[str, Any]) -> bool:
    """Three planned runs of one task; whether worst and expected held."""
    home.mkdir()
    settings = Settings(home=home / "ai", policy_path=_policy(home / "policy.yaml", place))
    print(
        f"\n{name}\n{'run':<14}{'rows':>8}{'reused':>8}{'calls':>8}{'expected':>11}{'actual':>11}{'worst':>11}", end=""
    )
    print(f"{'off':>8}{'plan ms/row':>13}{'run ms/row':>12}  basis")
    good = True
    runs = (("no history", first, "a"), ("with history", every, "b"), ("all reused", every, "c"))
    for label, source, run in runs:
        job = MapJob(str(source), str(home / run), _PROMPT, "id", "bench", "bench")
        caller = Caller("bench", run, "answer")
        cpu = time.process_time()
        plan = plan_spend(replace(job, sink=""), caller, settings)
        plan_ms = (time.process_time() - cpu) * 1000 / plan.rows
        cpu = time.process_time()
        summary = run_map(job, caller, settings, log=logging.getLogger("bench"))
        run_ms = (time.process_time() - cpu) * 1000 / summary.rows
        actual = nano_from_usd(Decimal(summary.cost_usd))
        off = Decimal(plan.expected_nano - actual) / actual if actual else Decimal(plan.expected_nano != 0)
        judged = label != "no history" and plan.calls >= _ENOUGH_CALLS
        good &= actual <= plan.worst_nano and (not judged or abs(off) <= _OFF)
        basis = plan.figures[0].basis if plan.figures else "nothing to ask"
        print(f"{label:<14}{plan.rows:>8,}{plan.stored + plan.equal:>8,}{plan.calls:>8,}", end="")
        print("".join(f"{nano / 1e9:>11.6f}" for nano in (plan.expected_nano, actual, plan.worst_nano)), end="")
        print(f"{off:>8.1%}{plan_ms:>13.3f}{run_ms:>12.3f}  {basis}")
    return good


def _policy(path: Path, place: Mapping[str, Any]) -> Path:
    def deployment(name: str, price: tuple[str, str]) -> dict[str, Any]:
        listed = {"input_per_mtok": float(price[0]), "output_per_mtok": float(price[1])}
        return {"model": f"openai/{name}", "concurrency": 64, "price": listed, **place}

    route = {
        "tiers": {"simple": ["small"], "complex": ["large"]},
        "complexity": {"from": "column", "column": "difficulty"},
        "escalate": {"on": ["empty"], "to": "complex"},
        "reuse": {"scope": "team"},
        "retry": {"wait": 0.01, "max_wait": 0.05},
        "masking": "standard",
        "max_tokens": 200,
    }
    policy = {
        "version": 1,
        "deployments": {"small": deployment("small", _SMALL), "large": deployment("large", _LARGE)},
        "routes": {"bench": route},
        "budgets": [{"period": "total", "limit_usd": 1_000_000}],
        "masking": {"standard": {"detect": ["email", "phone", "cn_id", "card", "iban", "ip", "secret"]}},
    }
    path.write_text(json.dumps(policy))
    return path


def _read(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)]


def _made_up() -> Iterator[str]:
    rng = random.Random(7)
    for number in range(_ROWS):
        words = " ".join(rng.choices(_WORDS, k=rng.randint(4, 30)))
        yield f"Question about my {words}, I am customer{number % 9_900}@example.com?"


def _write(path: Path, texts: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "difficulty", "text"])
        writer.writerows([f"q{n}", "complex" if n % 3 == 0 else "simple", text] for n, text in enumerate(texts))
    return path


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(*sys.argv[1:2] or [None])
