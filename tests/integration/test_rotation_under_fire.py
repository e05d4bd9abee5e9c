"""A table encrypted while its keys are rotated and its worker is killed: every row opens, as it was.

``ROTATION_ROWS`` sets the number of rows (default 100,000).
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs.transform import RowsJob, RowsSummary, transform_rows
from airflow_ai_provider.core.jobs.transforms import DecryptStep, ProtectStep, ReencryptStep, domains
from airflow_ai_provider.core.privacy.crypto.fields import Fields, key_ids
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring, open_keyring
from airflow_ai_provider.core.rows.shard import Shard
from airflow_ai_provider.core.rows.sink import PartSink
from airflow_ai_provider.core.rows.source import open_source
from airflow_ai_provider.core.settings import Settings

ROWS = int(os.environ.get("ROTATION_ROWS", "100000"))
BATCH = max(1, ROWS // 100)
COLUMNS = {"iban": "encrypt", "amount": "encrypt"}
TABLE, TEAM = "payments", "support"
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["airflow_ai_provider.core.jobs.transforms", "pandas"])

POLICY = """\
version: 1
deployments: {offline: {model: offline/extractive}}
routes: {support: {tiers: {simple: [offline]}, masking: "off"}}
budgets: [{limit_usd: 1, period: day}]
privacy: {decrypt: [{dag: dag, team: support}]}
"""


def settings_in(folder: Path) -> Settings:
    return Settings(home=folder / "home", policy_path=folder / "policy.yaml")


def work(folder: Path, act: str, source: str, sink: str) -> RowsSummary:
    settings = settings_in(folder)
    keyring = open_keyring(settings.keyring, settings.home, create=False)
    fields = Fields(keyring, team=TEAM, table=TABLE)
    step: Any
    match act:
        case "encrypt":
            step = ProtectStep(COLUMNS, fields=fields, table=TABLE, key_id=keyring.active)
        case "reencrypt":
            step = ReencryptStep(domains([*COLUMNS]), fields=fields, table=TABLE, key_id=keyring.active)
        case _:
            step = DecryptStep(domains([*COLUMNS]), fields=fields, table=TABLE)
    job = RowsJob(str(folder / source), str(folder / sink), "id", TEAM, Shard(0, 1), BATCH)
    return transform_rows(job, step, Caller("dag", "run-1", act), settings, log=logging.getLogger("task"))


def parts(sink: Path) -> int:
    return len(list(sink.glob("part-*.parquet"))) if sink.exists() else 0


def work_until_killed(most_parts: int, folder: Path, act: str, source: str, sink: str) -> None:
    """The job, which waits for its end once so many parts are there, however late that comes on a busy machine."""
    write = PartSink.write

    def write_or_wait(self: PartSink, *args: Any, **options: Any) -> None:
        if parts(folder / sink) >= most_parts:
            threading.Event().wait()
        write(self, *args, **options)

    PartSink.write = write_or_wait  # type: ignore[method-assign]  # of this process alone
    work(folder, act, source, sink)


def kill_at(count: int, folder: Path, act: str, source: str, sink: str) -> int:
    """Run a job in a process of its own and ``kill -9`` it once so many parts are there; returns how many are."""
    process = _CONTEXT.Process(target=work_until_killed, args=(count + 10, folder, act, source, sink))
    process.start()
    while parts(folder / sink) < count:
        assert process.is_alive(), f"ended before part {count}"
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -9
    found = parts(folder / sink)
    assert count <= found < ROWS // BATCH
    return found


def killed_twice(folder: Path, act: str, source: str, sink: str, between: Callable[[], Any]) -> RowsSummary:
    first = kill_at(20, folder, act, source, sink)
    between()
    second = kill_at(first + 25 if act == "encrypt" else 20, folder, act, source, sink)
    assert not (folder / sink / "manifest.json").exists(), "nobody takes half a table for a whole one"
    summary = work(folder, act, source, sink)
    assert summary.skipped >= (second - 1) * BATCH
    assert (summary.rows, summary.ok, summary.error) == (ROWS, ROWS, 0)
    return summary


def table(sink: Path) -> pa.Table:
    return pa.Table.from_batches(list(open_source(str(sink)).batches(ROWS)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(POLICY)
    numbers = pa.arange(0, ROWS)  # type: ignore[attr-defined]  # not in the stubs
    ibans = pa.array([f"DE{number:020d}" for number in range(ROWS)])
    pq.write_table(
        pa.table({"id": numbers.cast(pa.string()), "iban": ibans, "amount": numbers.cast(pa.int32())}),
        tmp_path / "in.parquet",
    )
    Keyring.open(tmp_path / "home/keyring.json")
    return tmp_path


def keyring_of(folder: Path) -> Keyring:
    return Keyring.open(folder / "home/keyring.json", create=False)


@pytest.mark.timeout(280)
def test_every_row_opens_after_two_kills_and_a_rotation_in_the_middle(folder: Path) -> None:
    old = keyring_of(folder).active

    def rotate() -> None:
        Keyring.rotate(folder / "home/keyring.json")

    killed_twice(folder, "encrypt", "in.parquet", "closed", rotate)
    new = keyring_of(folder).active
    closed = table(folder / "closed")
    by_key = Counter(key for text in closed.column("iban").to_pylist() for key in key_ids([text]))
    assert by_key.keys() == {old, new}
    assert by_key[old] >= 20 * BATCH
    assert sum(by_key.values()) == ROWS
    assert work(folder, "decrypt", "closed", "open").ok == ROWS
    back = table(folder / "open").select(["id", "iban", "amount"])
    assert back.equals(pq.read_table(folder / "in.parquet"))

    killed_twice(folder, "reencrypt", "closed", "renewed", lambda: None)
    content = json.loads((folder / "home/keyring.json").read_text())
    del content["keys"][old]
    (folder / "home/keyring.json").write_text(json.dumps(content))
    lost = work(folder, "decrypt", "closed", "garbage")
    assert (lost.error, lost.errors) == (by_key[old], {"keyring": by_key[old]})
    assert work(folder, "decrypt", "renewed", "open-again").ok == ROWS
    assert table(folder / "open-again").select(["id", "iban", "amount"]).equals(back)
