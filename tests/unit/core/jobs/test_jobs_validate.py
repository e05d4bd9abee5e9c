"""What can be known before money is spent is found then, and a fingerprint follows what matters to the rows."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.pipeline import House, deployment, policy

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs.validate import check_policy, plan_job
from airflow_ai_provider.errors import AIProviderError, PolicyError, PromptError, SourceError
from airflow_ai_provider.testing.vendor import VendorDouble

CALLER = Caller("dag", "run", "task")
ROWS = ["one", "two"]
PROFILE = {"standard": {"detect": ["email"]}}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def fingerprint(house: House, caller: Caller = CALLER, rows: list[Any] | None = None, **job: Any) -> str:
    return plan_job(house.job(rows or ROWS, **job), caller, house.settings).fingerprint


def test_a_job_that_fits_together_is_planned(house: House) -> None:
    plan = plan_job(house.job(ROWS, max_tokens=7), CALLER, house.settings)
    assert (plan.inspection.rows, plan.terms["simple"].max_tokens, plan.renderer.columns) == (2, 7, {"text"})
    assert [budget.name for budget in plan.budgets] == ["team=support/total"]


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (
            {"classification": {"column": "class", "vendor": ["public"]}},
            "routes.support.classification.column: no column 'class' in the rows; they have: id, text",
        ),
        (
            {"complexity": {"from": "rules", "rules": [{"columns": {"plan": "gold"}, "tier": "simple"}]}},
            "routes.support.complexity.rules: no column 'plan' in the rows; they have: id, text",
        ),
    ],
)
def test_a_column_that_routing_needs_must_be_there(house: House, route: dict[str, Any], message: str) -> None:
    house.write(policy(**route))
    with pytest.raises(PolicyError, match=re.escape(message)):
        plan_job(house.job(ROWS), CALLER, house.settings)


def test_a_changed_file_of_a_tiers_system_prompt_makes_parts_anew(house: House, tmp_path: Path) -> None:
    prompt = tmp_path / "think.txt"
    house.write(policy(tier_options={"simple": {"system_prompt": f"file:{prompt}"}}))
    made = []
    for text in ("Think.", "Think twice."):
        prompt.write_text(text)
        made.append(fingerprint(house))
    assert made[0] != made[1]


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        ({"route": "sales"}, PolicyError, "route 'sales' is not in the policy; it has: support"),
        ({"team": "sales"}, PolicyError, "no budget applies to team 'sales'"),
        ({"prompt": "{{ texxt }}"}, PromptError, "no column texxt in the rows; they have: id, text"),
        ({"prompt": "{{ text"}, PromptError, "prompt:1:"),
        ({"key": "ID"}, SourceError, "ID"),
        ({"source": "nowhere.csv"}, SourceError, "nowhere.csv"),
        ({"output_schema": {"type": "strang"}}, PromptError, "output_schema: not a JSON schema"),
        ({"system_prompt": "file:nowhere.txt"}, PromptError, "nowhere.txt: no such prompt file"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_asked(
    house: House, job: dict[str, Any], error: type[AIProviderError], message: str
) -> None:
    with pytest.raises(error) as caught:
        plan_job(house.job(ROWS, **job), CALLER, house.settings)
    assert message in str(caught.value)


def test_a_source_with_a_column_of_ours_is_refused(house: House) -> None:
    with pytest.raises(SourceError, match="column status has the name of an output column"):
        plan_job(house.job([{"text": "a", "status": "new"}]), CALLER, house.settings)


def test_a_model_without_a_price_is_refused(house: House) -> None:
    house.write(policy(deployments={"small": deployment(model="openai/unheard-of")}))
    with pytest.raises(PolicyError, match=r"deployments\.small: no price is known for model 'openai/unheard-of'"):
        plan_job(house.job(ROWS), CALLER, house.settings)


CHANGES: dict[str, Callable[[House], str]] = {
    "another run": lambda house: fingerprint(house, Caller("dag", "run-2", "task")),
    "another task": lambda house: fingerprint(house, Caller("dag", "run", "task-2")),
    "other rows": lambda house: fingerprint(house, rows=["one", "three"]),
    "one row more": lambda house: fingerprint(house, rows=[*ROWS, "three"]),
    "another prompt": lambda house: fingerprint(house, prompt="{{ text }} "),
    "a system prompt": lambda house: fingerprint(house, system_prompt="Be brief."),
    "another key": lambda house: fingerprint(house, key="text"),
    "other limits": lambda house: fingerprint(house, max_tokens=51),
    "other parts": lambda house: fingerprint(house, batch_rows=10),
    "a schema": lambda house: fingerprint(house, output_schema={"type": "object"}),
    "another model": lambda house: under(house, deployments={"small": deployment(model="openai/gpt-4o")}),
    "other params": lambda house: under(house, deployments={"small": deployment(params={"top_p": 1})}),
    "other checks": lambda house: under(house, escalate={"on": ["grounding"]}),
    "masking": lambda house: under(house, masking="standard", profiles=PROFILE),
}


def under(house: House, **changes: Any) -> str:
    house.write(policy(**changes))
    return fingerprint(house)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_matters_to_the_rows_changes_the_fingerprint(house: House, change: str) -> None:
    before = fingerprint(house)
    assert CHANGES[change](house) != before


def test_what_a_masking_profile_masks_is_part_of_the_fingerprint(house: House) -> None:
    before = under(house, masking="standard", profiles=PROFILE)
    assert under(house, masking="standard", profiles={"standard": {"detect": ["email", "phone"]}}) != before


def test_what_does_not_matter_to_the_rows_leaves_the_fingerprint(house: House) -> None:
    before = fingerprint(house)
    assert fingerprint(house, dataclasses.replace(CALLER, try_number=2)) == before
    assert fingerprint(house, dataclasses.replace(CALLER, map_index=3)) == before
    assert fingerprint(house, sink="elsewhere") == before
    assert under(house, limit_usd="9") == before
    assert under(house, budgets=[{"period": "day", "limit_usd": 1}]) == before
    unused = deployment(model="openai/gpt-4o")
    assert under(house, deployments={"small": deployment(), "unused": unused}) == before


def test_a_changed_prompt_function_changes_the_fingerprint_and_a_moved_one_does_not(house: House) -> None:
    def made(code: str, name: str = "prompts.py") -> Callable[..., str]:
        scope: dict[str, Any] = {}
        exec(compile(code, name, "exec"), scope)
        function: Callable[..., str] = scope["prompt"]
        return function

    code = "def prompt(row):\n    inner = lambda t: t.upper()\n    return 'Say: ' + inner(row['text'])\n"
    before = fingerprint(house, prompt=made(code))
    assert fingerprint(house, prompt=made(code)) == before
    assert fingerprint(house, prompt=made("\n\n" + code, "other.py")) == before
    assert fingerprint(house, prompt=made(code.replace("Say", "Tell"))) != before
    assert fingerprint(house, prompt=made(code.replace("upper", "lower"))) != before


FUNCTION = """
import sys
from airflow_ai_provider.core.jobs.validate import _code_version
def prompt(row):
    return row["text"] if row["kind"] in {"a", "bb", "ccc", "dddd", "eeeee"} else ""
