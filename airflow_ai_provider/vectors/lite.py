"""The Milvus Lite folders that this process has open.

Milvus Lite is a library that serves one folder to one process at a time, under a file lock. So whoever comes second
waits a bounded time for its turn, and letting go is explicit: ``MilvusClient.close`` alone keeps the lock until the
process ends. Inside one process any number of stores share the one server of a folder; the last one stops it.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from airflow_ai_provider.errors import PolicyError, StoreUnavailable

_START_ATTEMPTS = 3
"""A start may fail once because another process just looked whether the folder is free."""


class LiteServers:
    """Counts the stores of each folder."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._users: dict[Path, int] = {}

    def acquire(self, path: Path, wait_seconds: float) -> str:
        """Address of the server for ``path``, started if need be."""
        deadline = time.monotonic() + wait_seconds
        pause, refusals = 0.05, 0
        while True:
            locked = self._is_foreign(path)
            if not locked and (uri := self._start(path)) is not None:
                return uri
            refusals += not locked
            if refusals >= _START_ATTEMPTS:
                raise StoreUnavailable(
                    f"vector store {path}: Milvus Lite could not start on this folder; the log above says why"
                )
            left = deadline - time.monotonic()
            if left <= 0:
                raise StoreUnavailable(
                    f"vector store {path}: another process has it open (waited {wait_seconds:g} s). Milvus Lite "
                    "serves one process at a time: let that process finish, or for several processes run "
                    f"`milvus-lite server --data-dir {path} --host 127.0.0.1 --port 19530` or a Milvus server "
                    "and use its http:// address"
                )
            time.sleep(min(pause, left))
            pause = min(pause * 2, 1.0)

    def _is_foreign(self, path: Path) -> bool:
        with self._guard:
            return path not in self._users and _is_locked(path)

    def _start(self, path: Path) -> str | None:
        """None when Milvus Lite refuses: another process was quicker, or the folder is damaged."""
        from milvus_lite.server_manager import server_manager_instance

        with self._guard:
            uri: str | None = server_manager_instance.start_and_get_uri(str(path))
            if uri is not None:
                self._users[path] = self._users.get(path, 0) + 1
            return uri

    def release(self, path: Path) -> None:
        from milvus_lite.server_manager import server_manager_instance

        with self._guard:
            self._users[path] -= 1
            if self._users[path] == 0:
                del self._users[path]
                server_manager_instance.release_server(str(path))


lite_servers = LiteServers()


def _is_locked(path: Path) -> bool:
    """Whether a process holds Milvus Lite's LOCK. Asked first: a refused Milvus Lite logs a traceback."""
    import fcntl

    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "LOCK", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as refused:
        if path.is_file():
            raise PolicyError(
                f"vector store {path}: expected a folder and found a file, perhaps made by Milvus Lite 2. "
                "Name another path; the next sync fills it"
            ) from refused
        raise StoreUnavailable(
            f"vector store {path}: cannot be written ({type(refused).__name__}). Check the folder's permissions"
        ) from refused
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
