"""Servers that tests start: on loopback ports, with their data in temporary folders.

No stray survives. A server runs in a session of its own, so that Ctrl-C reaches the tests alone and they stop it in
order; if the tests are killed outright, a watcher sees its pipe close and ends the server.

Standard library only at import, here and in the modules of single servers as far as ``scripts/ensure_services.py``
takes the look-up of binaries from them.
"""

from __future__ import annotations

import contextlib
import pwd
import random
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
            wait_until(self._ready_or_dead, READY_TIMEOUT_S)
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
                **as_user(self.user),
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


@contextlib.contextmanager
def temporary_folder(name: str, parent: Path | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running(server: S) -> Iterator[S]:
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


def as_user(user: str | None) -> dict[str, Any]:
    """Arguments for subprocess that give up root for this user, its group and no others."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not ready after {timeout_s:.0f} s")
        time.sleep(0.02)
