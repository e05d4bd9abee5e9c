"""What production adds to PostgreSQL: PgBouncer, a streaming standby to fail over to, and clocks that are off.

As in ``services``: real servers on loopback ports, each in a folder and a session of its own, gone with the test.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services import MissingService, PostgresServer, Server, _as_user, _folder, _running, _until


def find_pgbouncer() -> Path | None:
    """The pgbouncer binary, or None."""
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def find_faketime() -> Path | None:
    """The library that gives a process another clock, or None."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


def faketime_library() -> Path:
    """Raises ``MissingService`` where it is not installed."""
    found = find_faketime()
    if found is None:
        raise MissingService(
            "libfaketime is not installed (no /usr/lib/*/faketime/libfaketimeMT.so.1). "
            "Run: python scripts/ensure_services.py    or: sudo apt-get install libfaketime"
        )
    return found


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
        _until(lambda: not self.in_recovery(), 60)

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
            **_as_user(self.user),
        )
        if done.returncode:
            raise RuntimeError(f"pg_basebackup into {self.data} failed:\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def pgbouncer(upstream: PostgresServer, **options: Any) -> Iterator[PgBouncer]:
    """A running PgBouncer in front of a running server."""
    with _folder("pgbouncer", None) as folder, _running(PgBouncer(folder, upstream, **options)) as server:
        yield server


@contextlib.contextmanager
def standby(primary: PostgresServer) -> Iterator[Standby]:
    """A running standby of a running server."""
    with _folder("standby", None) as folder, _running(Standby(folder, primary)) as server:
        yield server
