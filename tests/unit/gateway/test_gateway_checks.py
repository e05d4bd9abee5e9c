"""An answer is good, or there is a reason, and the reason holds nothing of the answer."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_ai_provider.errors import PromptError
from airflow_ai_provider.gateway.checks import AnswerChecks

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "items": {"type": "array", "items": {"type": "integer"}}},
    "required": ["kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("answer", ["", " \n\t", "\u3000"])
def test_an_answer_without_text_is_rejected(answer: str) -> None:
    assert AnswerChecks(["empty"], None).problem(answer, "prompt") == "empty: the answer has no text"


def test_a_check_that_is_off_is_not_made() -> None:
    assert AnswerChecks([], None).problem("", "prompt") is None
    assert AnswerChecks(["schema", "empty"], None).problem("fee is 4711", "prompt") is None


def test_an_answer_that_fits_its_schema_is_good() -> None:
    assert AnswerChecks(["schema"], SCHEMA).problem('{"kind": "a", "items": [1]}', "prompt") is None


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("a, I think", "schema: the answer is not JSON"),
        ('```json\n{"kind": "a"}\n```', "schema: the answer is not JSON"),
        ('{"kind": "a"', "schema: the answer is not JSON"),
        ("[]", "schema: the answer breaks rule 'type'"),
        ("{}", "schema: the answer breaks rule 'required'"),
        ('{"kind": "secret-value"}', "schema: kind breaks rule 'enum'"),
        ('{"kind": "a", "items": [1, "secret-value"]}', "schema: items/1 breaks rule 'type'"),
    ],
)
def test_a_breach_of_the_schema_is_named_by_place_and_rule(answer: str, problem: str) -> None:
    assert AnswerChecks(["schema"], SCHEMA).problem(answer, "prompt") == problem


def test_an_answer_is_held_to_its_schema_even_where_nothing_escalates() -> None:
    assert AnswerChecks([], SCHEMA).problem("no", "prompt") == "schema: the answer is not JSON"


@pytest.mark.parametrize(
    ("answer", "grounded"),
    [
        ("It costs £12.50 and takes 10 days", True),
        ("It costs £13.50", False),
        ("It costs 1,000", True),
        ("It costs 1000", True),
        ("It takes 3 steps", True),
        ("1. First 2. Second", True),
        ("Call [PHONE_72QMA]", True),
        ("费用是１２.50英镑", True),
        ("费用是99英镑", False),
    ],
)
def test_every_figure_of_an_answer_must_stand_in_the_prompt(answer: str, grounded: bool) -> None:
    prompt = "Fees: £12.50, limit 1,000 a day, 10 days. Caller [PHONE_72QMA]."
    problem = AnswerChecks(["grounding"], None).problem(answer, prompt)
    assert (problem is None) == grounded
    assert problem is None or ("13.50" not in problem and "99" not in problem)


def test_a_schema_that_is_none_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(PromptError, match="output_schema: not a JSON schema"):
        AnswerChecks([], {"type": "strang"})


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "#/$defs/missing"}, {"properties": {"a": {"$ref": "https://example.org/schema"}}}, {"pattern": "("}],
)
def test_a_schema_that_could_not_be_checked_is_refused_before_anything_is_asked(schema: dict[str, Any]) -> None:
    """Found at the first answer it would end a job whose calls are paid for."""
    with pytest.raises(PromptError, match="output_schema"):
        AnswerChecks([], schema)


def test_a_schema_may_refer_to_its_own_parts() -> None:
    schema = {"$defs": {"kind": {"enum": ["a"]}}, "properties": {"kind": {"$ref": "#/$defs/kind"}}}
    assert AnswerChecks([], schema).problem('{"kind": "a"}', "") is None
    assert AnswerChecks([], schema).problem('{"kind": "b"}', "") == "schema: kind breaks rule 'enum'"
