"""Prompts as messages: templates per message and part, and a fast way that reads as Jinja's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from airflow_ai_provider.core.prompts.messages import shape_problem
from airflow_ai_provider.core.prompts.templates import Renderer, RowTemplate
from airflow_ai_provider.errors import PromptError

FEW_SHOTS = [
    {"role": "system", "content": "Answer in {{ language }}."},
    {"role": "user", "content": "Is the sky blue?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "{{ text }}"},
]
PICTURED = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is on it? {{ text }}"},
            {"type": "image", "uri": "file:///scans/{{ name }}.png"},
            {"type": "file", "uri": "s3://bucket/{{ name }}.pdf"},
        ],
    }
]
ROW = {"language": "German", "text": "{{ 7*7 }}", "name": "a"}


def test_each_message_is_a_template_of_its_own() -> None:
    renderer = Renderer(FEW_SHOTS, "Be kind.")
    assert renderer.columns == {"language", "text"}
    assert renderer.messages(ROW) == [
        {"role": "system", "content": "Be kind."},
        {"role": "system", "content": "Answer in German."},
        {"role": "user", "content": "Is the sky blue?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "{{ 7*7 }}"},
    ]


def test_texts_and_uris_of_parts_are_templates_and_a_uri_is_no_file_of_one() -> None:
    renderer = Renderer(PICTURED)
    assert renderer.attached == {"image", "file"}
    (message,) = renderer.messages(ROW)
    assert message["content"] == [
        {"type": "text", "text": "What is on it? {{ 7*7 }}"},
        {"type": "image", "uri": "file:///scans/a.png"},
        {"type": "file", "uri": "s3://bucket/a.pdf"},
    ]


def test_texts_that_no_row_changes_are_known_beforehand() -> None:
    assert Renderer(FEW_SHOTS, "Be kind.").constants == ("Be kind.", "Is the sky blue?", "yes")
    assert Renderer("{% if true %}x{% endif %}").constants == ()
    assert Renderer(lambda row: "x", "s").constants == ("s",)


def test_a_missing_column_of_any_message_is_named_with_its_place() -> None:
    with pytest.raises(PromptError, match=r"^prompt, message 0: no column language in the rows; they have: text"):
        Renderer(FEW_SHOTS).check_columns(["text"])
    with pytest.raises(PromptError, match=r"^prompt, message 0, part 1: name is null in this row"):
        Renderer(PICTURED).messages({"text": "x", "name": None})


class Text(str):
    """As ``numpy.str_`` and ``markupsafe.Markup`` are."""

    def __str__(self) -> str:
        return "something else"


@pytest.mark.parametrize(
    "made",
    [Text("hi"), [{"role": "user", "content": Text("hi")}], ({"role": Text("user"), "content": Text("hi")},)],
)
def test_texts_of_derived_types_are_texts(made: Any) -> None:
    (message,) = Renderer(lambda _: made).messages({})
    assert message == {"role": "user", "content": "hi"}
    assert type(message["content"]) is str
    parts = [{"role": "user", "content": ({"type": Text("text"), "text": Text("hi")},)}]
    (message,) = Renderer(lambda _: parts).messages({})
    assert message["content"] == [{"type": "text", "text": "hi"}]
    assert type(message["content"][0]["text"]) is str


def test_the_version_follows_every_template_and_role() -> None:
    changed: list[Any] = [
        FEW_SHOTS,
        FEW_SHOTS[1:],
        [{**FEW_SHOTS[0], "role": "user"}, *FEW_SHOTS[1:]],
        [*FEW_SHOTS[:3], {"role": "user", "content": [{"type": "text", "text": "{{ text }}"}]}],
        PICTURED,
    ]
    assert len({Renderer(prompt).version for prompt in changed}) == len(changed)
    assert Renderer(FEW_SHOTS).version == Renderer([dict(message) for message in FEW_SHOTS]).version


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "expected messages such as"),
        ("text", "expected messages such as"),
        ({"role": "user", "content": "x"}, "expected messages such as"),
        ([{"role": "user"}], "message 0: expected role and content, and nothing else"),
        ([{"role": "user", "content": "x", "name": "n"}], "message 0: expected role and content, and nothing else"),
        ([{"role": "tool", "content": "x"}], "message 0: role: expected one of system, user, assistant"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": 7}], "message 1: content: expected text"),
        ([{"role": "user", "content": []}], "message 0: content: expected text, or a list of parts"),
        ([{"role": "user", "content": ["x"]}], "message 0: part 0: type: expected one of text, image, file"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "message 0: part 0: type: expected"),
        ([{"role": "user", "content": [{"type": "image", "uri": 7}]}], "part 0: expected type and uri, both text"),
        ([{"role": "user", "content": [{"type": "text", "text": "x", "uri": "y"}]}], "expected type and text"),
        ([{"role": "system", "content": [{"type": "file", "uri": "x"}]}], "only a message of the user can hold one"),
    ],
)
def test_what_is_wrong_with_messages_is_named_by_its_place(messages: Any, problem: str) -> None:
    said = shape_problem(messages)
    assert said is not None
    assert problem in said
    if not isinstance(messages, str):
        with pytest.raises(PromptError, match=r"^prompt: "):
            Renderer(messages)


def test_a_function_may_return_images_and_files() -> None:
    made = Renderer(lambda row: [{"role": "user", "content": [{"type": "image", "uri": row["name"]}]}]).messages(ROW)
    assert made == [{"role": "user", "content": [{"type": "image", "uri": "a"}]}]
    with pytest.raises(PromptError, match=r"it returned list: message 0: part 0: expected type and uri"):
        Renderer(lambda row: [{"role": "user", "content": [{"type": "image", "url": "secret"}]}]).messages(ROW)


# Templates of nothing but text and columns are joined without Jinja.

_SANDBOX = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
_PIECES = st.lists(
    st.one_of(
        st.text(alphabet="ab é张\n\r\t\\'\"%#}{", max_size=6).filter(
            lambda t: not any(s in t for s in ("{{", "{%", "{#"))
        ),
        st.sampled_from(["{{ a }}", "{{b}}", "{{- a -}}", "{{ c }}", "{# note #}", "{% raw %}{{ a }}{% endraw %}"]),
    ),
    max_size=6,
).map("".join)
_VALUES = st.one_of(st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.binary(max_size=3))


@given(_PIECES, _VALUES, _VALUES, _VALUES)
def test_the_fast_way_makes_what_jinja_makes(source: str, a: Any, b: Any, c: Any) -> None:
    row = {"a": a, "b": b, "c": c}
    try:
        expected = _SANDBOX.from_string(source).render(**row)
        template = RowTemplate(source)
    except Exception:  # no template, or an empty one
        return
    assert template.render(row) == expected


@pytest.mark.parametrize("source", ["{{ self }}", "{{ range }}", "{{ loop }}", "{{ a.b }}", "{{ a or '' }}", "{{ 1 }}"])
def test_what_is_more_than_a_column_is_left_to_jinja(source: str) -> None:
    assert RowTemplate(source)._plain is None


class _Shown(str):
    def __str__(self) -> str:
        return "shown"


def test_the_fast_way_asks_a_value_how_it_reads_and_says_what_is_wrong() -> None:
    class Broken:
        def __str__(self) -> str:
            raise ValueError("4111-secret")

    template = RowTemplate("<{{ a }}>")
    assert template.render({"a": _Shown("x")}) == "<shown>"
    for value, words in ((None, "a is null in this row"), (Broken(), "ValueError while the row was put in")):
        with pytest.raises(PromptError, match=words) as caught:
            template.render({"a": value})
        assert "4111" not in str(caught.value)
    with pytest.raises(PromptError, match="'a' is undefined for this row"):
        template.render({"b": 1})
