"""Routes from end to end: what is sent where, what is not sent at all, and what a plan says of it beforehand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.pipeline import House, deployment, nano, policy

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs.plan import SpendPlan, plan_spend
from airflow_ai_provider.testing.vendor import VendorDouble

PRICE = {"input_per_mtok": 1, "output_per_mtok": 1}
DEPLOYMENTS = {
    "small": deployment(),
    "trial": deployment(model="openai/trial", price=PRICE),
    "house": deployment(model="openai/house", price=PRICE, hosting="self"),
    "cellar": deployment(model="openai/cellar", price=PRICE, hosting="self"),
}
CLASSES = {"column": "class", "default": "internal", "vendor": ["internal"], "self_hosted": ["secret"]}


@pytest.fixture
def house(tmp_path: Path, vendor: VendorDouble) -> House:
    return House(tmp_path, vendor)


def plan(house: House, rows: Any, **job: Any) -> SpendPlan:
    return plan_spend(house.job(rows, sink="", **job), Caller("dag", "run-1", "answer"), house.settings)


def models(vendor: VendorDouble) -> list[str]:
    return [request.body["model"] for request in vendor.requests()]


def classified(*classes: str | None) -> list[dict[str, Any]]:
    return [{"text": f"row {number}", "class": name} for number, name in enumerate(classes)]


def test_classified_rows_go_to_the_house_and_to_nobody_else(house: House, vendor: VendorDouble) -> None:
    house.write(policy(deployments=DEPLOYMENTS, tiers={"simple": ["small", "house"]}, classification=CLASSES))
    outcome = house.run(classified("internal", "secret", None, "secrett"))
    assert outcome.column("deployment") == ["small", "house", "small", "house"]
    assert Counter(models(vendor)) == {"gpt-4o-mini": 2, "house": 2}


def test_a_row_that_nobody_may_have_is_an_error_of_its_own_and_is_not_sent(house: House, vendor: VendorDouble) -> None:
    house.write(policy(deployments=DEPLOYMENTS, tiers={"simple": ["small", "trial"]}, classification=CLASSES))
    rows = classified("internal", "secret")
    planned, outcome = plan(house, rows), house.run(rows)
    assert outcome.column("status") == ["ok", "error"]
    assert outcome.rows[1]["error"].startswith(
        "self_hosted: no deployment of tier simple can take the row: "
        "small (a vendor's, and the data is secret), trial (a vendor's, and the data is secret)"
    )
    assert planned.refused == outcome.summary.errors == {"self_hosted": 1}
    assert models(vendor) == ["gpt-4o-mini"]
    assert house.left_over() == (0, 0)


def test_classified_rows_stay_in_the_house_when_they_escalate(house: House, vendor: VendorDouble) -> None:
    house.write(
        policy(
            deployments=DEPLOYMENTS,
            tiers={"simple": ["house"], "complex": ["trial", "cellar"]},
            classification=CLASSES,
            escalate={"on": ["empty"], "to": "complex"},
        )
    )
    vendor.configure(script=["empty"])
    (row,) = house.run(classified("secret")).rows
    assert (row["status"], row["tier"], row["deployment"]) == ("ok", "complex", "cellar")
    assert models(vendor) == ["house", "cellar"]


def test_a_tier_asks_on_its_own_terms(house: House, vendor: VendorDouble) -> None:
    house.write(
        policy(
            deployments=DEPLOYMENTS,
            tiers={"simple": ["small"], "complex": ["small"]},
            complexity={"from": "column"},
            system_prompt="Be brief.",
            tier_options={"complex": {"max_tokens": 70, "system_prompt": "Think."}},
        )
    )
    rows = [{"text": "a", "difficulty": "simple"}, {"text": "a", "difficulty": "complex"}]
    planned, outcome = plan(house, rows), house.run(rows)
    sent = {request.body["messages"][0]["content"]: request.body for request in vendor.requests()}
    limits = {text: body.get("max_tokens") or body.get("max_completion_tokens") for text, body in sent.items()}
    assert limits == {"Be brief.": 50, "Think.": 70}
    assert all(body["messages"][1:] == [{"role": "user", "content": "a"}] for body in sent.values())
    assert outcome.summary.reused == 0, "two tiers' answers are two answers"
    assert planned.routed == {"simple (column)": 1, "complex (column)": 1}
    assert 0 < nano(outcome.summary.cost_usd) <= planned.worst_nano


def test_a_row_escalates_with_the_upper_tiers_system_prompt(house: House, vendor: VendorDouble) -> None:
    house.write(
        policy(
            deployments=DEPLOYMENTS,
            tiers={"simple": ["small"], "complex": ["trial"]},
            escalate={"on": ["empty"], "to": "complex"},
            tier_options={"complex": {"system_prompt": "Think."}},
        )
    )
    vendor.configure(script=["empty"])
    house.run(["hi"])
    assert [len(request.body["messages"]) for request in vendor.requests()] == [1, 2]


def trial(**changes: Any) -> dict[str, Any]:
    tiers = {"simple": [{"small": 1, "trial": 1}]}
    return policy(deployments=DEPLOYMENTS, tiers=tiers, reuse={"scope": "team", "ttl": "1h"}, **changes)


def test_a_trial_shares_rows_and_no_answers(house: House, vendor: VendorDouble) -> None:
    """Equal rows are one call per arm, and whatever an arm answers is its own."""
    house.write(trial())
    outcome = house.run(["the same"] * 40)
    arms = Counter(outcome.column("deployment"))
    assert set(arms) == {"small", "trial"}
    assert Counter(models(vendor)) == {"gpt-4o-mini": 1, "trial": 1}
    again = house.run(["the same"] * 40, run_id="run-2")
    assert again.column("deployment") == outcome.column("deployment")
    assert len(vendor.requests()) == 2


def test_an_arms_fallback_answers_a_retry_of_its_rows_and_nobody_elses(house: House, vendor: VendorDouble) -> None:
    house.write(trial(retry={"attempts": 1}))
    deployments = house.run([f"row {n}" for n in range(40)]).column("deployment")
    ours, others = deployments.index("trial"), deployments.index("small")
    rows = [{"text": "new", "id": f"r{ours}"}]
    vendor.configure(script=["500"])
    (row,) = house.run(rows, run_id="run-2").rows
    assert row["deployment"] == "small", "the fallback"
    asked = len(vendor.requests())
    (row,) = house.run(rows, run_id="run-3").rows
    assert (row["deployment"], row["reused"], len(vendor.requests())) == ("small", True, asked)
    (row,) = house.run([{"text": "new", "id": f"r{others}"}], run_id="run-4").rows
    assert (row["deployment"], row["reused"], len(vendor.requests())) == ("small", False, asked + 1)


def test_a_plan_knows_the_shares_of_a_trial(house: House) -> None:
    house.write(trial())
    rows = [f"row {n}" for n in range(60)]
    planned, outcome = plan(house, rows), house.run(rows)
    assert {line.deployment: line.calls for line in planned.figures} == Counter(outcome.column("deployment"))


def test_rules_route_by_what_is_masked(house: House) -> None:
    rules = [
        {"over_bytes": 40, "tier": "complex", "name": "long"},
        {"language": "zh", "columns": {"plan": "gold"}, "tier": "medium"},
    ]
    house.write(
        policy(
            deployments=DEPLOYMENTS,
            tiers={"simple": ["small"], "medium": ["trial"], "complex": ["house"]},
            complexity={"from": "rules", "rules": rules, "keywords": {"medium": ["contract"]}},
        )
    )
    texts = [("x" * 41, ""), ("你好", "gold"), ("你好", ""), ("My contract", "")]
    rows = [{"text": text, "plan": name} for text, name in texts]
    assert plan(house, rows).routed == {
        "complex (rules:long)": 1,
        "medium (rules:language+columns)": 1,
        "simple (default)": 1,
        "medium (rules:keywords (fallback))": 1,
    }
    assert house.run(rows).column("tier") == ["complex", "medium", "simple", "medium"]
