"""An installation with a policy and a few answers, and ``airflow ai …`` through Airflow's own parser."""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import Any

import pytest
from airflow.cli.cli_parser import get_parser

from airflow_ai_provider.core.job import Caller, MapJob
from airflow_ai_provider.core.jobs.llm_map import run_map
from airflow_ai_provider.hooks.settings import settings_from_airflow

POLICY = """\
version: 1
deployments: {offline: {model: offline/extractive, price: {input_per_mtok: 1, output_per_mtok: 2}}}
routes: {support: {tiers: {simple: [offline]}, masking: "off"}}
budgets: [{team: support, period: day, limit_usd: 5}]
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make ``[ai]`` point into a folder."""
    monkeypatch.setenv("AIRFLOW__AI__HOME", str(folder / "ai"))
    monkeypatch.setenv("AIRFLOW__AI__POLICY_PATH", str(folder / "policy.yaml"))
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    (folder / "policy.yaml").write_text(POLICY)
    return folder


def answer(folder: Path, run_id: str = "r") -> Path:
    """Two rows, answered in one run."""
    (folder / "rows.csv").write_text("id,text\n1,one\n2,two\n")
    job = MapJob(str(folder / "rows.csv"), str(folder / f"out-{run_id}"), "{{ text }}", "id", "support", "support")
    log: Any = types.SimpleNamespace(info=lambda *_: None, warning=lambda *_: None)
    run_map(job, Caller("d", run_id, "t", user="ada"), settings_from_airflow(), log=log)
    return folder


def airflow(*words: str) -> int:
    """Run a command as Airflow would; returns its exit status."""
    args: argparse.Namespace = get_parser().parse_args(["ai", *words])
    try:
        args.func(args)
    except SystemExit as left:
        return int(left.code or 0)
    return 0
