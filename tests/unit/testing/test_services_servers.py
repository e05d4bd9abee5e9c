"""The real servers that tests run on: they keep data over a restart and leave nothing behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
import redis
from support.postgres import PostgresServer, postgres_server
from support.redis_server import RedisServer, redis_server
from support.server import MissingService

TESTS = Path(__file__).resolve().parents[2]


def rows(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.parametrize("fsync", ["on", "off"])
def test_postgres_keeps_its_rows_over_a_stop_and_over_a_crash(fsync: str) -> None:
    """Committed rows are there after a stop in order and after a crash of the server alone, whatever fsync is."""
    with postgres_server(fsync=fsync == "on") as server:
        url = server.create_database("kept")
        rows(url, "CREATE TABLE t (n int); INSERT INTO t VALUES (1)")
        server.stop()
        assert not server.running
        with pytest.raises(psycopg.OperationalError):
            rows(url, "SELECT 1")
        server.start()
        rows(url, "INSERT INTO t VALUES (2)")
        server.crash()
        server.start()
        assert rows(url, "SELECT n FROM t ORDER BY n") == [(1,), (2,)]
        assert rows(url, "SHOW fsync") == [(fsync,)]


def test_each_test_has_a_database_of_its_own(postgres: PostgresServer, postgres_url: str) -> None:
    """A database is made with UTF-8 and C locale, and dropped although a session is still on it."""
    other = postgres.create_database("other")
    assert other != postgres_url
    assert rows(other, "SHOW server_encoding") == [("UTF8",)]
    with psycopg.connect(other.replace("+psycopg", "")):
        postgres.drop_database("other")
    assert rows(postgres.url, "SELECT 1 FROM pg_database WHERE datname = 'other'") == []


def test_redis_stops_starts_and_empties(redis_service: RedisServer, empty_redis_url: str) -> None:
    client = redis.Redis.from_url(empty_redis_url)
    client.set("k", "v")
    assert client.dbsize() == 1
    redis_service.restart()
    assert client.dbsize() == 0
    redis_service.crash()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    redis_service.start()
    assert client.ping()


def test_a_server_ends_and_its_folder_goes_when_the_test_fails(tmp_path: Path) -> None:
    pids: list[int] = []

    def fails() -> None:
        with redis_server(tmp_path) as server:
            assert server._process is not None
            pids.append(server._process.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert gone(pids[0])
    assert list(tmp_path.iterdir()) == []


def test_servers_end_when_the_tests_are_killed_outright() -> None:
    """kill -9 of the process that started them leaves no server and no folder behind."""
    script = (
        f"import sys, time; sys.path.insert(0, {str(TESTS)!r}); from support.redis_server import redis_server\n"
        "with redis_server() as s:\n    print(s._process.pid, s.folder, flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid, folder = owner.stdout.readline().split()
        watched = os.pidfd_open(int(pid))
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    readable, _, _ = select.select([watched], [], [], 20)
    os.close(watched)
    assert readable, f"redis {pid} is still running"
    deadline = time.monotonic() + 20
    while Path(folder).exists():
        assert time.monotonic() < deadline, f"{folder} is still there"


@pytest.mark.parametrize("end", ["in order", "killed"])
def test_what_a_run_of_the_tests_writes_to_the_temporary_folder_goes_with_it(tmp_path: Path, end: str) -> None:
    """Also what a process left that it started and that was killed."""
    leaves = "import tempfile, os; print(tempfile.mkdtemp(), flush=True); os.kill(os.getpid(), 9)"
    script = (
        f"import subprocess, sys; sys.path.insert(0, {str(TESTS)!r}); from support.temporary import use_own_folder\n"
        f"use_own_folder(); use_own_folder()\n"
        f"subprocess.run([sys.executable, '-c', {leaves!r}])\n"
        "sys.stdin.read()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "AI_TESTS_FOLDER"}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "TMPDIR": str(tmp_path)},
    ) as run:
        assert run.stdout is not None
        left = Path(run.stdout.readline().strip())
        assert left.is_dir()
        assert left.parent.parent == tmp_path
        if end == "killed":
            run.kill()
    while list(tmp_path.iterdir()):
        time.sleep(0.02)


def test_a_missing_server_is_named_with_the_command_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.postgres.find_postgres", lambda: None)
    monkeypatch.setattr("support.redis_server.find_redis", lambda: None)
    with pytest.raises(MissingService, match="apt-get install postgresql"), postgres_server():
        pass
    with pytest.raises(MissingService, match="apt-get install redis-server"), redis_server():
        pass
