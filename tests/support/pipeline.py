"""A small installation for gateway tests: real ledger, real response store, a vendor double."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy import select

from airflow_ai_provider.core.job import Caller, MapJob, MapSummary
from airflow_ai_provider.core.jobs.llm_map import run_map
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.schema import llm_budgets, llm_holds, llm_open_attempts, llm_requests
from airflow_ai_provider.core.rows.manifest import read_manifest
from airflow_ai_provider.core.settings import Endpoint, Settings
from airflow_ai_provider.testing.vendor import Vendor

KEY = "sk-secret-of-the-tests"
TEAM = "support"
MODEL = "openai/gpt-4o-mini"
"""The double's default price is this model's in litellm's list: ledger and invoice can be equal to the nano-dollar."""
LOG = logging.getLogger("gateway-tests")


def deployment(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "connection": "vendor", "rpm": 1_000_000, "timeout": 20, **changes}


def route(**changes: Any) -> dict[str, Any]:
    plain = {"tiers": {"simple": ["small"]}, "masking": "off", "retry": {"wait": 0.001, "max_wait": 0.002}}
    return {**plain, "max_tokens": 50, **changes}


def policy(
    *,
    deployments: Mapping[str, Any] | None = None,
    limit_usd: str = "1",
    budgets: Sequence[Mapping[str, Any]] | None = None,
    profiles: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A policy of one route ``support``; further arguments change that route."""
    return {
        "version": 1,
        "deployments": dict(deployments or {"small": deployment()}),
        "routes": {"support": route(**changes)},
        "budgets": list(budgets or [{"team": TEAM, "period": "total", "limit_usd": limit_usd}]),
        "masking": dict(profiles or {}),
    }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job came to."""

    summary: MapSummary
    rows: list[dict[str, Any]]
    """Of the sink, in order."""

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]


class House:
    """One ``[ai] home`` with its policy, and the jobs that are run in it."""

    def __init__(self, folder: Path, vendor: Vendor | None = None, **settings: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.vendor = vendor
        self.settings = Settings(
            home=folder / "home", policy_path=folder / "policy.yaml", endpoint=self._endpoint, **settings
        )
        self.write(policy())

    def _endpoint(self, conn_id: str) -> Endpoint:
        if self.vendor is None or conn_id != "vendor":
            raise LookupError(f"no connection {conn_id!r}")
        return Endpoint(api_base=self.vendor.base_url, api_key=KEY)

    def write(self, policy: Mapping[str, Any]) -> None:
        self.settings.policy_path.write_text(json.dumps(policy))  # JSON is YAML

    def job(self, rows: Sequence[str | Mapping[str, Any]], **changes: Any) -> MapJob:
        """A job over rows written to a file; a string is a row's ``text``."""
        table = [{"id": f"r{n}", **({"text": row} if isinstance(row, str) else row)} for n, row in enumerate(rows)]
        source = self.folder / "in.jsonl"
        lines = "".join(json.dumps(row) + "\n" for row in table)
        if not source.exists() or source.read_text() != lines:
            source.write_text(lines)  # an equal file written again would be a new version of the source
        plain = {"source": str(source), "sink": str(self.folder / "out"), "prompt": "{{ text }}", "key": "id"}
        return MapJob(**{**plain, "team": TEAM, "route": "support", **changes})

    def run(
        self,
        rows: Sequence[str | Mapping[str, Any]],
        *,
        caller: Caller | None = None,
        run_id: str = "run-1",
        **job: Any,
    ) -> Outcome:
        sink = str(self.folder / f"out-{run_id}")
        made = self.job(rows, **{"sink": sink, **job})
        summary = run_map(made, caller or Caller("dag", run_id, "answer"), self.settings, log=LOG)
        return Outcome(summary, read_rows(made.sink))

    def requests(self, **wanted: Any) -> list[dict[str, Any]]:
        """Rows of ``llm_requests`` that hold these values, oldest first."""
        found = self._table(llm_requests)
        return [row for row in found if all(row[name] == value for name, value in wanted.items())]

    def left_over(self) -> tuple[int, int]:
        """(open attempts, holds): both are 0 when nothing is under way."""
        return len(self._table(llm_open_attempts)), len(self._table(llm_holds))

    def budget(self) -> tuple[int, int, int]:
        """(limit, spent, held) of the only budget, in nano-dollars."""
        (row,) = self._table(llm_budgets)
        return row["limit_nano"], row["spent_nano"], row["held_nano"]

    def spent(self) -> int:
        """What the ledger says was spent, in nano-dollars; budget and rows must agree on it."""
        total: int = sum(row["cost_nano"] for row in self.requests())
        assert self.budget()[1:] == (total, 0)
        return total

    def _table(self, table: Any) -> list[dict[str, Any]]:
        with open_ledger(self.settings.ledger_url, self.settings.home) as ledger, ledger.read() as conn:
            rows = conn.execute(select(table).order_by(*table.primary_key)).mappings().all()
        return [dict(row) for row in rows]


def read_rows(sink: str) -> list[dict[str, Any]]:
    manifest = read_manifest(sink)
    assert manifest is not None
    return [row for part in manifest.parts for row in pq.read_table(f"{sink}/{part.name}").to_pylist()]


def invoiced(vendor: Vendor) -> int:
    """Nano-dollars."""
    return sum(line.cost_nanodollars for line in vendor.invoice())


def nano(usd: str | Decimal) -> int:
    return int(Decimal(usd) * 10**9)
