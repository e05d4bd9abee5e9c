"""An answer is good, or there is a reason, and the reason holds nothing of the answer."""

from __future__ import annotations

import datetime
from typing import Any, Literal

import pydantic
import pytest

from airflow_ai_provider.core.checks.answer_checks import AnswerChecks
from airflow_ai_provider.errors import PromptError

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


# Pydantic models: their own validators count, and what they say is not repeated.


class Quote(pydantic.BaseModel):
    kind: Literal["a", "b"]
    day: datetime.date
    share: float = 0.5

    @pydantic.field_validator("share")
    @classmethod
    def _no_half(cls, share: float) -> float:
        if share > 1:
            raise ValueError(f"{share} is more than all")
        return share

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Quote:
        if self.kind == "b" and self.share == 0:
            raise RuntimeError(f"a fault with {self.share}")
        return self


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('{"kind": "a", "day": "2026-01-31"}', None),
        ('{"kind": "a", "day": "2026-02-31"}', "schema: day breaks rule 'date_from_datetime_parsing' of Quote"),
        ('{"kind": "a", "day": "2026-01-31", "share": 4.75}', "schema: share breaks rule 'value_error' of Quote"),
        ('{"kind": "b", "day": "2026-01-31", "share": 0}', "schema: a validator of Quote raised RuntimeError"),
        ('{"kind": "c", "day": "2026-01-31"}', "schema: kind breaks rule 'enum'"),
        ('{"kind": "a", "day": "2026-01-31", "share": "0.5"}', "schema: share breaks rule 'type'"),
    ],
)
def test_a_model_checks_what_its_schema_cannot_say(answer: str, problem: str | None) -> None:
    checks = AnswerChecks([], Quote.model_json_schema(), output_model=Quote)
    said = checks.problem(answer, "prompt")
    assert said == problem or (said or "").startswith("schema: day breaks rule 'date_")
    assert "4.75" not in str(said)


def test_names_that_a_model_made_up_are_not_shown() -> None:
    """The keys of an answer may be names of persons."""
    schema = {"type": "object", "properties": {"by": {"type": "object", "additionalProperties": {"type": "integer"}}}}
    said = AnswerChecks([], schema).problem('{"by": {"Ada Lovelace": "x"}}', "prompt")
    assert said == "schema: by/* breaks rule 'type'"


def test_an_answer_is_held_to_its_schema_with_the_rows_values_in_it() -> None:
    schema = {"type": "object", "properties": {"to": {"type": "string", "pattern": "^[a-z@.]+$"}}}
    checks = AnswerChecks([], schema)
    answer = '{"to": "[EMAIL_7K2QM]"}'
    assert checks.problem(answer, "prompt") == "schema: to breaks rule 'pattern'"
    assert checks.problem(answer, "prompt", restored=lambda a: a.replace("[EMAIL_7K2QM]", "ann@example.com")) is None


def test_an_answer_may_nest_as_deep_as_it_likes() -> None:
    checks = AnswerChecks([], {"type": "array", "items": {"$ref": "#"}})
    assert checks.problem("[" * 900 + "]" * 900, "prompt") is None
    assert checks.problem("[" * 900 + "7" + "]" * 900, "prompt") == f"schema: {'/'.join('0' * 10)} breaks rule 'type'"
    assert checks.problem("[" * 5000 + "]" * 5000, "prompt") == "schema: the answer is not JSON"


def test_no_pattern_of_a_schema_can_be_made_slow() -> None:
    checks = AnswerChecks([], {"properties": {"a": {"pattern": "^(a+)+$"}}})
    # With backtracking this would take longer than the universe has.
    assert checks.problem(f'{{"a": "{"a" * 50_000}!"}}', "prompt") == "schema: a breaks rule 'pattern'"


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"kind": "a"}\n```',
        '```\n{"kind": "a"}\n```',
        '\n``` JSON \n\n{"kind": "a"}\n\n  ```\n',
        '```json\r\n{"kind": "a"}\r\n```',
    ],
)
def test_json_in_a_fence_is_taken_out_of_it(text: str) -> None:
    checks = AnswerChecks(["schema"], SCHEMA)
    assert checks.bare(text) == '{"kind": "a"}'
    assert checks.problem(checks.bare(text), "prompt") is None


@pytest.mark.parametrize(
    "text",
    [
        'Here it is:\n```json\n{"kind": "a"}\n```',
        '```json\n{"kind": "a"}\n```\n```json\n{"kind": "b"}\n```',
        "```json\nno JSON\n```",
        '{"kind": "```"}',
        "```",
    ],
)
def test_what_is_more_than_json_in_a_fence_stays_as_it_is(text: str) -> None:
    assert AnswerChecks(["schema"], SCHEMA).bare(text) == text


def test_without_a_schema_a_fence_is_part_of_the_answer() -> None:
    assert AnswerChecks(["empty"], None).bare("```json\n{}\n```") == "```json\n{}\n```"
