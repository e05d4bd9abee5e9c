"""Answers that are not whole: who is served them again, which tier is asked for them, and who is told."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support.cache import stored
from support.pipeline import House, deployment, invoiced, policy
from support.providers import answering, anthropic_body, ask, failure, gemini_body, provider
from support.vendor_answers import said
from test_pipeline_audited import events

from airflow_ai_provider.core.job import Caller
from airflow_ai_provider.core.jobs.plan import plan_spend
from airflow_ai_provider.core.jobs.plan_text import plan_document, plan_figures
from airflow_ai_provider.core.policy import Route
from airflow_ai_provider.testing.behaviour import RawAnswer
from airflow_ai_provider.testing.vendor import VendorDouble

NOT_WHOLE = {
    "truncated": said("ye", finish="length"),
    "filtered": said("ye", finish="content_filter"),
    "refused": said(None, refusal="I cannot."),
    "empty": said("\u200b"),
}
SHARED = {"reuse": {"scope": "team", "ttl": "1h"}}
kinds = pytest.mark.parametrize("kind", NOT_WHOLE)


@pytest.fixture
def house(tmp_path: Path, vendor: VendorDouble) -> House:
    vendor.configure(answers={kind: RawAnswer(json.dumps(body)) for kind, body in NOT_WHOLE.items()})
    return House(tmp_path, vendor)


def two_tiers(
    on: list[str], *, large: int | None = None, upper: str = "openai/gpt-4o", **changes: Any
) -> dict[str, Any]:
    """Two tiers, of which the upper one has another limit where ``large`` says so."""
    options = {"tier_options": {"complex": {"max_tokens": large}}} if large else {}
    deployments = {"small": deployment(), "large": deployment(model=upper)}
    tiers = {"simple": ["small"], "complex": ["large"]}
    return policy(
        deployments=deployments, tiers=tiers, escalate={"on": on, "to": "complex"}, **options, **SHARED, **changes
    )


@kinds
def test_a_retry_does_not_pay_for_it_again_and_another_run_is_not_served_it(
    house: House, vendor: VendorDouble, kind: str, tmp_path: Path
) -> None:
    house.write(policy(**SHARED))
    row = f"hi [[double:{kind}]]"
    first = house.run([row], run_id="a")
    cleared = house.run([row], run_id="a", sink=str(tmp_path / "again"))
    assert vendor.stats().requests == 1
    assert [outcome.rows[0]["status"] for outcome in (first, cleared)] == ["rejected", "rejected"]
    assert cleared.rows[0]["reused"]
    house.run([row], run_id="b")
    assert vendor.stats().requests == 2


@kinds
def test_it_is_counted_apart(house: House, kind: str) -> None:
    outcome = house.run(["fine", f"hi [[double:{kind}]]", f"ho [[double:{kind}]]"])
    assert (outcome.summary.ok, outcome.summary.rejected, outcome.summary.errors) == (1, 2, {kind: 2})
    assert [row["error_type"] for row in house.requests(status="ok")].count(kind) == 2
    calls = [
        event["error.type"]
        for event in events(house)
        if event.get("event.action") == "llm.call" and "error.type" in event
    ]
    assert calls == [kind, kind]


def test_another_limit_is_another_request(house: House, vendor: VendorDouble) -> None:
    house.write(policy(**SHARED))
    vendor.configure(script=["truncated"])
    house.run(["hi"], run_id="a")
    house.write(policy(max_tokens=60, **SHARED))
    again = house.run(["hi"], run_id="a")
    assert (again.rows[0]["status"], vendor.stats().requests) == ("ok", 2)


@pytest.mark.parametrize("finish", ["length", "content_filter", "refusal", "max_tokens", "SAFETY"])
def test_what_an_earlier_release_stored_is_good_for_its_own_run_alone(finish: str) -> None:
    old = stored(finish_reason=finish)
    assert old.good_for(run="run-a", ttl=3600, now=old.created_at)
    assert not old.good_for(run="run-b", ttl=3600, now=old.created_at)
    assert stored().good_for(run="run-b", ttl=3600, now=old.created_at)


@pytest.mark.parametrize(("on", "large", "asked"), [
    (["truncated"], None, 1),
    (["truncated"], 51, 2),
    (["schema", "empty"], 51, 1),
    (["truncated"], 49, 1),
])  # fmt: skip
def test_a_cut_answer_is_asked_for_again_only_with_a_larger_limit(
    house: House, vendor: VendorDouble, on: list[str], large: int | None, asked: int
) -> None:
    house.write(two_tiers(on, large=large))
    vendor.configure(script=["truncated"])
    outcome = house.run(["hi"])
    assert (vendor.stats().requests, outcome.rows[0]["status"]) == (asked, "ok" if asked == 2 else "rejected")


def test_cut_answers_are_asked_for_with_a_larger_limit_unless_the_policy_says_otherwise() -> None:
    assert "truncated" in Route(tiers={"simple": ["small"]}, masking="off").escalate.on


@pytest.mark.parametrize("kind", ["filtered", "refused"])
@pytest.mark.parametrize(("listed", "upper", "asked"), [
    (True, "openai/gpt-4o", 2),
    (True, "openai/gpt-4o-mini", 1),
    (False, "openai/gpt-4o", 1),
])  # fmt: skip
def test_what_one_model_withholds_only_another_one_is_asked_for(
    house: House, vendor: VendorDouble, kind: str, listed: bool, upper: str, asked: int
) -> None:
    house.write(two_tiers([kind] if listed else ["schema"], upper=upper))
    vendor.configure(script=[kind])
    outcome = house.run(["hi"])
    assert (vendor.stats().requests, outcome.rows[0]["status"]) == (asked, "ok" if asked == 2 else "rejected")


def test_a_difference_is_told_once_for_each_deployment(
    house: House, vendor: VendorDouble, caplog: pytest.LogCaptureFixture
) -> None:
    vendor.configure(answers={"other": RawAnswer(json.dumps(said(body={"model": "gpt-4o", "service_tier": "flex"})))})
    with caplog.at_level(logging.WARNING):
        house.run([f"{n} [[double:other]]" for n in range(3)])
    told = [event for event in events(house) if event["event.action"] == "answer.differs"]
    assert sorted(event["event.reason"] for event in told) == ["model", "service_tier"]
    assert {event["gen_ai.response.model"] for event in told} == {"gpt-4o"}
    assert len([record for record in caplog.records if "not what was asked for" in record.getMessage()]) == 2


def test_the_vendors_own_figure_is_charged_and_named(house: House, vendor: VendorDouble) -> None:
    vendor.configure(answers={"dear": RawAnswer(json.dumps(said(usage={"cost": 0.00003})), cost_nanodollars=30_000)})
    house.run(["hi [[double:dear]]"])
    (row,) = house.requests()
    assert (row["cost_nano"], row["price_version"]) == (invoiced(vendor), "vendor")
    assert house.spent() == 30_000


@pytest.mark.parametrize(("model", "max_tokens", "params", "warned"), [
    ("openai/gpt-5-mini", 512, {}, True),
    ("openai/gpt-5-mini", 4096, {}, False),
    ("openai/gpt-5-mini", 512, {"reasoning_effort": "none"}, False),
    ("openai/o4-mini", 512, {}, True),
    ("openai/gpt-4o-mini", 512, {}, False),
    ("hosted_vllm/deepseek-r1", 512, {}, True),
    ("hosted_vllm/llama-3", 512, {}, False),
])  # fmt: skip
def test_a_plan_warns_of_a_model_that_reasons_with_a_small_limit(
    house: House, model: str, max_tokens: int, params: dict[str, Any], warned: bool
) -> None:
    price = {"input_per_mtok": 1, "output_per_mtok": 1}
    house.write(
        policy(
            deployments={"small": deployment(model=model, price=price, params=params, timeout=600)},
            max_tokens=max_tokens,
        )
    )
    plan = plan_spend(house.job(["hi"], sink=""), Caller("d", "r", "t"), house.settings)
    assert bool(plan.warnings) == warned
    assert plan_document(plan)["warnings"] == list(plan.warnings)
    if warned:
        assert "max_tokens 512" in plan_figures(plan)["warning"]


GEMINI, ANTHROPIC = "gemini/gemini-2.0-flash", "anthropic/claude-sonnet-4-5"


def gemini(finish: str | None, text: str = "ye", **more: Any) -> dict[str, Any]:
    candidate = {
        "content": {"role": "model", "parts": [{"text": text}] if text else []},
        "finishReason": finish,
        "index": 0,
    }
    return {"responseId": "g", "candidates": [candidate], "usageMetadata": gemini_body()["usageMetadata"], **more}


def anthropic(stop: str, **usage: Any) -> dict[str, Any]:
    return {**anthropic_body(**usage), "stop_reason": stop}


@pytest.mark.parametrize(("model", "body", "ending"), [
    (GEMINI, gemini("STOP"), "stop"),
    (GEMINI, gemini("MAX_TOKENS"), "length"),
    (GEMINI, gemini("MAX_TOKENS", ""), "length"),
    (GEMINI, gemini("SAFETY"), "content_filter"),
    (GEMINI, gemini("SPII"), "content_filter"),
    (GEMINI, gemini("PROHIBITED_CONTENT", ""), "content_filter"),
    (GEMINI, gemini("MALFORMED_RESPONSE"), "error"),
    (GEMINI, {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 9}}, "content_filter"),
    (ANTHROPIC, anthropic("end_turn"), "stop"),
    (ANTHROPIC, anthropic("max_tokens"), "length"),
    (ANTHROPIC, anthropic("model_context_window_exceeded"), "length"),
    (ANTHROPIC, anthropic("refusal"), "refusal"),
])  # fmt: skip
async def test_vendors_with_a_protocol_of_their_own_end_answers_in_their_own_words(
    model: str, body: dict[str, Any], ending: str
) -> None:
    """litellm calls many of these ``stop``, or a refusal a filter."""
    async with answering(200, json.dumps(body).encode()) as url:
        if ending == "error":
            error = await failure(provider(url, model=model))
            assert (error.kind, error.billed) == ("server_error", True)
        else:
            assert (await ask(provider(url, model=model))).finish_reason == ending


async def test_their_service_tier_is_read_too() -> None:
    async with answering(200, json.dumps(anthropic("end_turn", service_tier="priority")).encode()) as url:
        claims = (await ask(provider(url, model=ANTHROPIC))).claims
    assert (claims.service_tier, claims.model) == ("priority", "claude-sonnet-4-5")
