"""A task whose supervisor is killed stops within its lease: it sends nothing more, settles what is out, and ends."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.map_jobs import Lab, next_try, questions, write_jsonl
from support.map_process import Spec

from airflow_ai_provider.testing.behaviour import Latency
from airflow_ai_provider.testing.vendor import VendorProcess

ROWS = 600
CONCURRENCY = 4


@contextmanager
def supervised(spec: Spec, folder: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    """The supervisor, whose job writes its end to ``outcome.json``."""
    folder.mkdir()
    (folder / "spec").write_bytes(pickle.dumps(spec))
    command = [
        *(sys.executable, "-m", "support.supervised_process"),
        *(str(folder / name) for name in ("spec", "log.txt", "outcome.json")),
        mode,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process
        process.kill()


def outcome(folder: Path) -> dict[str, Any]:
    """How the job ended."""
    while not (folder / "outcome.json").exists():
        time.sleep(0.05)
    found: dict[str, Any] = orjson.loads((folder / "outcome.json").read_bytes())
    return found


def kill_when_busy(vendor: VendorProcess, supervisor: subprocess.Popen[str]) -> float:
    """``kill -9`` of the supervisor; returns when, in Unix time."""
    while vendor.stats().requests < 20:
        assert supervisor.poll() is None
        time.sleep(0.02)
    supervisor.kill()
    supervisor.wait()
    return time.time()


@pytest.mark.timeout(280)
@pytest.mark.parametrize("mode", ["supervised", "sudo"])
def test_an_orphan_stops_before_its_job_is_done(tmp_path: Path, paid_vendor: VendorProcess, mode: str) -> None:
    """The next try pays nothing twice. That it stops within its lease is shown in tests/timing."""
    stop_an_orphan(tmp_path, paid_vendor, mode)


def stop_an_orphan(tmp_path: Path, paid_vendor: VendorProcess, mode: str) -> float:
    """Kill the supervisor of a job; returns how many seconds later the job's last call left."""
    paid_vendor.configure(latency=Latency(0.3))
    lab = Lab(tmp_path, paid_vendor, deployment={"concurrency": CONCURRENCY})
    spec = lab.spec(write_jsonl(tmp_path / "in.jsonl", questions(ROWS)), batch_rows=20)
    with supervised(spec, tmp_path / "job", mode) as supervisor:
        killed_at = kill_when_busy(paid_vendor, supervisor)
        ended = outcome(tmp_path / "job")
    assert ended["error"] == "JobStopped"
    assert "supervised" in ended["message"]
    sent = paid_vendor.requests()
    assert len(sent) < ROWS
    with lab.books() as books:
        assert books.open_attempts() == []
        # An attempt may be in the ledger already, and not sent, when the job notices.
        assert {(row["status"], row["error_type"]) for row in books.requests()} <= {("ok", None), ("error", "stopped")}
        assert len(books.requests("ok")) == len(sent)
        books.assert_never_below(paid_vendor.invoice())
    paid_vendor.configure(latency=Latency(0.0))
    assert lab.start(next_try(spec)).summary()["ok"] == ROWS
    assert len(paid_vendor.invoice()) == ROWS
    with lab.books() as books:
        books.assert_settled()
    return sent[-1].at - killed_at


@pytest.mark.timeout(280)
def test_a_job_without_a_supervisor_outlives_its_parent(tmp_path: Path, paid_vendor: VendorProcess) -> None:
    """A script that was started with ``nohup`` goes on when its shell ends."""
    paid_vendor.configure(latency=Latency(0.1))
    lab = Lab(tmp_path, paid_vendor, deployment={"concurrency": CONCURRENCY})
    spec = lab.spec(write_jsonl(tmp_path / "in.jsonl", questions(120)), batch_rows=20)
    with supervised(spec, tmp_path / "job", "alone") as supervisor:
        kill_when_busy(paid_vendor, supervisor)
        assert outcome(tmp_path / "job")["summary"]["ok"] == 120
