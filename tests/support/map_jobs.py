"""A laboratory for whole map jobs: rows, a policy, a vendor with its invoice, a ledger, and processes between them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import sqlalchemy as sa
import yaml

from airflow_ai_provider.core.job import Caller, MapJob
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.schema import (
    llm_budgets,
    llm_cost_daily,
    llm_holds,
    llm_open_attempts,
    llm_requests,
)
from airflow_ai_provider.core.rows.source import open_source
from airflow_ai_provider.core.settings import Settings
from airflow_ai_provider.testing import answers
from airflow_ai_provider.testing.invoice import InvoiceLine, Price
from airflow_ai_provider.testing.vendor import Vendor
from support.map_process import JobProcess, Spec

TEAM = "support"
ROUTE = "support"
PROMPT = "Customer writes: {{ text }}\nAnswer in one sentence."
INPUT_USD, OUTPUT_USD = "0.15", "0.60"
"""Per million tokens: the double's price list, and the policy's."""
PRICE = Price(INPUT_USD, OUTPUT_USD)
_WORDS = "card transfer refund limit branch app code fee loan account payment statement holiday order balance".split()


def questions(count: int, seed: int = 7, prefix: str = "row") -> list[dict[str, Any]]:
    """Rows with a key, a text unlike any other, and nothing personal."""
    rng = random.Random(seed)
    return [
        {"id": f"{prefix}-{number:05d}", "text": f"Question {prefix} {number}: {' '.join(rng.choices(_WORDS, k=12))}?"}
        for number in range(count)
    ]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
    return str(path)


def price_of(text: str) -> int:
    """What the double charges for the answer to ``PROMPT`` over a text, in nano-dollars."""
    body = {"messages": [{"role": "user", "content": PROMPT.replace("{{ text }}", text)}]}
    rates = PRICE.nano_per_token()
    cost = rates.input * answers.prompt_tokens(body) + rates.output * answers.count_tokens(answers.answer_to(body))
    return int(cost)


@dataclass
class Lab:
    """One installation in a folder, and a vendor beside it."""

    folder: Path
    vendor: Vendor
    ledger_url: str | None = None
    cache_url: str | None = None
    limit_usd: str = "100"
    period: str = "total"
    """Of the team's budget."""
    deployment: dict[str, Any] = field(default_factory=dict)
    """Over and above model, place and price."""
    route: dict[str, Any] = field(default_factory=dict)
    """Over and above tiers; masking is off unless a test says what to mask."""
    masking: dict[str, Any] = field(default_factory=dict)
    home_name: str = "home"
    keyring: dict[str, Any] | None = None
    _runs: int = 0

    @property
    def home(self) -> Path:
        return self.folder / self.home_name

    @property
    def sink(self) -> Path:
        return self.folder / "answers"

    @property
    def settings(self) -> Settings:
        return Settings(
            home=self.home,
            policy_path=self.folder / "policy.yaml",
            ledger_url=self.ledger_url,
            cache_url=self.cache_url,
            keyring=self.keyring,
        )

    def policy(self) -> dict[str, Any]:
        small = {
            "model": "openai/double",
            "api_base": self.vendor.base_url,
            "price": {"input_per_mtok": float(INPUT_USD), "output_per_mtok": float(OUTPUT_USD)},
            "rpm": 1_000_000,
            "concurrency": 32,
            "timeout": 20,
        }
        route = {
            "tiers": {"simple": ["small"]},
            "masking": "off",
            "max_tokens": 64,
            "retry": {"attempts": 5, "wait": 0.05, "max_wait": 0.2},
        }
        return {
            "version": 1,
            "deployments": {"small": {**small, **self.deployment}},
            "routes": {ROUTE: {**route, **self.route}},
            "budgets": [
                {"team": TEAM, "period": self.period, "limit_usd": float(self.limit_usd)},
                {"period": "total", "limit_usd": 1000},
            ],
            "masking": self.masking,
        }

    def spec(self, source: str, *, caller: Mapping[str, Any] | None = None, **job: Any) -> Spec:
        """A run of a job; writes the policy as it is now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        policy = self.settings.policy_path
        policy.write_text(yaml.safe_dump(self.policy(), allow_unicode=True, sort_keys=False))
        return Spec(
            MapJob(
                **{
                    "source": source,
                    "sink": str(self.sink),
                    "prompt": PROMPT,
                    "key": "id",
                    "team": TEAM,
                    "route": ROUTE,
                    "batch_rows": 50,
                    **job,
                }
            ),
            Caller(**{"dag_id": "dag", "run_id": "run-1", "task_id": "answer", **(caller or {})}),
            self.settings,
        )

    def start(self, spec: Spec, *, clock_offset: int = 0) -> JobProcess:
        """A process that runs the job; its clock is ``clock_offset`` seconds ahead."""
        self._runs += 1
        folder = self.folder / "runs" / f"{self.home_name}-{self._runs}"
        return JobProcess(spec, folder, clock_offset=clock_offset)

    def run(self, source: str, *, caller: Mapping[str, Any] | None = None, **job: Any) -> dict[str, Any]:
        """Run a job to its end and return its summary."""
        return self.start(self.spec(source, caller=caller, **job)).summary()

    def output(self) -> list[dict[str, Any]]:
        """The rows of the sink, as its manifest lists them."""
        source = open_source(str(self.sink))
        return pa.Table.from_batches(list(source.batches(1000))).to_pylist()

    @contextmanager
    def books(self) -> Iterator[Books]:
        with open_ledger(self.ledger_url, self.home) as ledger:
            yield Books(ledger)


def next_try(spec: Spec) -> Spec:
    """The same task instance once more."""
    return replace(spec, caller=replace(spec.caller, try_number=spec.caller.try_number + 1))


@dataclass(frozen=True)
class Books:
    """The ledger's tables, as an auditor reads them."""

    ledger: Ledger

    def rows(self, table: sa.Table) -> list[dict[str, Any]]:
        with self.ledger.read() as conn:
            return [dict(row) for row in conn.execute(sa.select(table)).mappings()]

    def requests(self, *statuses: str) -> list[dict[str, Any]]:
        return [row for row in self.rows(llm_requests) if not statuses or row["status"] in statuses]

    def open_attempts(self) -> list[dict[str, Any]]:
        return self.rows(llm_open_attempts)

    def budget(self, name: str = f"team={TEAM}/total") -> dict[str, Any]:
        (row,) = [row for row in self.rows(llm_budgets) if row["name"] == name]
        return row

    def assert_settled(self) -> None:
        """Nothing is open or held, budgets say what requests cost, and the rollup says the same."""
        assert self.rows(llm_open_attempts) == []
        assert self.rows(llm_holds) == []
        requests, budgets, daily = self.requests(), self.rows(llm_budgets), self.rows(llm_cost_daily)
        cost = sum(row["cost_nano"] for row in requests)
        assert [row["held_nano"] for row in budgets] == [0] * len(budgets)
        assert [row["spent_nano"] for row in budgets] == [cost] * len(budgets)
        for name in ("cost_nano", "saved_nano", "input_tokens", "output_tokens"):
            assert sum(row[name] for row in daily) == sum(row[name] or 0 for row in requests), name
        by_status = Counter(row["status"] for row in requests)
        assert sum(row["requests"] for row in daily) == len(requests)
        assert sum(row["reused"] for row in daily) == by_status["reused"]
        assert sum(row["errors"] for row in daily) == by_status["error"]
        assert sum(row["unknown"] for row in daily) == by_status["unknown"]

    def assert_never_below(self, invoice: Sequence[InvoiceLine]) -> None:
        """Every line of the invoice has its row, by attempt id, which costs no less; an ``ok`` row costs the same."""
        by_attempt = {row["attempt_id"]: row for row in self.requests()}
        charged = [line.idempotency_key for line in invoice]
        assert len(set(charged)) == len(charged)
        assert set(charged) <= by_attempt.keys()
        for line in invoice:
            row = by_attempt[line.idempotency_key]
            assert row["cost_nano"] >= line.cost_nanodollars
            if row["status"] == "ok":
                said = (row["input_tokens"], row["output_tokens"], row["cached_input_tokens"], row["cost_nano"])
                assert said == (line.prompt_tokens, line.completion_tokens, line.cached_tokens, line.cost_nanodollars)
        unbilled = [row for row in by_attempt.values() if row["attempt_id"] not in set(charged)]
        assert all(row["status"] != "ok" for row in unbilled)
