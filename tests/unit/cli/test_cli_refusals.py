"""Every command is declared as reading or changing; what changes is refused inside a task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.cli.cli_config import CLICommand, GroupCommand
from support.cli import airflow, install

from airflow_ai_provider.cli.arguments import CommandCall
from airflow_ai_provider.cli.definition import get_cli_commands

CHANGES = {
    "audit archive": ["--set-up"],
    "audit index rebuild": [],
    "budgets set": ["--period", "day", "--limit-usd", "9", "--reason", "more"],
    "deployments resume": ["small", "--reason", "more"],
    "keys adopt": ["keyring"],
    "keys generate": [],
    "keys reencrypt": ["rows.csv", "--sink", "new", "--team", "support", "--key", "id", "--columns", "text"],
    "keys rotate": [],
    "ledger check": ["--repair"],
    "ledger grant": ["reader"],
    "ledger maintain": ["--force", "--keep-months", "1"],
    "ledger reconcile": ["--invoice", "invoice.csv"],
    "ledger sweep": [],
    "policy pin": ["--reason", "more"],
    "policy unpin": ["0123", "--reason", "more"],
    "reuse purge": ["--team", "support"],
    "review decide": ["1", "--decision", "accepted"],
}
READS = {
    "ledger check": [],
    "ledger maintain --dry-run": ["--keep-months", "1"],
    "ledger sweep --dry-run": [],
    "reuse purge --dry-run": ["--team", "support"],
    "keys list": [],
    "review list": [],
    "budgets list": [],
    "cost": [],
    "policy pins": [],
}
SEALS = {"audit seal", "audit deliver"}


def commands(group: list[CLICommand] | tuple[CLICommand, ...], path: str = "") -> Iterator[tuple[str, object]]:
    for command in group:
        name = f"{path} {command.name}".strip()
        if isinstance(command, GroupCommand):
            yield from commands(list(command.subcommands), name)
        else:
            yield name.removeprefix("ai "), command.func


def declared(kind: str) -> set[str]:
    return {name for name, call in commands(get_cli_commands()) if isinstance(call, CommandCall) and call.kind == kind}


def test_every_command_says_whether_it_changes_anything() -> None:
    """A new command without a declaration fails here."""
    undeclared = [name for name, call in commands(get_cli_commands()) if not isinstance(call, CommandCall)]
    assert undeclared == []
    assert declared("changes") == set(CHANGES)
    assert declared("seals") == SEALS
    assert {name for name, _ in commands(get_cli_commands())} == declared("reads") | set(CHANGES) | SEALS


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_refused_inside_a_task(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, monkeypatch)
    monkeypatch.setenv("AIRFLOW_CTX_DAG_ID", "mine")
    before = files(tmp_path)
    assert airflow(*name.split(), *CHANGES[name]) == 2
    assert "cannot run inside a task (DAG mine)" in capsys.readouterr().err
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", READS)
def test_what_only_reads_is_not_refused_inside_a_task(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, monkeypatch)
    monkeypatch.setenv("AIRFLOW_CTX_DAG_ID", "mine")
    airflow(*name.split(), *READS[name])
    assert "inside a task" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ledger maintain", "keys generate", "ledger sweep"])
def test_outside_of_a_task_a_change_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    monkeypatch.delenv("AIRFLOW_CTX_DAG_ID", raising=False)
    assert airflow(*name.split()) == 0
