"""An export of closed days: exact, the same bytes every time, whole or absent, in bounded memory."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import tracemalloc
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from sqlalchemy import delete, update
from support.reporting import NOW, adjustment, row, write
from support.storage import Place

from airflow_ai_provider.core.ledger.database import Ledger
from airflow_ai_provider.core.ledger.maintenance.upkeep import maintain
from airflow_ai_provider.core.ledger.schema import llm_adjustments, llm_cost_daily, llm_requests
from airflow_ai_provider.core.reporting import export
from airflow_ai_provider.core.reporting.export import ExportReport, export_ledger
from airflow_ai_provider.errors import LedgerError, SinkError

DAY = timedelta(days=1)
REQUESTS = "x/llm_requests"


def days_of_rows() -> list[dict[str, Any]]:
    """Three closed days, and today."""
    moments = [NOW - 3 * DAY, NOW - 2 * DAY, NOW - DAY, NOW]
    rows = [row(n, moments[n % 4] + timedelta(microseconds=n)) for n in range(40)]
    rows[0] |= {"status": "unknown", "input_tokens": None, "output_tokens": None, "latency_ms": None}
    rows[4] |= {"row_key": '客户 "7"\n', "cost_nano": 10**18, "baseline_nano": 3, "saved_nano": 1}
    return rows


def run(ledger: Ledger, place: Place, **changes: Any) -> ExportReport:
    return export_ledger(ledger, place.uri("x"), **{"now": NOW, "storage_options": place.options, **changes})


def read(place: Place, day: datetime, table: str = "llm_requests") -> pa.Table:
    return pq.read_table(io.BytesIO(place.get(f"x/{table}/day={day.date()}/part-00000.parquet")))


def contents(place: Place) -> dict[str, str]:
    found = place.filesystem.find(place.filesystem._strip_protocol(place.uri("x")))
    return {path.partition("/x/")[2]: hashlib.sha256(place.filesystem.cat_file(path)).hexdigest() for path in found}


def test_closed_days_are_exported_exactly_and_today_is_not(ledger: Ledger, place: Place) -> None:
    rows = days_of_rows()
    write(ledger, rows, [adjustment(rows[0], -40, NOW - DAY), adjustment(rows[1], 7, NOW)])
    done = run(ledger, place)
    assert (done.written, done.skipped, done.rows) == (4, 0, 31)
    assert place.names(REQUESTS) == [f"day=2026-03-0{n}" for n in (1, 2, 3)]
    assert place.names("x/llm_adjustments") == ["day=2026-03-03"]
    table = read(place, NOW - 3 * DAY)
    assert table.schema.field("cost_usd").type == pa.decimal128(20, 10)
    assert table.schema.field("created_at").type == pa.timestamp("us", "UTC")
    first, second, *_ = table.to_pylist()
    assert first["created_at"] == NOW - 3 * DAY
    assert (first["input_tokens"], first["status"]) == (None, "unknown")
    assert (second["row_key"], second["cost_nano"]) == ('客户 "7"\n', 10**18)
    assert second["cost_usd"] == Decimal(10**9)
    assert second["baseline_usd"] == Decimal("0.000000003")
    assert [one["attempt_id"] for one in table.to_pylist()] == [f"a{n:08d}" for n in range(0, 40, 4)]
    (adjusted,) = read(place, NOW - DAY, "llm_adjustments").to_pylist()
    assert (adjusted["delta_nano"], adjusted["delta_usd"]) == (-40, Decimal("-0.00000004"))


def test_the_manifest_tells_what_every_file_holds(ledger: Ledger, place: Place) -> None:
    write(ledger, days_of_rows())
    done = run(ledger, place)
    data = place.get("x/manifest.json")
    assert hashlib.sha256(data).hexdigest() == done.manifest_sha256
    files = json.loads(data)["tables"]["llm_requests"]
    assert sorted(files) == ["2026-03-01", "2026-03-02", "2026-03-03"]
    for day, file in files.items():
        stored = place.get(f"{REQUESTS}/day={day}/part-00000.parquet")
        assert (file["bytes"], file["sha256"]) == (len(stored), hashlib.sha256(stored).hexdigest())
        assert file["rows"] == pq.read_metadata(io.BytesIO(stored)).num_rows
    assert sum(file["nano"] for file in files.values()) == 10**18 + sum(n for n in range(40) if n % 4 != 3 and n != 4)


def test_a_second_run_writes_nothing_and_another_place_gets_the_same_bytes(
    ledger: Ledger, place: Place, tmp_path: Path
) -> None:
    write(ledger, days_of_rows())
    first = run(ledger, place)
    again = run(ledger, place)
    assert (again.written, again.skipped, again.rows) == (0, 3, 0)
    assert again.manifest_sha256 == first.manifest_sha256
    export_ledger(ledger, str(tmp_path / "other" / "x"), now=NOW + 6 * timedelta(hours=1))
    other = Place(str(tmp_path / "other"), LocalFileSystem())
    assert contents(other) == contents(place)


def test_both_databases_give_the_same_bytes(tmp_path: Path, migrated_postgres_url: str) -> None:
    hashes = []
    for number, url in enumerate((f"sqlite:///{tmp_path / 'l.db'}", migrated_postgres_url)):
        with Ledger.open(url) as ledger:
            write(ledger, days_of_rows())
            hashes.append(export_ledger(ledger, str(tmp_path / str(number)), now=NOW).manifest_sha256)
    assert hashes[0] == hashes[1]


def test_a_new_day_is_added_and_a_missing_or_cut_file_is_written_anew(ledger: Ledger, place: Place) -> None:
    write(ledger, days_of_rows())
    before = run(ledger, place) and contents(place)
    assert run(ledger, place, now=NOW + DAY).written == 1
    place.remove(f"{REQUESTS}/day=2026-03-01/part-00000.parquet")
    place.put(f"{REQUESTS}/day=2026-03-02/part-00000.parquet", b"cut")
    assert run(ledger, place).written == 2
    after = contents(place)
    assert {name: after[name] for name in before if "day=" in name} == {
        name: digest for name, digest in before.items() if "day=" in name
    }


def test_a_day_closes_some_minutes_after_midnight(ledger: Ledger, tmp_path: Path) -> None:
    write(ledger, [row(1, datetime(2026, 3, 3, 23, 59, 59, tzinfo=UTC))])
    midnight = datetime(2026, 3, 4, tzinfo=UTC)
    assert export_ledger(ledger, str(tmp_path), now=midnight + timedelta(minutes=4)).written == 0
    assert export_ledger(ledger, str(tmp_path), now=midnight + timedelta(minutes=6)).written == 1


def test_a_row_that_came_late_is_found_by_the_next_run(ledger: Ledger, place: Place) -> None:
    write(ledger, days_of_rows())
    run(ledger, place)
    write(ledger, [row(99, NOW - 2 * DAY)])
    assert run(ledger, place).written == 1
    assert read(place, NOW - 2 * DAY).num_rows == 11


def test_only_the_days_asked_for_are_exported(ledger: Ledger, place: Place) -> None:
    write(ledger, days_of_rows())
    assert run(ledger, place, since=date(2026, 3, 2), until=date(2026, 3, 2)).written == 1
    assert place.names(REQUESTS) == ["day=2026-03-02"]


def test_rows_that_were_taken_away_are_not_exported_over(ledger: Ledger, place: Place) -> None:
    write(ledger, days_of_rows())
    run(ledger, place)
    with ledger.write() as conn:
        conn.execute(delete(llm_requests).where(llm_requests.c.attempt_id == "a00000001"))
        conn.execute(update(llm_cost_daily).values(requests=9))
    with pytest.raises(LedgerError, match="10 rows were exported, the ledger has 9"):
        run(ledger, place)
    assert read(place, NOW - 3 * DAY).num_rows == 10


def test_a_rollup_that_differs_from_its_rows_is_found_and_leaves_no_file(ledger: Ledger, place: Place) -> None:
    write(ledger, days_of_rows())
    with ledger.write() as conn:
        conn.execute(update(llm_cost_daily).values(cost_nano=5))
    with pytest.raises(LedgerError, match="airflow ai ledger check --since 2026-03-01"):
        run(ledger, place)
    assert [name for name in contents(place) if name.endswith(".parquet")] == []


def test_what_retention_dropped_stays_exported(ledger: Ledger, place: Place) -> None:
    old, new = row(1, datetime(2025, 12, 5, tzinfo=UTC)), row(2, NOW - DAY)
    write(
        ledger, [old, new], [adjustment(old, -1, datetime(2025, 12, 9, tzinfo=UTC)), adjustment(old, 2, NOW - DAY, "b")]
    )
    assert run(ledger, place).written == 4
    maintain(ledger, now=NOW, keep_months=1)
    assert run(ledger, place).written == 0
    assert read(place, datetime(2025, 12, 5)).num_rows == 1
    assert read(place, NOW - DAY, "llm_adjustments").num_rows == 1


def test_an_export_that_is_interrupted_shows_no_half_day(
    ledger: Ledger, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ledger, days_of_rows())
    whole, calls = export.arrow_table, []

    def fails_on_the_second_day(*given: Any) -> pa.Table:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(export, "_FETCHED_ROWS", 4)
    monkeypatch.setattr(export, "_GROUP_ROWS", 4)
    monkeypatch.setattr(export, "arrow_table", fails_on_the_second_day)
    with pytest.raises(KeyboardInterrupt):
        run(ledger, place)
    assert [name for name in contents(place) if name.endswith((".parquet", ".tmp"))] == [
        "llm_requests/day=2026-03-01/part-00000.parquet"
    ]
    monkeypatch.undo()
    done = run(ledger, place)
    assert (done.written, done.skipped) == (2, 1)


def test_what_a_killed_export_left_is_cleared_away(ledger: Ledger, tmp_path: Path) -> None:
    write(ledger, days_of_rows())
    folder = tmp_path / "x/llm_requests/day=2026-03-01"
    folder.mkdir(parents=True)
    (folder / ".part-00000.parquet.abc.tmp").write_bytes(b"half")
    export_ledger(ledger, str(tmp_path / "x"), now=NOW)
    assert [path.name for path in folder.iterdir()] == ["part-00000.parquet"]


def test_a_foreign_manifest_is_left_alone(ledger: Ledger, place: Place) -> None:
    place.put("x/manifest.json", b'{"version": 1, "parts": []}')
    with pytest.raises(SinkError, match="is not the manifest of an export; choose another folder"):
        run(ledger, place)


def test_memory_does_not_grow_with_the_rows_of_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak of Python objects for four times the rows: what is fetched at once does not depend on them."""
    monkeypatch.setattr(export, "_FETCHED_ROWS", 250)
    monkeypatch.setattr(export, "_GROUP_ROWS", 1000)

    def peak(rows: int) -> int:
        folder = tmp_path / str(rows)
        with Ledger.open(f"sqlite:///{folder / 'ledger.db'}") as ledger:
            write(ledger, [row(n, NOW - DAY + timedelta(seconds=n % 100)) for n in range(rows)])
            gc.collect()
            tracemalloc.start()
            done = export_ledger(ledger, str(folder / "x"), now=NOW)
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert done.rows == rows
        return most

    peak(1000)  # imports
    assert peak(8000) < 1.5 * peak(2000)


def test_the_tables_have_a_column_for_every_column() -> None:
    for table in (llm_requests, llm_adjustments):
        assert export.arrow_schema(table).names == [column.name for column in table.columns]
