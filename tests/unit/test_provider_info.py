"""What Airflow reads of the package is true: schema, connection form, configuration, decorator, plugin, commands."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import airflow
import jsonschema
import pytest
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

import airflow_ai_provider
from airflow_ai_provider.get_provider_info import get_provider_info

OPTIONS = {
    "home",
    "policy_path",
    "allow_dag_policy",
    "ledger_conn_id",
    "cache_conn_id",
    "archive_uri",
    "audit_signing_key",
    "audit_spool_limit_mb",
    "audit_outcomes",
    "audit_seal_within_minutes",
    "archive_lock",
    "archive_retention_days",
    "search_conn_id",
    "vectors_conn_id",
    "keyring_conn_id",
}


def test_metadata_satisfies_airflows_own_schema() -> None:
    schema = json.loads((Path(airflow.__path__[0]) / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_package_name_is_the_distributions() -> None:
    (point,) = entry_points(group="apache_airflow_provider", name="provider_info").select(
        module="airflow_ai_provider.get_provider_info"
    )
    assert get_provider_info()["package-name"] == point.dist.name == "airflow-ai-provider"


def test_every_module_and_class_it_names_can_be_imported() -> None:
    info = get_provider_info()
    for kind in ("operators", "hooks"):
        for group in info[kind]:
            for module in group["python-modules"]:
                importlib.import_module(module)
    for path in [
        *(item["hook-class-name"] for item in info["connection-types"]),
        *(item["class-name"] for item in info["task-decorators"]),
        *info["cli"],
    ]:
        module, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


def test_it_names_every_module_that_holds_something_for_dags() -> None:
    """And docs/index.md has a line for each such class and decorator."""
    info = get_provider_info()
    package = Path(airflow_ai_provider.__path__[0])
    index = (package.parent / "docs/index.md").read_text(encoding="utf-8")
    for kind, ending in (("operators", "Operator"), ("sensors", "Sensor"), ("triggers", "Trigger")):
        named = {module for group in info[kind] for module in group["python-modules"]}
        held = {
            f"airflow_ai_provider.{kind}.{path.stem}": classes
            for path in (package / kind).glob("*.py")
            if (classes := re.findall(rf"^class ([A-Z]\w*{ending})\(", path.read_text(), re.M)) and path.stem != "base"
        }
        assert named == held.keys()
        assert kind == "triggers" or all(f"[{name}](" in index for classes in held.values() for name in classes)
    named = {item["class-name"].rpartition(".")[2] for item in info["task-decorators"]}
    held = {
        name
        for path in (package / "decorators").glob("*.py")
        for name in re.findall(r"^def (\w+_task)\(", path.read_text(), re.M)
    }
    assert named == held
    assert all(f"@task.{item['name']}" in index for item in info["task-decorators"])


def test_every_operator_belongs_to_an_integration_it_declares() -> None:
    info = get_provider_info()
    declared = {item["integration-name"] for item in info["integrations"]}
    assert {group["integration-name"] for kind in ("operators", "hooks") for group in info[kind]} <= declared


def test_config_section_holds_every_option_and_each_defaults_to_empty() -> None:
    options = get_provider_info()["config"]["ai"]["options"]
    assert set(options) == OPTIONS
    assert {option["default"] for option in options.values()} == {""}
    assert {option["version_added"] for option in options.values()} == {airflow_ai_provider.__version__}


def test_airflow_resolves_defaults_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk import conf

    assert conf.get("ai", "ledger_conn_id") == ""
    monkeypatch.setenv("AIRFLOW__AI__LEDGER_CONN_ID", "ledger_db")
    assert conf.get("ai", "ledger_conn_id") == "ledger_db"


def test_connection_form_resolves_to_the_hook() -> None:
    hook = ProvidersManagerTaskRuntime().hooks["llm"]
    assert hook is not None
    assert hook.hook_class_name == "airflow_ai_provider.hooks.llm.LLMHook"
    assert hook.connection_id_attribute_name == "llm_conn_id"
    assert hook.package_name == "airflow-ai-provider"


def test_decorator_is_found_under_task() -> None:
    from airflow.sdk import task

    for name in ("llm_map", "mask_rows", "restore_rows", "encrypt_columns", "decrypt_columns"):
        assert getattr(task, name) is not None


def test_plugin_offers_the_macro_to_tasks() -> None:
    from airflow.sdk.execution_time import macros
    from airflow.sdk.plugins_manager import integrate_macros_plugins

    integrate_macros_plugins()
    assert macros.ai.run_folder("manual__1").startswith("manual__1-")


def test_reading_the_metadata_imports_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules);"
        "from airflow_ai_provider.get_provider_info import get_provider_info; get_provider_info();"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    foreign = [name for name in loaded.split() if name.partition(".")[0] not in sys.stdlib_module_names]
    assert foreign == ["airflow_ai_provider", "airflow_ai_provider.get_provider_info"]


def test_entry_points_of_pyproject_are_the_modules_that_exist() -> None:
    project = tomllib.loads((Path(airflow_ai_provider.__path__[0]).parent / "pyproject.toml").read_text())["project"]
    for group in project["entry-points"].values():
        for target in group.values():
            module, _, name = target.partition(":")
            assert hasattr(importlib.import_module(module), name)