print(_code_version(prompt))
"""


def test_a_prompt_function_has_the_same_version_in_every_process() -> None:
    """A retry runs in a process with another hash seed, and must find its finished parts."""
    versions = {
        subprocess.run(
            [sys.executable, "-c", FUNCTION],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(versions) == 1


def test_a_policy_without_findings_is_good(tmp_path: Path, vendor: VendorDouble) -> None:
    house = House(tmp_path, vendor)
    assert check_policy(house.settings) == []


def test_a_policy_that_could_not_work_is_told_everything_at_once(house: House) -> None:
    good, no_price = deployment(), deployment(model="openai/unheard-of", connection=None)
    offline = {"model": "offline/extractive"}
    made = policy(deployments={"small": good, "odd": no_price, "offline": offline}, tiers={"simple": ["small", "odd"]})
    house.write({**made, "budgets": []})
    findings = check_policy(house.settings)
    assert [finding.split(": ")[0] for finding in findings] == [
        "deployments.small",
        "deployments.odd",
        "deployments.odd",
        "budgets",
        "deployments.offline",
    ]
    assert findings[0] == "deployments.small: no connection 'vendor'"
    assert findings[2] == "deployments.odd: no API key: give the deployment a connection that holds one"
    assert findings[4] == "deployments.offline: no route uses it"


def test_a_policy_that_is_not_well_formed_raises(house: House) -> None:
    house.settings.policy_path.write_text("version: 2")
    with pytest.raises(PolicyError):
        check_policy(house.settings)
