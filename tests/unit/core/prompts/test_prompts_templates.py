"""A row's text is data: it gets into a prompt as it is, and nothing it holds is ever run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ai_provider.core.prompts.templates import Renderer, RowTemplate
from airflow_ai_provider.errors import PromptError

HOSTILE = [
    "{{ 7*7 }}",
    "{% for x in range(3) %}x{% endfor %}",
    "{# gone? #}",
    "{{ ''.__class__.__mro__ }}",
    "{% raw %}",
    "{{ config }}",
    "{{",
    "%}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_reads_as_a_template_in_a_row_is_only_text(text: str) -> None:
    assert RowTemplate("Answer: {{ text }}!").render({"text": text}) == f"Answer: {text}!"


@given(st.text())
def test_any_text_gets_into_the_prompt_unchanged(text: str) -> None:
    assert RowTemplate("<{{ text }}>").render({"text": text}) == f"<{text}>"


@pytest.mark.parametrize(
    "template",
    [
        "{{ text.__class__ }}",
        "{{ text.__class__.__mro__[1].__subclasses__() }}",
        "{{ text['__class__'] }}",
        "{{ text|attr('__class__') }}",
        "{{ '{0.__class__}'.format(text) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ items.append(1) }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(template: str) -> None:
    with pytest.raises(PromptError):
        RowTemplate(template).render({"text": "secret-value", "items": [1]})


def test_an_endless_range_is_refused() -> None:
    with pytest.raises(PromptError, match="OverflowError while the row was put in"):
        RowTemplate("{% for x in range(n) %}{{ x }}{% endfor %}").render({"n": 10**9})


def test_a_missing_column_is_named_with_those_there_are() -> None:
    template = RowTemplate("{{ texxt }} {{ language }}")
    with pytest.raises(PromptError, match="prompt: no column texxt in the rows; they have: id, language, text"):
        template.check_columns(["text", "language", "id"])


def test_conditions_and_loops_know_their_own_names() -> None:
    template = RowTemplate(
        "{% for part in text.split(',') %}{{ loop.index }}{{ part }}{% endfor %}{% set n = 1 %}{{ n }}"
    )
    assert template.columns == {"text"}
    assert template.render({"text": "a,b"}) == "1a2b1"


def test_what_every_template_may_use_is_no_column() -> None:
    template = RowTemplate("{% for i in range(2) %}{{ text }}{% endfor %}")
    template.check_columns(["text"])
    assert template.render({"text": "a"}) == "aa"


def test_a_column_may_have_the_name_of_a_function_of_templates() -> None:
    template = RowTemplate("{{ range }}")
    assert template.render({"range": "0-9"}) == "0-9"


def test_one_rows_values_are_not_left_over_for_the_next() -> None:
    template = RowTemplate("{% set seen = text %}{{ seen }}")
    assert [template.render({"text": text}) for text in "ab"] == ["a", "b"]


def test_a_name_that_is_not_there_is_an_error_that_names_it() -> None:
    with pytest.raises(PromptError, match="prompt: 'language' is undefined"):
        RowTemplate("{{ text }}{{ language }}").render({"text": "x"})


@pytest.mark.parametrize(
    "template", ["{{ {'en': 'English'}[text] }}", "{{ text + 1 }}", "{{ text | int(text, 0) / 0 }}", "{{ text.nope }}"]
)
def test_no_error_message_holds_the_rows_text(template: str) -> None:
    with pytest.raises(PromptError) as caught:
        RowTemplate(template).render({"text": "4111-secret"})
    assert "4111-secret" not in str(caught.value)


def test_a_syntax_error_has_its_line() -> None:
    with pytest.raises(PromptError, match=r"^prompt:3: .*endif"):
        RowTemplate("one\n{% if text %}\ntwo {{ text }}")
    with pytest.raises(PromptError, match=r"^prompt:2: unexpected"):
        RowTemplate("one\n{{ text }")


@pytest.mark.parametrize("template", ["", "  \n"])
def test_an_empty_template_is_refused(template: str) -> None:
    with pytest.raises(PromptError, match="prompt: the template is empty"):
        RowTemplate(template)


def test_a_template_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "support.j2"
    path.write_text("问: {{ text }}", encoding="utf-8")
    template = RowTemplate(f"file:{path}")
    assert template.render({"text": "x"}) == "问: x"
    assert template.version == RowTemplate("问: {{ text }}").version
    path.write_text("{% if %}")
    with pytest.raises(PromptError, match=rf"^{path}:1: "):
        RowTemplate(f"file:{path}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.j2"
    with pytest.raises(PromptError, match=rf"{path}: no such prompt file"):
        Renderer(f"file:{path}")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PromptError, match=rf"{path}: cannot be read .*UTF-8"):
        Renderer("{{ text }}", f"file:{path}")


def test_a_system_prompt_comes_first_and_is_no_template() -> None:
    messages = Renderer("{{ text }}", "Say {{ text }}.").messages({"text": "hi"})
    assert messages == [{"role": "system", "content": "Say {{ text }}."}, {"role": "user", "content": "hi"}]


def test_the_version_follows_the_prompt_and_the_system_prompt() -> None:
    versions = {Renderer(*made).version for made in (("{{ a }}",), ("{{ a }} ",), ("{{ a }}", "s"), ("{{ a }}", "t"))}
    assert len(versions) == 4
    assert Renderer("{{ a }}", "s").version == Renderer("{{ a }}", "s").version


def made_by(function: Callable[..., Any]) -> list[dict[str, Any]]:
    return Renderer(function).messages({"text": "hi"})


def test_a_function_may_return_text_or_messages() -> None:
    assert made_by(lambda row: row["text"] + "!") == [{"role": "user", "content": "hi!"}]
    dialogue = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert made_by(lambda row: tuple(dialogue)) == dialogue


def test_what_a_function_returns_is_no_template() -> None:
    assert made_by(lambda row: "{{ text }} {{ 7*7 }}")[0]["content"] == "{{ text }} {{ 7*7 }}"


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        7,
        [],
        {"role": "user", "content": "x"},
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": 7}],
        [{"role": "user"}],
        [{"role": "user", "content": "x", "name": "n"}],
        ["text"],
        b"bytes",
    ],
)
def test_a_function_that_returns_something_else_is_told_what_to_return(garbage: object) -> None:
    with pytest.raises(PromptError, match=f"must return text, or messages .* it returned {type(garbage).__name__}"):
        made_by(lambda row: garbage)


def test_a_function_that_raises_is_named_by_its_error_without_the_rows_text() -> None:
    def fails(row: dict[str, str]) -> str:
        raise KeyError(f"no translation of {row['text']}")

    with pytest.raises(PromptError, match=r"the prompt function raised KeyError for this row$"):
        Renderer(fails).messages({"text": "4111-secret"})
