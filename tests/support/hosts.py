"""A host in processes of its own: one that runs jobs, one that delivers and seals, until a file says stop."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_ai_provider.core.settings import Settings
from airflow_ai_provider.errors import TransientError
from support.map_process import _CONTEXT, Spec


class Host:
    """The processes of one host. ``folder`` gets what they log; they end when it holds a file ``stop``."""

    def __init__(self, spec: Spec, folder: Path, *, seal_every: float) -> None:
        self.settings = spec.settings
        self._folder = folder
        folder.mkdir(parents=True)
        parts: list[tuple[Any, tuple[Any, ...]]] = [
            (_run_jobs, (spec, folder)),
            (_run_sealer, (spec.settings, folder, seal_every)),
        ]
        self._processes = [_CONTEXT.Process(target=target, args=args) for target, args in parts]
        for process in self._processes:
            process.start()

    def check(self) -> None:
        """Both processes are alive."""
        for process in self._processes:
            assert process.is_alive(), self.log()

    def stop(self) -> None:
        (self._folder / "stop").touch()
        for process in self._processes:
            process.join(60)
            assert process.exitcode == 0, self.log()

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self._folder.glob("*.txt")))


def _run_jobs(spec: Spec, folder: Path) -> None:
    """Answer the rows again and again, each time in another run of the DAG: the second finds stored answers."""
    from airflow_ai_provider.core.jobs.llm_map import run_map

    _log_to(folder / "jobs.txt")
    number = 0
    while not (folder / "stop").exists():
        number += 1
        caller = replace(spec.caller, run_id=f"{spec.caller.run_id}-{number}")
        prompt = f"{spec.job.prompt} ({spec.caller.run_id} {number // 2})"
        job = replace(spec.job, sink=f"{spec.job.sink}-{number}", prompt=prompt)
        run_map(job, caller, spec.settings, log=logging.getLogger("task"))
        time.sleep(1.5)  # what is verified stays small


def _run_sealer(settings: Settings, folder: Path, every: float) -> None:
    from airflow_ai_provider.core.administration.audit import seal_audit
    from airflow_ai_provider.core.administration.audit_delivery import deliver_audit

    _log_to(folder / "sealer.txt")
    while True:
        ends = (folder / "stop").exists()
        report = deliver_audit(settings)
        assert report.is_good, report
        try:
            seal_audit(settings)
        except TransientError:
            logging.getLogger("sealer").exception("sealed nothing")
        if ends:
            return
        for _ in range(int(every * 20)):
            if not (folder / "stop").exists():
                time.sleep(0.05)


def _log_to(path: Path) -> None:
    said = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    logging.basicConfig(level=logging.WARNING, force=True, stream=sys.stderr)
