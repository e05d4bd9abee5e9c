"""A small table with personal values, and the operators that mask, restore, encrypt and decrypt it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_ai_provider.core.rows.manifest import read_manifest
from airflow_ai_provider.operators.privacy import (
    DecryptColumnsOperator,
    EncryptColumnsOperator,
    MaskRowsOperator,
    RestoreRowsOperator,
)
from support.task_context import FakeTaskInstance, context

POLICY = """\
version: 1
deployments: {offline: {model: offline/extractive, price: {input_per_mtok: 1, output_per_mtok: 2}}}
routes: {support: {tiers: {simple: [offline]}, masking: standard}}
budgets: [{team: support, period: day, limit_usd: 5}]
masking: {standard: {detect: [email, phone], columns: {customer_name: PERSON}}}
privacy:
  restore: [{dag: d, team: support}]
  decrypt: [{dag: d, team: support}, {dag: narrow, team: support, columns: [iban]}]
"""
ROWS: list[dict[str, Any]] = [
    {
        "id": "r0",
        "customer_name": "Ann Lee",
        "text": "I am Ann Lee, ann@example.com, call 13812345678",
        "n": 13812345678,
    },
    {"id": "r1", "customer_name": "李雷", "text": '{"mail": "bo\\u0040example.com", "who": "李雷"}', "n": 7},
    {"id": "r2", "customer_name": None, "text": "nothing [EMAIL_7K2QM] personal", "n": None},
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__AI__HOME", str(tmp_path / "ai"))
    monkeypatch.setenv("AIRFLOW__AI__POLICY_PATH", str(tmp_path / "policy.yaml"))
    (tmp_path / "policy.yaml").write_text(POLICY)
    write(tmp_path / "in.parquet", ROWS)
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def read(sink: Path) -> pa.Table:
    manifest = read_manifest(str(sink))
    assert manifest is not None
    return pa.concat_tables([pq.read_table(sink / part.name) for part in manifest.parts], promote_options="default")


def rows_of(sink: Path) -> list[dict[str, Any]]:
    return read(sink).to_pylist()


def run(kind: Any, home: Path, source: str, sink: str, *, ti: FakeTaskInstance | None = None, **changes: Any) -> Any:
    common = {"source": str(home / source), "sink": str(home / sink), "key": "id", "team": "support"}
    return kind(task_id="t", **{**common, **changes}).execute(context(ti))


def mask(home: Path, source: str = "in.parquet", sink: str = "masked", **changes: Any) -> Any:
    return run(MaskRowsOperator, home, source, sink, **{"profile": "standard", **changes})


def restore(home: Path, source: str = "masked", sink: str = "restored", **changes: Any) -> Any:
    return run(RestoreRowsOperator, home, source, sink, **changes)


def encrypt(home: Path, source: str = "in.parquet", sink: str = "closed", **changes: Any) -> Any:
    return run(EncryptColumnsOperator, home, source, sink, **{"table": "customers", **changes})


def decrypt(home: Path, source: str = "closed", sink: str = "open", **changes: Any) -> Any:
    return run(DecryptColumnsOperator, home, source, sink, **{"table": "customers", **changes})


def events(home: Path) -> list[dict[str, Any]]:
    lines = [
        line for path in sorted((home / "ai/audit/spool/main").iterdir()) for line in path.read_text().splitlines()
    ]
    found = [json.loads(line) for line in lines]
    return [event for event in found if str(event.get("event.action", "")).startswith(("rows.", "keys."))]
