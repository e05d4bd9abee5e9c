"""Runs map jobs in processes of their own, to be killed, raced and shared between.

Real processes, forked by a fork server that has imported the heart once: an import costs seconds of CPU, a fork
milliseconds, and a task of Airflow is forked in the same way.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import orjson

from airflow_ai_provider.core.job import Caller, MapJob
from airflow_ai_provider.core.settings import Settings
from support.clock import faketime_library

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("airflow_ai_provider.core.jobs.llm_map", "airflow_ai_provider.core.providers.openai_compatible"),
        *("sqlalchemy.dialects.postgresql.psycopg", "alembic.command", "redis.asyncio", "pandas"),
    ]
)


@dataclass(frozen=True, slots=True)
class Spec:
    """One run of a job, as a process gets it."""

    job: MapJob
    caller: Caller
    settings: Settings
    log_level: int = logging.INFO


class JobProcess:
    """A job under way in a process of its own. ``folder`` gets its log and what came of it.

    ``clock_offset`` is how many seconds its clock is ahead of this process', which takes a fresh interpreter.
    """

    def __init__(self, spec: Spec, folder: Path, *, clock_offset: int = 0) -> None:
        folder.mkdir(parents=True)
        self.log_file = folder / "log.txt"
        self._outcome = folder / "outcome.json"
        arguments = (spec, self.log_file, self._outcome)
        self._process: ForkServerProcess | _ShiftedProcess = (
            _ShiftedProcess(arguments, folder, clock_offset)
            if clock_offset
            else _CONTEXT.Process(target=work, args=arguments)
        )
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """``kill -9``, and wait until the process is gone."""
        self._process.kill()
        self._process.join()

    def outcome(self, timeout: float = 100) -> dict[str, Any]:
        """``{"summary": …}``, or ``{"error": …, "message": …}`` for one of our errors; waits for the end."""
        self._process.join(timeout)
        if self._process.is_alive():
            self.kill()
            raise AssertionError(f"the job did not end within {timeout:.0f} s; its log ends:\n{self._log_tail()}")
        if not self._outcome.exists():
            raise AssertionError(f"the job's process ended with {self._process.exitcode}:\n{self._log_tail()}")
        found: dict[str, Any] = orjson.loads(self._outcome.read_bytes())
        return found

    def summary(self, timeout: float = 100) -> dict[str, Any]:
        """The summary of a job that must not fail."""
        outcome = self.outcome(timeout)
        assert "summary" in outcome, f"{outcome}\n{self._log_tail()}"
        summary: dict[str, Any] = outcome["summary"]
        return summary

    def _log_tail(self) -> str:
        return self.log_file.read_text(errors="replace")[-3000:] if self.log_file.exists() else "(no log)"


class _ShiftedProcess:
    """``work`` in an interpreter of its own whose wall clock is off; its monotonic clock is the machine's."""

    def __init__(self, arguments: tuple[Spec, Path, Path], folder: Path, offset: int) -> None:
        self._call = folder / "call.pickle"
        self._call.write_bytes(pickle.dumps(arguments))
        self._offset = offset
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        clock = {"LD_PRELOAD": str(faketime_library()), "FAKETIME": f"{self._offset:+d}"}
        path = os.pathsep.join(sys.path)
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "support.map_process", str(self._call)],
            env={**os.environ, **clock, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "PYTHONPATH": path},
        )

    def is_alive(self) -> bool:
        return self._started.poll() is None

    def kill(self) -> None:
        self._started.kill()

    def join(self, timeout: float | None = None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._started.wait(timeout)

    @property
    def exitcode(self) -> int | None:
        return self._started.returncode

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._popen is not None
        return self._popen


def work(spec: Spec, log_file: Path, outcome: Path) -> None:
    """In the process: whatever anybody logs, or prints, goes to the log file."""
    from airflow_ai_provider.core.jobs.llm_map import run_map
    from airflow_ai_provider.errors import AIProviderError
    from airflow_ai_provider.hooks.tasks import watch_supervisor

    said = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    logging.basicConfig(level=spec.log_level, force=True)
    for name in ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router"):
        logging.getLogger(name).setLevel(logging.DEBUG if spec.log_level == logging.DEBUG else logging.WARNING)
    try:
        summary = run_map(
            spec.job, spec.caller, spec.settings, log=logging.getLogger("task"), wanted=watch_supervisor()
        )
        result: Mapping[str, Any] = {"summary": asdict(summary)}
    except AIProviderError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    except BaseException:
        logging.getLogger("task").exception("the job ended with an error that is not ours")
        raise
    outcome.write_bytes(orjson.dumps(result))


def prompt_with_bad_rows(row: Mapping[str, Any]) -> str:
    """A prompt function that fails for some rows, in its own ways."""
    match row["id"]:
        case "raises":
            raise ValueError(f"cannot deal with {row['text']}")
        case "surrogate":
            return f"half of a pair: \ud83d {row['text']}"
        case "nothing":
            return None  # type: ignore[return-value]  # as a user's function may
        case _:
            return f"Answer this: {row['text']}"


if __name__ == "__main__":
    from support import map_process  # so that what was pickled finds its classes

    map_process.work(*pickle.loads(Path(sys.argv[1]).read_bytes()))
