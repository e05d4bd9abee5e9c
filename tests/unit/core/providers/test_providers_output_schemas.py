"""A schema is sent strictly where vendor and schema allow it, and never changed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from support.providers import ADAPTERS, ask, failure, provider

from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.providers.parameters import StrictRules, strict_rules
from airflow_ai_provider.errors import ParameterRefused
from airflow_ai_provider.testing.vendor import VendorDouble

both = pytest.mark.parametrize("adapter", ADAPTERS)


def closed(**properties: Any) -> dict[str, Any]:
    """An object that a strict schema may hold."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


TEXT = {"type": "string"}
PLAIN = closed(topic=TEXT)


def nested(levels: int) -> dict[str, Any]:
    schema = closed(leaf=TEXT)
    for _ in range(levels - 1):
        schema = closed(inner=schema)
    return schema


ALLOWED: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "nothing in it": closed(),
    "a nullable field": closed(topic={"type": ["string", "null"]}),
    "enum and const": closed(topic={"enum": ["a", "b"]}, kind={"const": "x"}),
    "any of": closed(topic={"anyOf": [TEXT, {"type": "null"}, closed(a=TEXT)]}),
    "a list of objects": closed(items={"type": "array", "items": closed(a=TEXT)}),
    "a definition": {**closed(a={"$ref": "#/$defs/A"}), "$defs": {"A": closed(b=TEXT)}},
    "itself": {**closed(a={"anyOf": [{"$ref": "#"}, {"type": "null"}]})},
    "a title": {**PLAIN, "title": "T", "description": "d"},
    "bounds": closed(n={"type": "integer", "minimum": 1, "maximum": 5}, d={"type": "string", "format": "date"}),
    "a pattern with a group": closed(a={"type": "string", "pattern": "^(?:a|b)+$"}),
    "ten levels": nested(10),
    "many properties": closed(**{f"p{number}": TEXT for number in range(5000)}),
}
REFUSED: dict[str, dict[str, Any]] = {
    "open": {"type": "object", "properties": {"topic": TEXT}, "required": ["topic"]},
    "open on purpose": {**PLAIN, "additionalProperties": True},
    "a map": {**PLAIN, "additionalProperties": TEXT},
    "an optional field": {**closed(a=TEXT, b=TEXT), "required": ["a"]},
    "open inside": closed(a={"type": "object", "properties": {"b": TEXT}, "required": ["b"]}),
    "open in a list": closed(a={"type": "array", "items": {"type": "object"}}),
    "open in a definition": {**closed(a={"$ref": "#/$defs/A"}), "$defs": {"A": {"type": "object"}}},
    "open in any of": closed(a={"anyOf": [TEXT, {"type": "object"}]}),
    "a list of anything": closed(a={"type": "array"}),
    "no type": closed(a={}),
    "true": closed(a=True),
    "no object": {"type": "array", "items": TEXT},
    "any of at the root": {"anyOf": [PLAIN, PLAIN]},
    "one of": closed(a={"oneOf": [TEXT, {"type": "null"}]}),
    "all of": {**PLAIN, "allOf": [PLAIN]},
    "if": {**PLAIN, "if": {}, "then": {}},
    "a default": closed(a={"type": "string", "default": "x"}),
    "a length": closed(a={"type": "string", "maxLength": 5}),
    "a format of its own": closed(a={"type": "string", "format": "uri"}),
    "a reference with more beside it": {**closed(a={"$ref": "#/$defs/A", "title": "t"}), "$defs": {"A": PLAIN}},
    "a pattern that looks ahead": closed(a={"type": "string", "pattern": "^(?!x).*"}),
    "a pattern that refers back": closed(a={"type": "string", "pattern": r"^(a|b)\1$"}),
    "eleven levels": nested(12),
    "too many properties": closed(**{f"p{number}": TEXT for number in range(5001)}),
    "too many values": closed(a={"enum": [*range(1001)]}),
    "values too long": closed(a={"enum": [f"{number:0>60}" for number in range(251)]}),
    "names too long": closed(**{"n" * 60_001: TEXT, "m" * 60_000: TEXT}),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_a_schema_that_keeps_the_rules_is_strict(case: str) -> None:
    assert StrictRules().allow(ALLOWED[case])


@pytest.mark.parametrize("case", REFUSED)
def test_any_other_schema_is_not(case: str) -> None:
    assert not StrictRules().allow(REFUSED[case])


@pytest.mark.parametrize(
    ("model", "bounds", "six_levels"),
    [
        ("openai/gpt-4o", True, True),
        ("openai/ft:gpt-4o:acme::x", False, True),
        ("azure/chat", False, False),
        ("openrouter/openai/gpt-4o", True, True),
    ],
)
def test_vendors_differ_in_what_they_take(model: str, bounds: bool, six_levels: bool) -> None:
    rules = strict_rules(Deployment(model=model))
    assert rules is not None
    assert rules.allow(PLAIN)
    assert (rules.allow(ALLOWED["bounds"]), rules.allow(nested(7))) == (bounds, six_levels)


@pytest.mark.parametrize("model", ["hosted_vllm/x", "groq/x", "deepseek/x", "anthropic/claude-sonnet-5"])
def test_other_vendors_are_sent_none(model: str) -> None:
    assert strict_rules(Deployment(model=model)) is None


async def sent(vendor: VendorDouble, adapter: str, schema: dict[str, Any], model: str) -> dict[str, Any]:
    """The format that the vendor saw."""
    vendor.reset()
    before = copy.deepcopy(schema)
    await ask(provider(vendor.base_url, adapter=adapter, model=model), schema=schema)
    assert schema == before
    (seen,) = vendor.requests()
    assert seen.body["response_format"]["json_schema"]["schema"] == before
    return dict(seen.body["response_format"]["json_schema"])


@both
async def test_both_adapters_send_the_flag_and_the_schema_as_it_is(vendor: VendorDouble, adapter: str) -> None:
    for model, strict in (("openai/gpt-4o-mini", True), ("hosted_vllm/house", None)):
        assert (await sent(vendor, adapter, PLAIN, model)).get("strict") is strict
    assert "strict" not in await sent(vendor, adapter, REFUSED["an optional field"], "openai/gpt-4o-mini")


@both
async def test_tools_go_as_their_author_wrote_them(vendor: VendorDouble, adapter: str) -> None:
    tools = tuple(
        {"type": "function", "function": {"name": f"t{number}", "parameters": PLAIN, **strict}}
        for number, strict in enumerate(({}, {"strict": True}, {"strict": False}))
    )
    await ask(provider(vendor.base_url, adapter=adapter), tools=tools)
    (seen,) = vendor.requests()
    assert seen.body["tools"] == [*tools]


@both
async def test_a_model_that_refuses_strict_is_asked_without_and_answers_by_the_schema(
    vendor: VendorDouble, adapter: str
) -> None:
    vendor.configure(demands_strict=False)
    asked = provider(vendor.base_url, adapter=adapter)
    assert isinstance(await failure(asked, schema=PLAIN), ParameterRefused)
    assert json.loads((await ask(asked, schema=PLAIN)).text).keys() == {"topic"}
    assert [seen.body["response_format"]["json_schema"].get("strict") for seen in vendor.requests()] == [True, None]


@both
async def test_a_server_that_demands_strict_gets_it(vendor: VendorDouble, adapter: str) -> None:
    vendor.configure(demands_strict=True)
    asked = provider(vendor.base_url, adapter=adapter, model="hosted_vllm/house")
    assert isinstance(await failure(asked, schema=PLAIN), ParameterRefused)
    assert json.loads((await ask(asked, schema=PLAIN)).text).keys() == {"topic"}
    assert [seen.body["response_format"]["json_schema"].get("strict") for seen in vendor.requests()] == [None, True]
    error = await failure(asked, schema=REFUSED["an optional field"])
    assert not isinstance(error, ParameterRefused)
