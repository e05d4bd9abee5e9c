"""A small Airflow installation in a folder, and scripts that run in it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def make_home(home: Path, *, dags: str, policy: str, texts: Sequence[str]) -> None:
    """``dags/``, ``policy.yaml`` and ``rows.csv`` with the columns ``id`` (r0, r1, …) and ``text``."""
    (home / "dags").mkdir()
    (home / "dags" / "dags.py").write_text(dags)
    (home / "policy.yaml").write_text(policy)
    with (home / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *[[f"r{number}", text] for number, text in enumerate(texts)]])


def run_in(home: Path, script: str, *arguments: str, timeout: float = 280) -> None:
    """Run a Python script that uses Airflow; what it says is in ``run.log``. Fails the test where the script fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__AI__HOME": str(home / "ai"),
        "AIRFLOW__AI__POLICY_PATH": str(home / "policy.yaml"),
    }
    command = [sys.executable, "-c", script, *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    (home / "run.log").write_text(ran.stdout + ran.stderr)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
