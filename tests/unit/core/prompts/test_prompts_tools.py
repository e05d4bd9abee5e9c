"""Tools are passed on as they are defined; what a model calls is the answer, and holds the row's own values again."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from airflow_ai_provider.core.checks.answer_checks import AnswerChecks
from airflow_ai_provider.core.privacy.masking.masker import Masker, MaskingRules
from airflow_ai_provider.core.prompts.messages import answer_of, check_tools, tools_bytes
from airflow_ai_provider.errors import PromptError

REFUND: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "refund",
        "description": "Pay back",
        "parameters": {
            "type": "object",
            "properties": {"order": {"type": "string"}, "cents": {"type": "integer"}, "to": {"type": "string"}},
            "required": ["order"],
        },
    },
}
CLOSE: dict[str, Any] = {"type": "function", "function": {"name": "close_case"}}


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def function(**changes: Any) -> list[Any]:
    return [{"type": "function", "function": {**REFUND["function"], **changes}}]


def test_definitions_as_openai_documents_them_are_taken() -> None:
    check_tools([REFUND, CLOSE], None)
    for choice in ("auto", "none", "required", {"type": "function", "function": {"name": "close_case"}}):
        check_tools([REFUND, CLOSE], choice)
    check_tools((), None)


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ({"type": "function"}, None, "tools: expected a list of function definitions"),
        ("refund", None, "tools: expected a list"),
        ([{"type": "web_search"}], None, r"tools\[0\]: .*tools that a vendor runs itself are not passed on"),
        ([{**REFUND, "cache": 1}], None, r"tools\[0\]: expected"),
        ([REFUND, "x"], None, r"tools\[1\]: expected"),
        (function(name="re fund"), None, r"tools\[0\]\.function\.name: expected up to 64 letters"),
        (function(parameters="{}"), None, r"tools\[0\]\.function\.parameters: expected a JSON schema"),
        (function(parameters={"enum": [object()]}), None, r"tools\[0\]: holds something that JSON cannot"),
        (function(description=7), None, r"tools\[0\]\.function: expected description as text"),
        (function(extra=1), None, r"tools\[0\]\.function: unknown key 'extra'"),
        ([REFUND, REFUND], None, r"tools\[1\]: a second function 'refund'"),
        ([], "auto", "tool_choice: there are no tools"),
        ([REFUND], "refund", "tool_choice: expected one of auto, none, required"),
        ([REFUND], {"type": "function", "function": {"name": "nope"}}, "tool_choice: no function 'nope'"),
        ([REFUND], {"type": "function", "function": {}}, "tool_choice: expected"),
    ],
)
def test_what_is_wrong_with_tools_is_named(tools: Any, choice: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_tools(tools, choice)


def test_tools_count_as_bytes_of_the_prompt_and_more() -> None:
    assert tools_bytes(()) == 0
    assert tools_bytes([REFUND]) > len(orjson.dumps([REFUND])) + 530


def test_an_answer_without_calls_is_its_text() -> None:
    assert answer_of("hello", ()) == "hello"


def test_calls_are_json_with_their_arguments_as_they_were_sent() -> None:
    answer = answer_of("", [call("refund", '{"order": "A1",  "cents": 123456789012345678901234}')])
    assert answer == (
        '{"tool_calls":[{"name":"refund","arguments":{"order": "A1",  "cents": 123456789012345678901234}}]}'
    )


@pytest.mark.parametrize(
    ("sent", "given"),
    [("", {}), ("  ", {}), ('{"a": ', '{"a": '), ({"a": 1}, {"a": 1}), (None, None), ("[1]", [1])],
)
def test_arguments_that_are_no_json_stay_text(sent: Any, given: Any) -> None:
    assert json.loads(answer_of("", [call("f", sent)]))["tool_calls"] == [{"name": "f", "arguments": given}]


def test_what_a_model_writes_beside_its_calls_is_kept() -> None:
    assert json.loads(answer_of("I refund.", [call("close_case", "{}")]))["text"] == "I refund."


def test_values_come_back_into_arguments_and_they_stay_json() -> None:
    mask = Masker(MaskingRules(detect=frozenset({"email"}), columns={"name": "PERSON"}), b"k" * 32, "s").for_row(
        {"name": 'Ann "Q" Lee'}
    )
    (person, email) = (mask.mask(text) for text in ('Ann "Q" Lee', "ann@example.com"))
    answer = answer_of(f"for {person}", [call("refund", json.dumps({"order": person, "to": f"<{email}>", "cents": 5}))])
    restored = json.loads(mask.restore_value(answer))
    assert restored["tool_calls"][0]["arguments"] == {"order": 'Ann "Q" Lee', "to": "<ann@example.com>", "cents": 5}
    assert restored["text"] == 'for Ann "Q" Lee'


def checks(choice: Any = None, **changes: Any) -> AnswerChecks:
    return AnswerChecks(["empty", "schema"], changes.get("schema"), tools=[REFUND, CLOSE], tool_choice=choice)


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("refund", '{"order": "A1"}', None),
        ("close_case", "", None),
        ("close_case", '{"any": "thing"}', None),
        ("delete", "{}", "schema: tool_calls/0 calls a function that is not among the tools"),
        ("refund", '{"order": ', "schema: tool_calls/0/arguments is not JSON"),
        ("refund", "{}", "schema: tool_calls/0/arguments breaks rule 'required'"),
        ("refund", '{"order": 7}', "schema: tool_calls/0/arguments/order breaks rule 'type'"),
    ],
)
def test_calls_are_held_to_the_tools(name: str, arguments: str, problem: str | None) -> None:
    answer = answer_of("", [call(name, arguments)])
    assert checks().problem(answer, "prompt", calls=True) == problem


def test_an_answer_of_calls_is_neither_empty_nor_held_to_the_output_schema() -> None:
    answer = answer_of("", [call("close_case", "{}")])
    assert checks(schema={"type": "object", "required": ["kind"]}).problem(answer, "prompt", calls=True) is None


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "refund"}}])
def test_an_answer_that_should_call_and_does_not_is_rejected(choice: Any) -> None:
    assert checks(choice).problem("I cannot", "prompt") == "schema: the answer calls no tool"
    assert checks("auto").problem("I cannot", "prompt") is None


def test_parameters_that_are_no_schema_are_refused_before_anything_is_asked() -> None:
    with pytest.raises(PromptError, match=r"^tools: refund\.parameters: not a JSON schema"):
        AnswerChecks([], None, tools=function(parameters={"type": "strang"}))
