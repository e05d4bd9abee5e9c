"""A job costs at most what its plan calls the worst case, whatever faults its vendor has.

Every fault is tried alone, and as many mixtures as ``AI_TEST_EXAMPLES`` says; from 500 on every pair of faults as well.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.map_jobs import INPUT_USD, OUTPUT_USD, PRICE, PROMPT, Books, questions, write_jsonl

from airflow_ai_provider.core.job import Caller, MapJob
from airflow_ai_provider.core.jobs.llm_map import run_map
from airflow_ai_provider.core.jobs.plan import SpendPlan, plan_spend
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.pipeline import retry, transitions
from airflow_ai_provider.core.ratelimit import feedback
from airflow_ai_provider.core.rows.manifest import read_manifest
from airflow_ai_provider.core.settings import Settings
from airflow_ai_provider.errors import AIProviderError
from airflow_ai_provider.testing.behaviour import Fault, Faults
from airflow_ai_provider.testing.vendor import VendorProcess

LOG = logging.getLogger("worst-case")
ROWS = 200
EXAMPLES = int(os.environ.get("AI_TEST_EXAMPLES", "8"))
_RARE = {Fault.OVERSIZED: 0.02}
"""Faults that take too long to meet every row."""
_TIERS: dict[str, dict[str, Any]] = {
    "one": {"tiers": {"simple": ["small"]}},
    "fallback": {"tiers": {"simple": ["small", "other"]}},
    "escalation": {
        "tiers": {"simple": ["small"], "complex": ["large"]},
        "escalate": {"on": ["empty"], "to": "complex"},
    },
    "cheaper": {
        "tiers": {"simple": ["small"], "medium": ["other"], "complex": ["large"]},
        "complexity": {"from": "constant", "default": "complex"},
        "over_budget": "cheaper",
    },
}
_RICH, _POOR = 100, 0.02
"""USD: enough for all, and for some of the rows."""
_NEVER = 1000


@dataclass(frozen=True)
class Case:
    """What the vendor does, and what the policy says."""

    faults: tuple[tuple[Fault, float], ...]
    """Each with the share of requests that meet it."""
    tiers: str = "one"
    attempts: int = 3
    failures: int = 5
    """In a row, until a circuit opens; ``_NEVER`` keeps it closed."""
    seed: int = 0


def mixture(*faults: tuple[Fault, float]) -> tuple[tuple[Fault, float], ...]:
    return tuple((kind, min(share, _RARE.get(kind, 1.0))) for kind, share in faults)


def always(test: Callable[..., None]) -> Callable[..., None]:
    """Try every fault alone and, where there is time, every pair."""
    for number, kind in enumerate(Fault):
        tiers = sorted(_TIERS)[number % len(_TIERS)]
        test = example(case=Case(mixture((kind, 0.7)), tiers=tiers, failures=_NEVER))(test)
    for number, (one, two) in enumerate(combinations(Fault, 2) if EXAMPLES >= 500 else ()):
        tiers = sorted(_TIERS)[number % len(_TIERS)]
        faults = mixture((one, 0.4), (two, 0.4))
        test = example(case=Case(faults, tiers, failures=(1, 5, _NEVER)[number % 3], seed=number))(test)
    return test


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """One fault or two, in any mixture."""
    kinds = draw(st.lists(st.sampled_from(list(Fault)), min_size=1, max_size=2, unique=True))
    share = draw(st.sampled_from([0.05, 0.2, 0.5, 1.0]))
    first = draw(st.sampled_from([0.1, 0.5, 0.9])) if len(kinds) == 2 else 1.0
    return Case(
        mixture(*zip(kinds, [share * first, share * (1 - first)], strict=False)),
        tiers=draw(st.sampled_from(sorted(_TIERS))),
        attempts=draw(st.integers(1, 4)),
        failures=draw(st.sampled_from([1, 5, _NEVER])),
        seed=draw(st.integers(0, 2**16)),
    )


@pytest.fixture(scope="module")
def vendor() -> Iterator[VendorProcess]:
    with VendorProcess(prices={"*": PRICE}, retry_after=0.05, slow_seconds=1.5, oversized_bytes=17 * 2**20) as double:
        yield double


@pytest.fixture(scope="module", autouse=True)
def small_waits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feedback, "FIRST_PROBE", 0.02)
        patch.setattr(transitions, "_LOOK_AGAIN_SECONDS", 0.05)
        patch.setattr(retry, "LEAST_PATIENCE", 0.5)
        yield


@pytest.fixture(scope="module")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation whose ledger has its tables, to be copied."""
    home = tmp_path_factory.mktemp("empty")
    with open_ledger(None, home):
        return home


