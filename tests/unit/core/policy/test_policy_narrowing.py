"""A DAG's own policy file may narrow the governing one, and every key by which it would loosen it is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_ai_provider.core.policy import load_policy
from airflow_ai_provider.core.policy.loading import LoadedPolicy, load_governing, shown_path
from airflow_ai_provider.errors import PolicyError

Change = Callable[[dict[str, Any]], Any]
GOVERNING = yaml.safe_load("""\
version: 1
deployments:
  small: {model: openai/small, connection: vendor, rpm: 100, price: {input_per_mtok: 1, output_per_mtok: 2}}
  large: {model: openai/large, api_base: "http://models:8000/v1", region: eu, price: {per_request: 0.1}}
routes:
  support:
    tiers: {simple: [small], complex: [large, small]}
    masking: standard
    max_tokens: 400
    params: {temperature: 0}
    tier_options: {complex: {max_tokens: 800}}
    reuse: {scope: dag, ttl: 1h}
    retry: {attempts: 3, wait: 4, max_wait: 60}
    deadline: {row: 10m}
    escalate: {"on": [schema, empty], to: complex}
    regions: [eu, us]
    classification: {column: class, vendor: [public], self_hosted: [secret], default: secret}
    attachments: {kinds: [image], from: [/data/scans], max_mb: 10}
  plain: {tiers: {simple: [small]}, masking: "off"}
budgets:
  - {team: support, period: day, limit_usd: 100}
  - {period: month, limit_usd: 5000}
masking:
  standard:
    detect: [standard]
    columns: {name: PERSON}
    patterns: {TICKET: "T-[0-9]+"}
    allow: [info@bank.example]
    names: "finders:names"
privacy:
  restore: [{dag: d, team: support, columns: [answer]}]
