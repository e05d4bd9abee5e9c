"""Real PostgreSQL and Redis servers for tests, on loopback ports, with their data in temporary folders.

Two invariants:

* No stray survives. A server runs in a session of its own, so that Ctrl-C reaches the tests alone and they stop
  it in order; if the tests are killed outright, a watcher sees its pipe close and ends the server.
* What is tested is what runs in production: real servers, and PostgreSQL with ``fsync`` on where a test crashes it.

Standard library only at import; scripts/ensure_services.py takes the look-up of binaries from here.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
PORTS = range(20_000, 32_000)  # below Linux's ephemeral range: no outgoing connection takes a port during a restart

S = TypeVar("S", bound="Server")


class MissingService(RuntimeError):
    """A server that the tests need is not installed on this machine."""


def find_postgres() -> Path | None:
    """The folder of the newest PostgreSQL server binaries, or None."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    on_path = shutil.which("postgres")
    if on_path:
        folders.append(Path(on_path).parent)
    return next((f for f in folders if (f / "postgres").exists() and (f / "initdb").exists()), None)


def find_redis() -> Path | None:
    """The redis-server binary, or None."""
    found = shutil.which("redis-server") or shutil.which("redis-server", path="/usr/bin:/usr/local/bin")
    return Path(found) if found else None


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.parent.name.split(".") if part.isdigit())


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise RuntimeError(f"no free port on 127.0.0.1 between {PORTS.start} and {PORTS.stop}: stop some servers")


