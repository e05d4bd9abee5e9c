"""Names of requests: the same for the same thing in every process, and never the same for two things."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_ai_provider.core.identity import (
    ReuseKey,
    arm_scope,
    attempt_id,
    request_id,
    reuse_scope,
    run_tag,
    token_scope,
)
from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.policy import Deployment, Reuse, Route

CALLER = Caller("dag", "run", "task")
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
requests = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["openai/a", "openai/b", "x/a"]),
        "api_base": st.none() | texts,
        "connection": st.none() | texts,
        "params": st.dictionaries(st.sampled_from(["seed", "top_p", "stop"]), json_values, max_size=2),
        "max_tokens": st.integers(1, 3),
        "schema": st.none() | st.dictionaries(texts, json_values, max_size=2),
        "version": texts,
        "scope": texts,
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": texts}), max_size=3
        ),
    }
)


def key(request: dict[str, Any]) -> bytes:
    deployment = Deployment(
        model=request["model"],
        api_base=request["api_base"],
        connection=request["connection"],
        params=request["params"],
    )
    made = ReuseKey(
        deployment,
        max_tokens=request["max_tokens"],
        output_schema=request["schema"],
        prompt_version=request["version"],
    )
    return made.of(request["scope"], request["messages"])


def exact(value: Any) -> Any:
    """Equal only where JSON is equal: 1, 1.0 and true are three things, and so are 0.0 and -0.0."""
    if isinstance(value, dict):
        return "dict", frozenset((name, exact(part)) for name, part in value.items())
    if isinstance(value, list):
        return "list", tuple(map(exact, value))
    return type(value).__name__, repr(value)


@given(requests, requests)
def test_different_requests_have_different_keys_and_equal_ones_the_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert (key(a) == key(b)) == (exact(a) == exact(b))


@given(requests, st.data())
def test_every_part_of_a_request_is_part_of_its_key(request: dict[str, Any], data: st.DataObject) -> None:
    """Two requests that differ in one part only."""
    other = data.draw(requests)
    part = data.draw(st.sampled_from(sorted(request)))
    changed = {**request, part: other[part]}
    assert (key(changed) == key(request)) == (exact(request[part]) == exact(other[part]))


PLAIN: dict[str, Any] = {
    "model": "openai/a",
    "api_base": "http://a/v1",
    "connection": "one",
    "params": {"temperature": 0},
    "max_tokens": 10,
    "schema": {"type": "object"},
    "version": "v1",
    "scope": "team:support",
    "messages": MESSAGES,
}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", "openai/b"),
        ("api_base", None),
        ("connection", "two"),
        ("params", {"temperature": 0.0}),
        ("params", {}),
        ("max_tokens", 11),
        ("schema", None),
        ("version", "v2"),
        ("scope", "team:sales"),
        ("messages", MESSAGES[::-1]),
        ("messages", MESSAGES[1:]),
        ("messages", [MESSAGES[0], {"role": "user", "content": "hi "}]),
    ],
)
def test_a_change_of_any_part_is_another_key(part: str, value: object) -> None:
    assert key({**PLAIN, part: value}) != key(PLAIN)


def test_the_order_of_names_changes_nothing() -> None:
    one = {**PLAIN, "params": {"a": 1, "b": {"c": 1, "d": 2}}}
    two = {**PLAIN, "params": {"b": {"d": 2, "c": 1}, "a": 1}}
    assert key(one) == key(two)


def test_limits_and_prices_of_a_deployment_change_nothing() -> None:
    keys = {
        ReuseKey(Deployment(model="openai/a", **extra), max_tokens=1, output_schema=None, prompt_version="v").of(
            "s", []
        )
        for extra in ({}, {"rpm": 5}, {"timeout": 5}, {"price": {"per_request": 1}}, {"billing": "batch"})
    }
    assert len(keys) == 1


def test_params_may_have_numbers_for_names() -> None:
    """As ``logit_bias`` has, and YAML reads ``50256: -100`` so."""
    assert key({**PLAIN, "params": {"logit_bias": {50256: -100}}}) != key(PLAIN)


def test_names_are_the_same_in_every_process() -> None:
    code = (
        "import sys; sys.path[:0] = %r; from test_identity import *; "
        "print(key(PLAIN).hex(), request_id(CALLER, 'r', 's'), run_tag(CALLER))"
    ) % [path for path in sys.path if path]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.split()[-3:][0]
        for seed in ("1", "2")
    }
    assert outputs == {key(PLAIN).hex()}


def test_the_names_of_this_version_stay_what_they_are() -> None:
    """A change here is a change of what every installation has stored: raise ``_KEY_VERSION`` with it."""
    assert request_id(CALLER, "row", "support") == "6104eb1b9de19b8246b46d205c7b0834"
    assert key(PLAIN).hex() == "53a7cb0a47997c66d4fe07afda882e72fd0d1ad1c97c3f96362db5fe8c80063d"


callers = st.builds(Caller, texts, texts, texts, map_index=st.integers(-1, 2), try_number=st.integers(1, 3))


@given(callers, texts, texts, callers, texts, texts)
def test_a_request_is_named_by_its_row_and_step_but_not_by_its_try(
    a: Caller, row_a: str, step_a: str, b: Caller, row_b: str, step_b: str
) -> None:
    def parts(caller: Caller, row: str, step: str) -> tuple[object, ...]:
        return caller.dag_id, caller.run_id, caller.task_id, caller.map_index, row, step

    same = request_id(a, row_a, step_a) == request_id(b, row_b, step_b)
    assert same == (parts(a, row_a, step_a) == parts(b, row_b, step_b))


def route(scope: str) -> Route:
    return Route(tiers={"simple": ("small",)}, masking="off", reuse=Reuse(scope=scope))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scope", "shared"),
    [("team", {"dag", "run", "row"}), ("dag", {"run", "row"}), ("run", {"row"}), ("off", set())],
)
def test_a_scope_is_as_wide_as_its_name(scope: str, shared: set[str]) -> None:
    def of(team: str = "t", dag: str = "d", run: str = "r", row: str = "k") -> str:
        return reuse_scope(route(scope), team, Caller(dag, run, "task"), row)

    assert of() != of(team="other")
    assert {name for name in ("dag", "run", "row") if of() == of(**{name: "other"})} == shared


def test_a_retry_is_in_the_same_scope_whatever_it_is() -> None:
    for scope in ("team", "dag", "run", "off"):
        first, second = (reuse_scope(route(scope), "t", Caller("d", "r", "x", try_number=n), "k") for n in (1, 2))
        assert first == second


names = st.text("ab:", min_size=1, max_size=4)


@given(names, names, names, names, names, names)
@example("a:b", "a", "b", "a", "b", "a:b")
@example("a:b", "a", "b", "a", "b:a", "b")
def test_two_teams_never_share_a_scope_whatever_they_are_called(
    team_a: str, dag_a: str, run_a: str, team_b: str, dag_b: str, run_b: str
) -> None:
    if team_a == team_b:
        return
    for scope in ("team", "dag", "run", "off"):
        a, b = Caller(dag_a, run_a, "task"), Caller(dag_b, run_b, "task")
        assert token_scope(route(scope), team_a, a) != token_scope(route(scope), team_b, b)
        assert reuse_scope(route(scope), team_a, a, "k") != reuse_scope(route(scope), team_b, b, "k")


def test_attempts_have_names_of_their_own_that_sort_by_time() -> None:
    made = [attempt_id(datetime.now(UTC)) for _ in range(500)]
    assert len(set(made)) == 500
    assert [name[:12] for name in made] == sorted(name[:12] for name in made)
    assert {len(name) for name in made} == {32}


def test_a_run_is_told_from_another_and_not_by_its_task() -> None:
    assert run_tag(Caller("d", "r", "x")) == run_tag(Caller("d", "r", "y", try_number=2))
    assert run_tag(Caller("d", "r", "x")) != run_tag(Caller("d", "r2", "x")) != run_tag(Caller("dr", "2", "x"))


def test_an_answer_is_known_by_the_parameters_that_are_sent_wherever_they_stand() -> None:
    def made(deployment: dict[str, Any], route: dict[str, Any] | None) -> bytes:
        place = Deployment(model="openai/a", params=deployment)
        return ReuseKey(place, max_tokens=1, output_schema=None, prompt_version="v", params=route).of("s", MESSAGES)

    assert made({"seed": 1}, None) == made({"seed": 1}, {}) == made({}, {"seed": 1}) == made({"seed": 2}, {"seed": 1})
    assert made({"seed": 1}, {"top_p": 1}) != made({"seed": 1}, None)


@given(texts, texts, texts, texts)
def test_the_arms_of_a_trial_share_nothing(scope: str, arm: str, other_scope: str, other: str) -> None:
    assert (arm_scope(scope, arm) == arm_scope(other_scope, other)) == ((scope, arm) == (other_scope, other))
    assert arm_scope(reuse_scope(route("team"), "t", CALLER, "k"), arm) != reuse_scope(route("team"), "t", CALLER, "k")


def test_other_tools_or_another_choice_are_another_answer_and_none_are_as_before() -> None:
    tool = {"type": "function", "function": {"name": "refund"}}
    asked: list[dict[str, Any]] = [
        {},
        {"tools": [tool]},
        {"tools": [tool], "tool_choice": "required"},
        {"tools": [{"type": "function", "function": {"name": "close"}}]},
    ]
    fixed: dict[str, Any] = {"max_tokens": 5, "output_schema": None, "prompt_version": "v"}
    made = [ReuseKey(Deployment(model="openai/a"), **fixed, **more).of("s", MESSAGES) for more in asked]
    assert len(set(made)) == len(made)
    assert ReuseKey(Deployment(model="openai/a"), **fixed, tools=(), tool_choice=None).of("s", MESSAGES) == made[0]
