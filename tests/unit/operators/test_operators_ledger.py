"""Operators of the ledger over the real heart: what they keep, export, draw, refuse and write into the audit trail."""

from __future__ import annotations

import json
import re
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from airflow.sdk.exceptions import AirflowFailException
from sqlalchemy import text

from airflow_ai_provider.core.job import Caller, MapJob
from airflow_ai_provider.core.jobs.llm_map import run_map
from airflow_ai_provider.core.ledger import open_ledger
from airflow_ai_provider.core.ledger.maintenance.upkeep import repair_day
from airflow_ai_provider.hooks.settings import settings_from_airflow
from airflow_ai_provider.operators.cost import CostReportOperator
from airflow_ai_provider.operators.ledger import LedgerExportOperator, LedgerMaintenanceOperator

POLICY = """\
version: 1
deployments: {offline: {model: offline/extractive, price: {input_per_mtok: 1, output_per_mtok: 2}}}
routes: {support: {tiers: {simple: [offline]}, masking: "off"}}
budgets: [{team: support, period: day, limit_usd: 5}]
ledger: {keep_months: 2}
"""
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three rows answered: one three years ago, two yesterday."""
    monkeypatch.setenv("AIRFLOW__AI__HOME", str(tmp_path / "ai"))
    monkeypatch.setenv("AIRFLOW__AI__POLICY_PATH", str(tmp_path / "policy.yaml"))
    for option in ("LEDGER_CONN_ID", "CACHE_CONN_ID", "KEYRING_CONN_ID", "ARCHIVE_URI"):
        monkeypatch.delenv(f"AIRFLOW__AI__{option}", raising=False)
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "rows.csv").write_text("id,text\n1,one\n2,two\n3,three\n")
    job = MapJob(str(tmp_path / "rows.csv"), str(tmp_path / "out"), "{{ text }}", "id", "support", "support")
    log: Any = types.SimpleNamespace(info=lambda *_: None, warning=lambda *_: None)
    run_map(job, Caller("d", "r", "t"), settings_from_airflow(), log=log)
    move = "UPDATE llm_requests SET created_at = :moment WHERE (row_key = '1') = :old"
    settings = settings_from_airflow()
    with open_ledger(settings.ledger_url, settings.home) as ledger:
        for old, moment in ((1, YESTERDAY - timedelta(days=1095)), (0, YESTERDAY)):
            with ledger.write() as conn:
                moment = moment.replace(hour=12)
                conn.execute(text(move), {"moment": f"{moment:%Y-%m-%d %H:%M:%S.%f}", "old": old})
        for day in {YESTERDAY.date(), (YESTERDAY - timedelta(days=1095)).date(), datetime.now(UTC).date()}:
            repair_day(ledger, day)
    return tmp_path


def context() -> Any:
    ti = types.SimpleNamespace(dag_id="upkeep", run_id="run 1", task_id="t", map_index=None, try_number=1)
    return {"ti": ti, "run_id": ti.run_id, "dag_run": None}


def events(home: Path, action: str) -> list[dict[str, Any]]:
    lines = [line for path in (home / "ai/audit/spool").rglob("*") if path.is_file() for line in path.open()]
    return [json.loads(re.sub(r"^[^{]*", "", line)) for line in lines if f'"event.action":"{action}"' in line]


def change(statement: str) -> None:
    settings = settings_from_airflow()
    with open_ledger(settings.ledger_url, settings.home) as ledger, ledger.write() as conn:
        conn.execute(text(statement))


def test_maintenance_drops_old_months_and_says_so_in_the_trail(home: Path) -> None:
    done = LedgerMaintenanceOperator(task_id="m").execute(context())
    old = f"{YESTERDAY - timedelta(days=1095):%Y-%m}"
    assert (done["dropped"], done["kept"]) == ([old], [])
    assert done["checked_days"] >= 2
    (event,) = events(home, "ledger.dropped")
    assert (event["airflow_ai.period"], event["airflow_ai.rows"], event["airflow_ai.dag_id"]) == (old, 1, "upkeep")
    assert LedgerMaintenanceOperator(task_id="m", check_days=0).execute(context())["dropped"] == []


def test_a_month_that_is_still_needed_stays_and_the_task_goes_on() -> None:
    change("UPDATE llm_requests SET status = 'unknown' WHERE row_key = '1'")
    done = LedgerMaintenanceOperator(task_id="m").execute(context())
    assert (len(done["kept"]), done["dropped"]) == (1, [])
    assert len(LedgerMaintenanceOperator(task_id="m", force=True).execute(context())["dropped"]) == 1


def test_a_figure_that_differs_fails_the_task_after_the_upkeep() -> None:
    change(f"UPDATE llm_cost_daily SET cost_nano = 1 WHERE day = '{YESTERDAY:%Y-%m-%d}'")
    with pytest.raises(AirflowFailException, match=r"figures of llm_cost_daily differ.*--repair.*cost_nano is 1"):
        LedgerMaintenanceOperator(task_id="m").execute(context())
    assert LedgerMaintenanceOperator(task_id="m", check_days=0).execute(context())["dropped"] == []


@pytest.mark.parametrize("wrong", [{"keep_months": 0}, {"check_days": -1}])
def test_wrong_arguments_are_errors_in_the_dag_file(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        LedgerMaintenanceOperator(task_id="m", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target is empty"):
        LedgerExportOperator(task_id="e", target=" ")


def test_an_export_writes_closed_days_once_and_is_in_the_trail(home: Path) -> None:
    export = LedgerExportOperator(task_id="e", target=str(home / "lake"))
    first, second = export.execute(context()), export.execute(context())
    assert (first["days"], first["rows"], first["skipped"]) == (2, 3, 0)
    assert (second["days"], second["skipped"], second["manifest_sha256"]) == (0, 2, first["manifest_sha256"])
    rows = pq.read_table(home / "lake" / "llm_requests" / f"day={YESTERDAY:%Y-%m-%d}" / "part-00000.parquet")
    assert sorted(rows["row_key"].to_pylist()) == ["2", "3"]
    (event,) = events(home, "ledger.exported")
    assert event["airflow_ai.manifest_hash"] == first["manifest_sha256"]
    assert event["airflow_ai.days"] == 2


def test_an_export_finds_its_store_by_a_connection(
    home: Path, monkeypatch: pytest.MonkeyPatch, s3_options: dict[str, Any]
) -> None:
    fields = {"conn_type": "aws", "login": s3_options["key"], "password": s3_options["secret"]}
    fields["extra"] = {"endpoint_url": s3_options["endpoint_url"], "region_name": "us-east-1"}
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps(fields))
    target = f"s3://lake@rows/{home.name}"
    assert LedgerExportOperator(task_id="e", target=target).execute(context())["days"] == 2
    assert LedgerExportOperator(task_id="e", target=target, until="2001-01-01").execute(context())["days"] == 0
    report = CostReportOperator(task_id="c", target=f"{target}/report").execute(context())["report"]
    assert report == f"s3://rows/{home.name}/report/index.html"


def test_a_report_is_drawn_beside_the_totals(home: Path) -> None:
    operator = CostReportOperator(task_id="c", target=str(home / "report"))
    done = operator.execute(context())
    plain = CostReportOperator(task_id="c").execute(context())
    assert {name: value for name, value in done.items() if name != "report"} == plain
    assert done["report"] == str(home / "report" / "index.html")
    assert sorted(path.name for path in (home / "report").iterdir()) == ["index.html", "overview.png", "support.png"]
    assert plain["requests"] == 3
