"""PostgreSQL as production has it: a server, PgBouncer before it, a streaming standby to fail over to.

What is tested is what runs in production: real servers, with ``fsync`` on where a test crashes one.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.server import MissingService, Server, as_user, running, temporary_folder, wait_until


def find_postgres() -> Path | None:
    """The folder of the newest PostgreSQL server binaries, or None."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    on_path = shutil.which("postgres")
    if on_path:
        folders.append(Path(on_path).parent)
    return next((f for f in folders if (f / "postgres").exists() and (f / "initdb").exists()), None)


def find_pgbouncer() -> Path | None:
    """The pgbouncer binary, or None."""
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.parent.name.split(".") if part.isdigit())


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
            **as_user(self.user),
        )
        if done.returncode:
            raise RuntimeError(f"initdb in {self.data} failed:\n{done.stdout}{done.stderr}")


class PgBouncer(Server):
    """A pooler in front of one PostgreSQL server, with the server's own user and password."""

    name = "pgbouncer"

    def __init__(
        self,
        folder: Path,
        upstream: PostgresServer,
        *,
        pool_mode: str = "transaction",
        pool_size: int = 5,
        settings: dict[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        binary = find_pgbouncer()
        if binary is None:
            raise MissingService(
                "pgbouncer is not installed (not on PATH, nor in /usr/sbin). "
                "Run: python scripts/ensure_services.py    or: sudo apt-get install pgbouncer"
            )
        self.binary = binary
        self.upstream = upstream
        self.user = "nobody" if os.geteuid() == 0 else None  # PgBouncer refuses to run as root
        self.settings = {"pool_mode": pool_mode, "default_pool_size": str(pool_size), **(settings or {})}

    def url_of(self, database: str, driver: str = "postgresql+psycopg") -> str:
        """SQLAlchemy URL of a database of the server behind the pooler."""
        return f"{driver}://postgres:{self.upstream.password}@127.0.0.1:{self.port}/{database}"

    def command(self) -> list[str]:
        self._configure()
        return [str(self.binary), str(self.folder / "pgbouncer.ini")]

    def answers(self) -> bool:
        try:
            self.admin("SHOW VERSION")
        except Exception:
            return False
        return True

    def admin(self, command: str) -> list[Any]:
        """Run a command of PgBouncer's console, such as ``RELOAD`` or ``SHOW POOLS``."""
        import psycopg

        with psycopg.connect(self.url_of("pgbouncer", "postgresql"), autocommit=True, connect_timeout=5) as console:
            cursor = psycopg.ClientCursor(console)  # the console speaks the simple protocol only
            cursor.execute(command.encode())
            return cursor.fetchall() if cursor.description else []

    def lead_to(self, upstream: PostgresServer) -> None:
        """Start the pooler anew in front of another server."""
        self.upstream = upstream
        self.restart()

    def _configure(self) -> None:
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(self.folder / "users.txt"),
            "admin_users": "postgres",
            "pidfile": "",
            "server_login_retry": "1",
            **self.settings,
        }
        target = f"host=127.0.0.1 port={self.upstream.port}"
        text = f"[databases]\n* = {target}\n[pgbouncer]\n" + "".join(f"{k} = {v}\n" for k, v in lines.items())
        self._write("pgbouncer.ini", text)
        self._write("users.txt", f'"postgres" "{self.upstream.password}"\n')

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        if self.user:
            owner = pwd.getpwnam(self.user)
            for each in (self.folder, path):
                os.chown(each, owner.pw_uid, owner.pw_gid)


class Standby(PostgresServer):
    """A streaming standby of a running server: it follows until it is promoted."""

    name = "standby"

    def __init__(self, folder: Path, primary: PostgresServer) -> None:
        self.primary = primary
        super().__init__(folder, fsync=primary.fsync)
        self._password = primary.password

    def promote(self) -> None:
        """Make it a primary, and wait until it takes writes."""
        self._execute("SELECT pg_promote(true, 60)")
        wait_until(lambda: not self.in_recovery(), 60)

    def in_recovery(self) -> bool:
        return bool(self.query("SELECT pg_is_in_recovery()")[0][0])

    def caught_up(self) -> bool:
        """Whether it has replayed everything that the primary has written."""
        (written,) = self.primary.query("SELECT pg_current_wal_lsn()")[0]
        return bool(self.query(f"SELECT pg_last_wal_replay_lsn() >= '{written}'")[0][0])

    def _initialise(self) -> None:
        if self.user:
            owner = pwd.getpwnam(self.user)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        source = f"host=127.0.0.1 port={self.primary.port} user=postgres password={self.primary.password}"
        done = subprocess.run(
            [
                *(str(self.binaries / "pg_basebackup"), "-d", source, "-D", str(self.data)),
                *("-R", "--checkpoint=fast", "--wal-method=stream", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            cwd=self.folder,
            check=False,
            **as_user(self.user),
        )
        if done.returncode:
            raise RuntimeError(f"pg_basebackup into {self.data} failed:\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def postgres_server(tmp: Path | None = None, *, fsync: bool = True) -> Iterator[PostgresServer]:
    """A running PostgreSQL server; its folder is made in ``tmp`` and removed at the end.

    Run by root, the server works as ``nobody``, who must be able to reach ``tmp``: leave it None then, for the
    system's folder of temporary files (pytest's own ``tmp_path`` is closed to other users).
    """
    with temporary_folder("postgres", tmp) as folder, running(PostgresServer(folder, fsync=fsync)) as server:
        yield server


@contextlib.contextmanager
def pgbouncer(upstream: PostgresServer, **options: Any) -> Iterator[PgBouncer]:
    """A running PgBouncer in front of a running server."""
    with temporary_folder("pgbouncer", None) as folder, running(PgBouncer(folder, upstream, **options)) as server:
        yield server


@contextlib.contextmanager
def standby(primary: PostgresServer) -> Iterator[Standby]:
    """A running standby of a running server."""
    with temporary_folder("standby", None) as folder, running(Standby(folder, primary)) as server:
        yield server