class Server:
    """One server process. Stopped and started again it keeps its port and its data."""

    name = "server"
    stop_signal = signal.SIGTERM
    crash_signal = signal.SIGKILL
    user: str | None = None  # None: the user who runs the tests

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether the server takes commands now."""
        raise NotImplementedError

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start and wait until it answers. Nothing happens if it runs already."""
        if self.running:
            return
        self._launch()
        try:
            _until(self._ready_or_dead, READY_TIMEOUT_S)
        except BaseException:
            self.crash()
            raise
        if not self.running:
            self._forget()
            raise RuntimeError(f"{self.name} on port {self.port} ended at once; its log says:\n{self._log_tail()}")

    def stop(self) -> None:
        """Stop in order; by force if it takes too long. Nothing happens if it does not run."""
        self._end(self.stop_signal)

    def crash(self) -> None:
        """End at once, as a power cut would: nothing is flushed on the way out."""
        self._end(self.crash_signal)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _launch(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                **_as_user(self.user),
            )
        # Its stdin closes when this process ends, however it ends. Then it does what nobody else can any more.
        script = (
            f'read -r _; kill -{self.crash_signal.value} "$1"; tries=0; '
            'while kill -0 "$1" && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done; rm -rf -- "$2"'
        )
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", script, "watcher", str(self._process.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _ready_or_dead(self) -> bool:
        return not self.running or self.answers()

    def _end(self, first: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        for sig in (first, self.crash_signal, signal.SIGKILL):
            process.send_signal(sig)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
                break
        self._forget()

    def _forget(self) -> None:
        self._process = None
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.wait()
            if self._watcher.stdin is not None:
                self._watcher.stdin.close()
        self._watcher = None

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else "(no log)"


class PostgresServer(Server):
    """A PostgreSQL server with one superuser, reached over TCP with a password made for this run."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": sessions are ended, a checkpoint is written
    crash_signal = signal.SIGQUIT  # "immediate": no checkpoint, the next start recovers from the write-ahead log

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        super().__init__(folder)
        binaries = find_postgres()
        if binaries is None:
            raise MissingService(
                "PostgreSQL server binaries are not installed (no /usr/lib/postgresql/*/bin/postgres, none on PATH). "
                "Run: python scripts/ensure_services.py    or: sudo apt-get install postgresql"
            )
        self.binaries = binaries
        self.fsync = fsync
        self.user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        self.data = folder / "data"
        self._password = secrets.token_hex(16)
        self._initialise()

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the maintenance database."""
        return self.url_of("postgres")

    def url_of(self, database: str, driver: str = "postgresql+psycopg") -> str:
        return f"{driver}://postgres:{self._password}@127.0.0.1:{self.port}/{database}"

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "on" if self.fsync else "off",
            "max_connections": "200",
            "shared_buffers": "64MB",
            "timezone": "UTC",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.binaries / "postgres"), "-D", str(self.data), *options]

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url_of("postgres", "postgresql"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    @property
    def password(self) -> str:
        """The superuser's password, made for this run."""
        return self._password

    def query(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """The rows of a statement, run by the superuser in a transaction of its own."""
        import psycopg

        url = self.url_of(database, "postgresql")
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, *, template: str = "template0") -> str:
        """Create a database, a copy of ``template`` or empty, and return its SQLAlchemy URL."""
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url_of(name)

    def drop_database(self, name: str) -> None:
        """Drop a database and end the sessions that are still on it."""
        self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        self.query(statement)

    def _initialise(self) -> None:
        password_file = self.folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        if self.user:
            owner = pwd.getpwnam(self.user)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
            os.chown(password_file, owner.pw_uid, owner.pw_gid)
        done = subprocess.run(
            [
                *(str(self.binaries / "initdb"), "-D", str(self.data), "-U", "postgres"),
                *("--auth=scram-sha-256", f"--pwfile={password_file}"),
                *("--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            cwd=self.folder,
            check=False,
            **_as_user(self.user),
        )
        if done.returncode:
            raise RuntimeError(f"initdb in {self.data} failed:\n{done.stdout}{done.stderr}")


class RedisServer(Server):
    """A Redis server that keeps nothing on disk."""

    name = "redis"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        binary = find_redis()
        if binary is None:
            raise MissingService(
                "redis-server is not installed (not on PATH, nor in /usr/bin). "
                "Run: python scripts/ensure_services.py    or: sudo apt-get install redis-server"
            )
        self.binary = binary

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        return [
            *(str(self.binary), "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--save", "", "--appendonly", "no", "--dir", str(self.folder)),
        ]

    def answers(self) -> bool:
        return self._say("PING") == "+PONG"

    def flush(self) -> None:
        """Empty every database."""
        if self._say("FLUSHALL") != "+OK":
            raise RuntimeError(f"redis on port {self.port} did not take FLUSHALL")

    def _say(self, command: str) -> str:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(f"{command}\r\n".encode())
                return connection.recv(64).decode().strip()
        except OSError:
            return ""


@contextlib.contextmanager
def postgres_server(tmp: Path | None = None, *, fsync: bool = True) -> Iterator[PostgresServer]:
    """A running PostgreSQL server; its folder is made in ``tmp`` and removed at the end.

    Run by root, the server works as ``nobody``, who must be able to reach ``tmp``: leave it None then, for the
    system's folder of temporary files (pytest's own ``tmp_path`` is closed to other users).
    """
    with _folder("postgres", tmp) as folder, _running(PostgresServer(folder, fsync=fsync)) as server:
        yield server


@contextlib.contextmanager
def redis_server(tmp: Path | None = None) -> Iterator[RedisServer]:
    """A running Redis server; its folder is made in ``tmp`` and removed at the end."""
    with _folder("redis", tmp) as folder, _running(RedisServer(folder)) as server:
        yield server


@contextlib.contextmanager
def _folder(name: str, parent: Path | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _running(server: S) -> Iterator[S]:
    try:
        _start_on_a_free_port(server)
        yield server
    finally:
        server.stop()


def _start_on_a_free_port(server: Server, attempts: int = 5) -> None:
    """Start; if another process took the port in the meantime, try another one."""
    for attempt in range(1, attempts + 1):
        try:
            server.start()
        except RuntimeError as error:
            if attempt == attempts or "in use" not in str(error):
                raise
            server.port = free_port()
        else:
            return


def _as_user(user: str | None) -> dict[str, Any]:
    """Arguments for subprocess that give up root for this user, its group and no others."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def _until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not ready after {timeout_s:.0f} s")
        time.sleep(0.02)