""")
GOVERNING["deployments"]["small"]["region"] = "us"


def files(folder: Path, change: Change) -> LoadedPolicy:
    """The governing policy, narrowed by a copy of it with a change."""
    own = copy.deepcopy(GOVERNING)
    change(own)
    (folder / "policy.yaml").write_text(yaml.safe_dump(GOVERNING))
    (folder / "own.yaml").write_text(yaml.safe_dump(own))
    return load_governing(folder / "policy.yaml", folder / "own.yaml")


def put(path: str, value: Any) -> Change:
    """Set a key, or with ``None`` take it out."""

    def change(policy: dict[str, Any]) -> None:
        *places, key = path.split(".")
        for place in places:
            policy = policy[int(place)] if isinstance(policy, list) else policy.setdefault(place, {})
        if value is None:
            del policy[key]
        else:
            policy[key] = value

    return change


def support(path: str, value: Any) -> Change:
    return put(f"routes.support.{path}", value)


LOOSENED: dict[str, Change] = {
    "routes.support.masking": support("masking", "off"),
    "masking.standard.detect": put("masking.standard.detect", ["email", "phone"]),
    "masking.standard.columns": put("masking.standard.columns", {"name": "OTHER"}),
    "masking.standard.patterns": put("masking.standard.patterns", {"TICKET": "T-[1-9]"}),
    "masking.standard.confidence": put("masking.standard.confidence", "validated"),
    "masking.standard.allow": put("masking.standard.allow", ["/.+/"]),
    "masking.standard.skip": put("masking.standard.skip", ["text"]),
    "masking.standard.names": put("masking.standard.names", "mine:none"),
    "masking.thin.detect": lambda policy: (
        policy["masking"].update(
            thin={"detect": ["ip"], **{k: v for k, v in policy["masking"]["standard"].items() if k != "detect"}}
        ),
        policy["routes"]["support"].update(masking="thin"),
    ),
    "budgets.0.limit_usd": put("budgets.0.limit_usd", 101),
    "budgets.1.limit_usd": put("budgets.1.limit_usd", 9_000_000),
    "deployments.small.price": put("deployments.small.price", {"input_per_mtok": 0, "output_per_mtok": 0}),
    "deployments.small.connection": put("deployments.small.connection", "mine"),
    "deployments.small.model": put("deployments.small.model", "openai/dear"),
    "deployments.small.rpm": put("deployments.small.rpm", "unlimited"),
    "deployments.small.concurrency": put("deployments.small.concurrency", 1),
    "deployments.small.params": put("deployments.small.params", {"reasoning_effort": "high"}),
    "deployments.large.api_base": put("deployments.large.api_base", "http://elsewhere:8000/v1"),
    "deployments.large.hosting": put("deployments.large.hosting", "self"),
    "deployments.large.region": put("deployments.large.region", "us"),
    "deployments.mine": put("deployments.mine", {"model": "openai/mine"}),
    "routes.mine": put("routes.mine", {"tiers": {"simple": ["small"]}, "masking": "off"}),
    "routes.support.tiers.simple": support("tiers", {"simple": ["small", "large"], "complex": ["large"]}),
    "routes.support.tiers.medium": support("tiers", {"medium": ["small"], "simple": ["small"], "complex": ["large"]}),
    "routes.support.max_tokens": support("max_tokens", 401),
    "routes.support.tier_options.complex.max_tokens": support("tier_options.complex.max_tokens", 801),
    "routes.support.params": support("params", {"temperature": 1}),
    "routes.support.reuse.scope": support("reuse", {"scope": "team", "ttl": "1h"}),
    "routes.support.reuse.ttl": support("reuse", {"scope": "dag", "ttl": "2h"}),
    "routes.support.retry.attempts": support("retry.attempts", 4),
    "routes.support.retry.wait": support("retry.wait", 1),
    "routes.support.deadline.row": support("deadline", None),
    "routes.support.escalate.on": support("escalate", {"on": ["empty"], "to": "complex"}),
    "routes.plain.escalate.to": put("routes.plain.escalate", {"to": "simple"}),
    "routes.support.regions": support("regions", None),
    "routes.support.classification": support("classification", None),
    "routes.support.classification.column": support("classification.column", "other"),
    "routes.support.classification.vendor": support("classification.vendor", ["public", "internal"]),
    "routes.support.classification.default": support("classification.default", "public"),
    "routes.support.attachments.kinds": support("attachments.kinds", ["image", "file"]),
    "routes.support.attachments.from": support("attachments.from", ["/data/scans2"]),
    "routes.support.attachments.max_mb": support("attachments.max_mb", 11),
    "routes.plain.attachments": put("routes.plain.attachments", {"kinds": ["image"], "from": ["/data/scans"]}),
    "privacy.restore.0": put("privacy.restore.0.columns", ["answer", "name"]),
    "privacy.decrypt.0": put("privacy.decrypt", [{"dag": "d", "team": "support"}]),
    "ledger": put("ledger", {"keep_months": 1}),
    "teams": put("teams", {"support": {"dags": "*"}}),
}


@pytest.mark.parametrize("place", LOOSENED)
def test_what_would_loosen_the_policy_is_named_with_file_and_line(tmp_path: Path, place: str) -> None:
    with pytest.raises(PolicyError) as refused:
        files(tmp_path, LOOSENED[place])
    lines = str(refused.value).splitlines()
    assert any(f"own.yaml:{line}: {place}: " in text for text in lines for line in range(1, 200)), lines


def test_every_key_that_loosens_is_a_finding_of_its_own(tmp_path: Path) -> None:
    def change(policy: dict[str, Any]) -> None:
        for place in ("routes.support.masking", "budgets.0.limit_usd", "deployments.small.rpm"):
            LOOSENED[place](policy)

    with pytest.raises(PolicyError) as refused:
        files(tmp_path, change)
    assert len(str(refused.value).splitlines()) == 3


def drop_route(policy: dict[str, Any]) -> None:
    del policy["routes"]["plain"], policy["privacy"], policy["budgets"][1]


NARROWED: dict[str, Change] = {
    "a copy": lambda _: None,
    "fewer routes, grants and budgets": drop_route,
    "a deployment less": support("tiers", {"simple": ["small"], "complex": ["large"]}),
    "another order": support("tiers", {"simple": ["small"], "complex": ["small", "large"]}),
    "masking where there was none": put("routes.plain.masking", "standard"),
    "more kinds": put("masking.standard.detect", ["all"]),
    "the kinds of a group by name and more": put("masking.standard.detect", ["standard", "date"]),
    "more columns": put("masking.standard.columns", {"name": "PERSON", "city": "CITY"}),
    "fewer exceptions": put("masking.standard.allow", []),
    "shorter answers": support("max_tokens", 100),
    "no reuse": support("reuse", {"scope": "off", "ttl": "9h"}),
    "fewer attempts": support("retry", {"attempts": 1, "wait": 9, "max_wait": 60}),
    "a deadline more": support("deadline", {"row": "5m", "batch": "1h"}),
    "one region": lambda policy: (
        policy["routes"]["support"].update(regions=["us"], tiers={"simple": ["small"], "complex": ["small"]}),
    ),
    "fewer classes": support("classification", {"column": "class", "self_hosted": ["secret"]}),
    "a folder below": support("attachments", {"kinds": ["image"], "from": ["/data/scans/2026"], "max_mb": 1}),
    "its own prompt": support("system_prompt", "Be brief."),
}


@pytest.mark.parametrize("name", NARROWED)
def test_what_narrows_the_policy_is_taken(tmp_path: Path, name: str) -> None:
    loaded = files(tmp_path, NARROWED[name])
    governing = load_policy(tmp_path / "policy.yaml")
    assert loaded.policy.deployments == governing.deployments
    assert loaded.policy.privacy == governing.privacy
    assert set(governing.budgets) <= set(loaded.policy.budgets)
    assert loaded.policy.digest == loaded.file.digest == governing.digest, "prices are versioned by the governing file"
    assert loaded.dag_file is not None
    assert loaded.dag_file.path == tmp_path / "own.yaml"


def test_own_budgets_stand_beside_the_governing_ones_under_names_of_their_own(tmp_path: Path) -> None:
    own = [{"team": "support", "period": "day", "limit_usd": 3}, {"dag": "d", "period": "run", "limit_usd": 1}]
    loaded = files(tmp_path, put("budgets", own))
    limits = {budget.name: budget.limit_usd for budget in loaded.policy.budgets}
    assert limits["team=support/day"] == Decimal(100)
    added = {name.partition("&")[2]: limit for name, limit in limits.items() if name.startswith("policy=own-")}
    assert added == {"team=support/day": Decimal(3), "dag=d/run": Decimal(1)}
    files_of = [loaded.stated_in(budget).path.name for budget in loaded.policy.budgets]
    assert files_of == ["policy.yaml", "policy.yaml", "own.yaml", "own.yaml"]


def test_two_files_of_one_name_do_not_share_a_budget(tmp_path: Path) -> None:
    names = set()
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        loaded = files(folder, put("budgets", [{"period": "day", "limit_usd": 3}]))
        names |= {budget.name for budget in loaded.policy.budgets}
    assert len(names) == 4


def test_an_own_budget_does_not_stand_for_a_missing_governing_one(tmp_path: Path) -> None:
    def change(policy: dict[str, Any]) -> None:
        policy["budgets"] = [{"team": "other", "period": "day", "limit_usd": 3}]

    without = {**GOVERNING, "budgets": GOVERNING["budgets"][:1]}
    loaded = files(tmp_path, change)
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(without))
    loaded = load_governing(tmp_path / "policy.yaml", tmp_path / "own.yaml")
    with pytest.raises(PolicyError, match="no budget applies to team 'other'"):
        loaded.policy.budgets_for(team="other", dag="d", route="support")


@pytest.mark.parametrize("text", ["!include other.yaml", "<<: *missing", "version: 1\nfile: x", "[]"])
def test_a_file_that_is_no_policy_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(GOVERNING))
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(PolicyError, match=r"own\.yaml:"):
        load_governing(tmp_path / "policy.yaml", tmp_path / "own.yaml")


def test_a_budget_cannot_claim_to_be_of_another_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"budgets\.0\.file: unknown key"):
        files(tmp_path, put("budgets", [{"period": "day", "limit_usd": 3, "file": "x"}]))


def test_a_path_is_one_line_that_keeps_its_end() -> None:
    assert shown_path(Path("/a/b.yaml")) == "/a/b.yaml"
    long = shown_path(Path("/" + "x" * 300 + "\n/policy.yaml"))
    assert (len(long), long[0], long[-12:], "\n" in long) == (250, "…", "/policy.yaml", False)


TEAMS = {"support": {"dags": ["customer_*", "nightly"], "routes": ["support"]}, "sales": {"dags": "sales"}}


@pytest.mark.parametrize(
    ("team", "dag", "route", "problem"),
    [
        ("support", "customer_support", "support", None),
        ("support", "nightly", None, None),
        ("sales", "sales", "plain", None),
        ("support", "sales", "support", "DAG 'sales' may not act for team 'support'"),
        ("support", "my_customer_support", "support", "DAG 'my_customer_support' may not act for team 'support'"),
        ("support", "nightly", "plain", "team 'support' may not use route 'plain'"),
        ("Support", "nightly", "support", "team 'Support' is not in the policy; it has: sales, support"),
        ("support ", "nightly", "support", "team 'support ' is not in the policy"),
    ],
)
def test_teams_say_which_dags_act_for_them_and_over_which_routes(
    tmp_path: Path, team: str, dag: str, route: str | None, problem: str | None
) -> None:
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({**GOVERNING, "teams": TEAMS}))
    policy = load_policy(tmp_path / "policy.yaml")
    if problem is None:
        policy.require_team(team, dag=dag, route=route)
    else:
        with pytest.raises(PolicyError, match=problem):
            policy.require_team(team, dag=dag, route=route)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"teams": {"support": {"dags": "d", "routes": ["suport"]}}}, "teams.support.routes: no route 'suport'"),
        ({"teams": {"sales": {"dags": "d"}}}, "budgets.0.team: no team 'support'; there are: sales"),
        ({"teams": {"support": {"dags": []}}}, "teams.support.dags"),
    ],
)
def test_teams_are_checked_with_the_rest_of_the_file(tmp_path: Path, change: dict[str, Any], finding: str) -> None:
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({**GOVERNING, **change}))
    with pytest.raises(PolicyError, match=finding):
        load_policy(tmp_path / "policy.yaml")
