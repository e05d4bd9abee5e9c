"""Run the double: in a thread of this process, in a process of its own, or from a shell.

``VendorDouble`` and ``VendorProcess`` have one face. Take the process where the double's CPU time must not be the
client's, or where one of the two is to be killed. The shell form prints its URL as the first line::

    python -m airflow_ai_provider.testing.vendor --port 0 --invoice invoice.jsonl --rate-429 0.02
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import orjson

from airflow_ai_provider.testing.behaviour import Behaviour, Changes
from airflow_ai_provider.testing.invoice import InvoiceLine
from airflow_ai_provider.testing.journal import ReceivedRequest, Stats, read_requests
from airflow_ai_provider.testing.server import HOST, VendorServer
from airflow_ai_provider.testing.shell import new_event_loop

T = TypeVar("T")

_START_S = 30.0
_MODULE = "airflow_ai_provider.testing.vendor"
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Vendor(ABC):
    """What tests do with a double, however it runs."""

    requests_file: Path | None
    port: int

    @property
    def base_url(self) -> str:
        """What a client takes as OpenAI's base URL: ends in ``/v1``."""
        return f"http://{HOST}:{self.port}/v1"

    @abstractmethod
    def start(self) -> None:
        """Listen; after a stop on the same port."""

    @abstractmethod
    def stop(self) -> None:
        """Stop listening and drop every connection."""

    @abstractmethod
    def configure(self, **changes: Unpack[Changes]) -> None:
        """Change settings while it runs. Raises ``ValueError`` for a setting that is wrong."""

    @abstractmethod
    def invoice(self) -> list[InvoiceLine]:
        """Every line charged since the start or the last reset."""

    @abstractmethod
    def stats(self) -> Stats: ...

    @abstractmethod
    def reset(self) -> None:
        """Forget invoice, requests, counts and remembered answers. Settings stay, and files keep what they hold."""

    @abstractmethod
    def _kept_requests(self) -> tuple[int, list[ReceivedRequest]]:
        """How many requests memory no longer holds, and those it does."""

    def requests(self) -> list[ReceivedRequest]:
        """The last requests received, oldest first."""
        return self._kept_requests()[1]

    def find(self, text: str) -> list[ReceivedRequest]:
        """Requests that held ``text`` anywhere: in a header, or unescaped in any string of the body.

        Raises ``RuntimeError`` where requests were forgotten and no file has them: nothing found would prove nothing.
        """
        return [request for request in self._all_requests() if any(text in part for part in request.texts())]

    def _all_requests(self) -> Iterable[ReceivedRequest]:
        if self.requests_file is not None:
            return read_requests(self.requests_file) if self.requests_file.exists() else ()
        forgotten, kept = self._kept_requests()
        if forgotten:
            raise RuntimeError(f"{forgotten} requests are no longer in memory: give the double a requests_file")
        return kept

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class VendorDouble(Vendor):
    """The double in a thread of this process. Keyword arguments are the fields of ``Behaviour``."""

    def __init__(
        self,
        *,
        port: int = 0,
        invoice_file: Path | None = None,
        requests_file: Path | None = None,
        **behaviour: Unpack[Changes],
    ) -> None:
        self.port = port
        self.requests_file = requests_file
        self._server = VendorServer(Behaviour().changed(behaviour), invoice_file, requests_file)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._loop is not None:
            return
        loop = self._loop = new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="vendor-double", daemon=True)
        self._thread.start()
        try:
            opened = asyncio.run_coroutine_threadsafe(self._server.open(self.port), loop)
            self.port = opened.result(_START_S)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._server.close(), loop).result(_START_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_START_S)
        loop.close()
        self._loop = self._thread = None

    def configure(self, **changes: Unpack[Changes]) -> None:
        self._in_its_thread(lambda: self._server.behave(changes))

    def invoice(self) -> list[InvoiceLine]:
        return self._server.invoice.lines()

    def stats(self) -> Stats:
        return self._in_its_thread(self._server.stats)

    def reset(self) -> None:
        self._in_its_thread(self._server.forget)

    def _kept_requests(self) -> tuple[int, list[ReceivedRequest]]:
        return self._in_its_thread(lambda: (self._server.journal.forgotten, self._server.journal.requests()))

    def _in_its_thread(self, act: Callable[[], T]) -> T:
        """Between two requests, so that nothing is seen half done."""
        if self._loop is None:
            return act()

        async def acted() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(acted(), self._loop).result(_START_S)


class VendorProcess(Vendor):
    """The double in a process of its own, which ends with this one. Its memory is lost when it is killed."""

    def __init__(
        self,
        *,
        port: int = 0,
        invoice_file: Path | None = None,
        requests_file: Path | None = None,
        **behaviour: Unpack[Changes],
    ) -> None:
        self.port = port
        self.requests_file = requests_file
        self._invoice_file = invoice_file
        self._behaviour = Behaviour().changed(behaviour)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._process is not None:
            return
        command = [sys.executable, "-m", _MODULE, "--with-parent", "--port", str(self.port)]
        for option, file in (("--invoice", self._invoice_file), ("--requests", self.requests_file)):
            command += [option, str(file)] if file else []
        # Quiet about Ctrl-C: the parent stops it, in its own time.
        self._process = subprocess.Popen(  # noqa: S603  (our own module, no shell)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": _with_package_root(os.environ.get("PYTHONPATH"))},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        url = self._process.stdout.readline().decode().strip()
        if not url:
            self.kill()
            raise RuntimeError("the double's process ended before it listened; what it said is on stderr")
        self.port = int(url.removesuffix("/v1").rpartition(":")[2])
        self._ask("POST", "config", asdict(self._behaviour))

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._reap()

    def prioritize(self, nice: int) -> None:
        """Run it at another priority, as ``nice`` counts: a vendor's servers are not slowed by its clients' machine.

        Raises ``PermissionError`` where this user may not.
        """
        if self._process is not None:
            os.setpriority(os.PRIO_PROCESS, self._process.pid, nice)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            try:
                process.wait(_START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def configure(self, **changes: Unpack[Changes]) -> None:
        self._behaviour = self._behaviour.changed(changes)
        self._ask("POST", "config", {name: getattr(self._behaviour, name) for name in changes})

    def invoice(self) -> list[InvoiceLine]:
        return [InvoiceLine(**line) for line in self._ask("GET", "invoice")]

    def stats(self) -> Stats:
        return Stats(**self._ask("GET", "stats"))

    def reset(self) -> None:
        self._ask("POST", "reset")

    def _kept_requests(self) -> tuple[int, list[ReceivedRequest]]:
        answer = self._ask("GET", "requests")
        return answer["forgotten"], [ReceivedRequest(**request) for request in answer["requests"]]

    def _ask(self, method: str, what: str, body: Mapping[str, Any] | None = None) -> Any:
        url = f"http://{HOST}:{self.port}/_double/{what}"
        request = urllib.request.Request(url, orjson.dumps(body or {}) if method == "POST" else None, method=method)
        try:
            with _NO_PROXY.open(request, timeout=_START_S) as response:
                return orjson.loads(response.read())
        except urllib.error.HTTPError as error:
            raise ValueError(orjson.loads(error.read())["error"]) from None


def _with_package_root(path: str | None) -> str:
    root = str(Path(__file__).resolve().parents[2])
    return f"{root}{os.pathsep}{path}" if path else root


if __name__ == "__main__":
    from airflow_ai_provider.testing.shell import main

    sys.exit(main())
