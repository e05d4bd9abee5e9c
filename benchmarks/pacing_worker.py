"""One worker process that drives nothing but the gates: rows of no meaning, sent by a tiny client to the vendor double.

    pacing_worker.py JSON

Takes a ``Load`` as JSON, says ``ready`` on standard output, begins when it is told so on standard input, and prints a
``Report`` as JSON. The tests and bench_pacing.py start several.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import uvloop

from airflow_ai_provider.core.ledger.call_costs import Usage
from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.ratelimit import CircuitChanged, Gate, open_gates
from airflow_ai_provider.errors import DeploymentResting, VendorTransientError


@dataclass(frozen=True)
class Load:
    """What one worker does."""

    urls: dict[str, str]
    """Base URL of each deployment, in order of preference."""
    deployments: dict[str, dict[str, Any]]
    seconds: float
    rows_at_once: int
    cache_url: str | None = None
    team: str = "one"
    expected_tokens: tuple[int, int] = (10, 10)
    """Input and output."""


@dataclass
class Report:
    """What came of it."""

    statuses: dict[str, dict[str, int]] = field(default_factory=dict)
    """How many answers of which HTTP status, by deployment; ``0`` is a lost connection."""
    cpu_seconds: float = 0.0
    unanswered: int = 0
    """Rows that no deployment would take."""
    changes: list[tuple[float, str, str]] = field(default_factory=list)
    """Unix time, deployment and new state of each change of a circuit."""
    last_sent: dict[str, float] = field(default_factory=dict)
    """Unix time of the last request, by deployment."""


class Client:
    """Rows, one after the other, until the time is up."""

    def __init__(self, load: Load, session: aiohttp.ClientSession) -> None:
        self._load = load
        self._session = session
        self._counts = {name: Counter[str]() for name in load.urls}
        self.report = Report()
        deployments = {name: Deployment.model_validate(said) for name, said in load.deployments.items()}
        self._gates = open_gates(deployments, team=load.team, cache_url=load.cache_url, on_change=self._changed)
        self._number = 0

    def _changed(self, change: CircuitChanged) -> None:
        self.report.changes.append((time.time(), change.deployment, change.state))

    async def run(self) -> Report:
        rows = [asyncio.create_task(self._rows()) for _ in range(self._load.rows_at_once)]
        _, late = await asyncio.wait(rows, timeout=self._load.seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*rows, return_exceptions=True)
        for gate in self._gates.values():
            await gate.close()
        self.report.statuses = {name: dict(counts) for name, counts in self._counts.items()}
        self.report.cpu_seconds = time.process_time()
        return self.report

    async def _rows(self) -> None:
        while True:
            if not await self._row():
                self.report.unanswered += 1
                await asyncio.sleep(0.05)

    async def _row(self) -> bool:
        for name, gate in self._gates.items():
            with suppress(DeploymentResting):
                if await self._call(name, gate):
                    return True
        return False

    async def _call(self, name: str, gate: Gate) -> bool:
        expected_input, expected_output = self._load.expected_tokens
        passed = await gate.enter(input_tokens=expected_input, output_tokens=expected_output)
        started = time.monotonic()
        try:
            status, usage, error = await self._post(name)
            self._counts[name][str(status)] += 1
            if error is None:
                passed.answered(usage=usage, limits=None, seconds=time.monotonic() - started)
            else:
                passed.failed(error, time.monotonic() - started)
        finally:
            passed.leave()
        return error is None

    async def _post(self, name: str) -> tuple[int, Usage | None, VendorTransientError | None]:
        self._number += 1
        body = {"model": name, "max_tokens": 5, "messages": [{"role": "user", "content": f"row {self._number}"}]}
        headers = {"Content-Type": "application/json", "X-Team": self._load.team}
        self.report.last_sent[name] = time.time()
        url = f"{self._load.urls[name]}/chat/completions"
        try:
            async with self._session.post(url, data=orjson.dumps(body), headers=headers) as response:
                answer = orjson.loads(await response.read())
                status, wait = response.status, response.headers.get("retry-after-ms")
        except (OSError, aiohttp.ClientError, ValueError):
            return 0, None, VendorTransientError("lost", kind="connection_lost")
        if status == 200:
            return status, Usage(answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]), None
        after = int(wait) / 1000 if wait else None
        return status, None, VendorTransientError("refused", kind="refused", http_status=status, retry_after=after)


async def _run(load: Load) -> Report:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30)) as session:
        client = Client(load, session)
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        return await client.run()


class Worker:
    """Such a process, as others see it."""

    def __init__(self, load: Load) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(load))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout

    def wait_until_ready(self) -> None:
        if (said := self._out.readline().strip()) != "ready":
            raise RuntimeError(f"a worker said {said!r} instead of ready; what went wrong is on stderr")

    def begin(self) -> None:
        self._in.write("\n")
        self._in.flush()

    def report(self) -> Report:
        """What it did, once it is done."""
        answer = self._out.readline()
        self.process.wait()
        return Report(**json.loads(answer))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def start(loads: Sequence[Load]) -> list[Worker]:
    """Workers that begin together."""
    workers = [Worker(load) for load in loads]
    for worker in workers:
        worker.wait_until_ready()
    for worker in workers:
        worker.begin()
    return workers


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(_run(Load(**json.loads(sys.argv[1])))))), flush=True)