class Job:
    """A job in an installation of its own."""

    def __init__(self, folder: Path, empty_home: Path, case: Case, vendor: VendorProcess) -> None:
        self.settings = Settings(home=folder / "home", policy_path=folder / "policy.yaml")
        shutil.copytree(empty_home, self.settings.home)
        self.settings.policy_path.write_text(json.dumps(_policy(case, vendor)))
        source = write_jsonl(folder / "in.jsonl", questions(ROWS))
        self.job = MapJob(
            source=source,
            sink=str(folder / "out"),
            prompt=PROMPT,
            key="id",
            team="support",
            route="support",
            batch_rows=100,
        )
        self.caller = Caller("dag", "run-1", "answer")

    def plan(self) -> SpendPlan:
        return plan_spend(self.job, self.caller, self.settings)

    def run(self, try_number: int = 1) -> AIProviderError | None:
        """One try of the task; an outage may end it early."""
        try:
            run_map(self.job, replace(self.caller, try_number=try_number), self.settings, log=LOG)
        except AIProviderError as error:
            return error
        return None

    def output(self) -> list[dict[str, Any]]:
        manifest = read_manifest(self.job.sink)
        assert manifest is not None
        return [row for part in manifest.parts for row in pq.read_table(f"{self.job.sink}/{part.name}").to_pylist()]


def _policy(case: Case, vendor: VendorProcess) -> dict[str, Any]:
    def deployment(name: str) -> dict[str, Any]:
        return {
            "model": f"openai/{name}",
            "api_base": vendor.base_url,
            "adapter": "openai_compatible",
            "price": {"input_per_mtok": float(INPUT_USD), "output_per_mtok": float(OUTPUT_USD)},
            "rpm": 1_000_000,
            "concurrency": ROWS,
            "timeout": 1,
            "breaker": {"failures": case.failures, "calls": 4 * case.failures, "probe_every": 1},
        }

    route = {
        "masking": "off",
        "max_tokens": 64,
        "retry": {"attempts": case.attempts, "wait": 0.01, "max_wait": 0.05},
        **_TIERS[case.tiers],
    }
    limit = _POOR if case.tiers == "cheaper" else _RICH
    return {
        "version": 1,
        "deployments": {name: deployment(name) for name in ("small", "other", "large")},
        "routes": {"support": route},
        "budgets": [{"team": "support", "period": "total", "limit_usd": limit}],
        "masking": {},
    }


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=cases())
@always
@pytest.mark.timeout(7200)
def test_no_mixture_of_faults_costs_more_than_the_plans_worst_case(
    vendor: VendorProcess, empty_home: Path, case: Case
) -> None:
    """Invoice ≤ ledger ≤ worst case, in money and in requests that may have been charged; no row is lost."""
    vendor.reset()
    vendor.configure(faults=Faults(**{f"rate_{fault}": share for fault, share in case.faults}), seed=case.seed)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), empty_home, case, vendor)
        plan = job.plan()
        ended = job.run()
        check(job, plan, case, vendor)
        if ended is not None:
            vendor.configure(faults=Faults())
            # The rows of the first try that were answered badly count again; the second one is to answer the others.
            job.job = replace(job.job, give_up_after=ROWS + 1)
            assert job.run(try_number=2) is None
            books_hold(job, vendor)
        assert [row["id"] for row in job.output()] == [row["id"] for row in questions(ROWS)]


def check(job: Job, plan: SpendPlan, case: Case, vendor: VendorProcess) -> None:
    """One try keeps to the plan."""
    requests = books_hold(job, vendor)
    charged = [row for row in requests if row["status"] in ("ok", "unknown")]
    assert sum(row["cost_nano"] for row in requests) <= plan.worst_nano
    assert len(vendor.invoice()) <= len(charged) <= plan.worst_attempts
    counted = [row for row in requests if row["status"] == "unknown" or row["error_type"] != "rate_limited"]
    most = Counter((row["row_key"], row["tier"], row["deployment"]) for row in counted)
    assert max(most.values(), default=0) <= case.attempts


def books_hold(job: Job, vendor: VendorProcess) -> list[dict[str, Any]]:
    """The ledger's requests: all is settled, and none costs less than the vendor charged."""
    with open_ledger(None, job.settings.home) as ledger:
        books = Books(ledger)
        books.assert_settled()
        by_attempt = {row["attempt_id"]: row for row in books.requests()}
    for line in vendor.invoice():
        assert by_attempt[str(line.idempotency_key)]["cost_nano"] >= line.cost_nanodollars
    return list(by_attempt.values())
