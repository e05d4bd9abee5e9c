"""Importing the operators costs a DAG file next to nothing: Airflow parses it again every half minute."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import airflow_ai_provider

HEAVY = {
    "alembic",
    "great_expectations",
    "litellm",
    "matplotlib",
    "milvus_lite",
    "numpy",
    "pandas",
    "pyarrow",
    "pymilvus",
    "redis",
    "yaml",
}
"""None of these may be loaded because of us."""
PACKAGE = Path(airflow_ai_provider.__path__[0])
SURFACE_FOLDERS = ("operators", "decorators", "hooks", "listeners", "plugins", "cli")
SURFACE = sorted(
    f"airflow_ai_provider.{folder}.{path.stem}"
    for folder in SURFACE_FOLDERS
    for path in (PACKAGE / folder).glob("*.py")
    if path.stem not in ("__init__", "keys") and (folder, path.stem) not in (("cli", "audit"), ("cli", "policy"))
)


def imported_after(before: str, modules: list[str]) -> tuple[set[str], float]:
    """What importing modules adds to ``sys.modules`` after ``before``, and its CPU seconds."""
    code = f"""
import importlib, json, sys, time
{before}
known, started = set(sys.modules), time.process_time()
for name in {modules!r}:
    importlib.import_module(name)
spent = time.process_time() - started
print(json.dumps([sorted(set(sys.modules) - known), spent]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added, spent = json.loads(ran.stdout.splitlines()[-1])
    return set(added), spent


def test_operators_and_decorators_load_nothing_heavy_on_top_of_airflow(record_property: pytest.RecordProperty) -> None:
    modules = [name for name in SURFACE if ".operators." in name or ".decorators." in name]
    added, spent = imported_after("from airflow.sdk import dag, task", modules)
    record_property("cpu_seconds", spent)
    roots = {name.partition(".")[0] for name in added}
    assert roots & {*HEAVY, "sqlalchemy"} == set()
    # Our own rooms: a DAG file needs the values that operators take, and nothing that does the work.
    assert {name for name in added if name.startswith("airflow_ai_provider.") and not is_surface(name)} == {
        "airflow_ai_provider.core",
        "airflow_ai_provider.core.errors",
        "airflow_ai_provider.core.rows",
        "airflow_ai_provider.core.rows.shard",
    }


def is_surface(name: str) -> bool:
    return name.split(".")[1] in SURFACE_FOLDERS


def test_no_module_of_the_surface_loads_anything_heavy() -> None:
    before = "import airflow.sdk, airflow.cli.cli_config, airflow.sdk.plugins_manager\nfrom airflow.sdk import BaseHook"
    added, _ = imported_after(before, SURFACE)
    assert {name.partition(".")[0] for name in added} & HEAVY == set()


CORE = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.glob("core/**/*.py")
    if path.name != "env.py"  # alembic alone can run it
)


def test_core_needs_no_airflow() -> None:
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "airflow" or name.startswith("airflow."):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import importlib
for module in {CORE!r}:
    importlib.import_module("airflow_ai_provider." + module)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_reports_are_drawn_without_matplotlib_being_imported_before() -> None:
    """The figures and the page load without it; only drawing needs the extra."""
    added, _ = imported_after(
        "", ["airflow_ai_provider.core.reporting.page", "airflow_ai_provider.core.reporting.export"]
    )
    assert {name.partition(".")[0] for name in added} & {"matplotlib", "PIL", "airflow"} == set()
