"""A Redis server that keeps nothing on disk."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from support.server import MissingService, Server, running, temporary_folder


def find_redis() -> Path | None:
    """The redis-server binary, or None."""
    found = shutil.which("redis-server") or shutil.which("redis-server", path="/usr/bin:/usr/local/bin")
    return Path(found) if found else None


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
def redis_server(tmp: Path | None = None) -> Iterator[RedisServer]:
    """A running Redis server; its folder is made in ``tmp`` and removed at the end."""
    with temporary_folder("redis", tmp) as folder, running(RedisServer(folder)) as server:
        yield server
