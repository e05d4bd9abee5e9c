"""Checks on an answer, before it is given back. Pure: an answer goes in, the reason to reject it comes out.

An answer is held to its schema as its reader will see it, with the row's own values in place. Reasons name places and
rules, never a value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import orjson

from airflow_ai_provider.core.errors import PrivacyError, PromptError
from airflow_ai_provider.core.privacy.masking.tokens import TokenReport
from airflow_ai_provider.core.prompts.messages import answer_of, forced
from airflow_ai_provider.core.providers.finish_reasons import ending_of, is_blank, reason_against

if TYPE_CHECKING:
    from pydantic import BaseModel

    from airflow_ai_provider.core.cache import Stored
    from airflow_ai_provider.core.pipeline.prepare import RowRequest

_NUMBER = re.compile(r"\d[\d.,]*\d")
"""Figures of two digits and more; single digits are list markers and counts too often to say anything."""
_FENCED = re.compile(r"\s*```[ \t]*(?:json[ \t]*)?\r?\n(.*)\n[ \t]*```\s*", re.DOTALL | re.IGNORECASE)
_RULE = re.compile(r"[a-z][a-z_]{0,39}")
_SHOWN_STEPS = 10
"""Of a place in an answer; what nests deeper is cut."""


def _no_tokens(answer: str) -> TokenReport:
    return TokenReport()


def _as_it_is(answer: str) -> str:
    return answer


class AnswerChecks:
    """The checks of one job, in the order of their cost."""

    def __init__(
        self,
        on: Iterable[str],
        output_schema: Mapping[str, Any] | None,
        *,
        output_model: type[BaseModel] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | Mapping[str, Any] | None = None,
    ) -> None:
        """Raises ``PromptError`` where ``output_schema``, or a tool's ``parameters``, is no JSON schema."""
        self._on = frozenset(on)
        self._schema = None if output_schema is None else _Schema("output_schema", output_schema, output_model)
        self._tools = {
            function["name"]: _Schema(f"tools: {function['name']}.parameters", function.get("parameters", {}))
            for function in (tool["function"] for tool in tools)
        }
        self._must_call = forced(tool_choice)

    def bare(self, text: str) -> str:
        """The JSON of an answer that a model has put in a Markdown fence; any other text as it is.

        Only where the job has a schema, and only where the fence is all there is around the JSON.
        """
        if self._schema is None or "```" not in text or not (match := _FENCED.fullmatch(text)):
            return text
        inner = match[1].strip()
        return text if _parsed(inner) is _NOT_JSON else inner

    def content(self, stored: Stored) -> str:
        """What the reader of an answer gets, still masked: its text, or the JSON of its tool calls."""
        return self.bare(answer_of(stored.text, stored.tool_calls))

    def verdict(self, stored: Stored, asked: RowRequest) -> str | None:
        """Return why an answer to a request, as its tier asks it, is rejected, as ``check: reason``; ``None`` if good.

        The same for an answer that was just given and one that was found.
        """
        try:
            return self.problem(
                self.content(stored),
                asked.text,
                asked.report,
                restored=asked.restored,
                calls=bool(stored.tool_calls),
                ending=ending_of(stored.finish_reason),
            )
        except PrivacyError as failure:
            return f"restore: {failure}"

    def problem(
        self,
        answer: str,
        prompt: str,
        tokens: Callable[[str], TokenReport] = _no_tokens,
        *,
        restored: Callable[[str], str] = _as_it_is,
        calls: bool = False,
        ending: str = "stop",
    ) -> str | None:
        """Why this answer to this (masked) prompt is rejected, as ``check: reason``; ``None`` if it is good.

        ``tokens`` says what an answer made of its row's tokens, ``restored`` puts the row's values in their place;
        ``calls`` says whether the answer is the JSON of tool calls (``tools.answer_of``), ``ending`` why it ended
        (``endings``). An answer that is not whole is rejected whichever checks are on. Raises what these raise.
        """
        if reason := reason_against(ending, has_text=not is_blank(answer)):
            return reason
        if "empty" in self._on and is_blank(answer):
            return "empty: the answer has no text"
        if calls:
            if reason := self._calls_problem(restored(answer)):
                return f"schema: {reason}"
        elif self._must_call:
            return "schema: the answer calls no tool"
        elif self._schema is not None and (reason := self._schema.breach(restored(answer))):
            return f"schema: {reason}"
        if "restore" in self._on and (reason := tokens(answer).problem):
            return f"restore: {reason}"
        if "grounding" in self._on and (figure := _ungrounded(answer, prompt)):
            return f"grounding: the answer has a figure that is not in the prompt ({len(figure)} characters)"
        return None

    def _calls_problem(self, answer: str) -> str | None:
        """An answer that calls what there is not, or not as that is to be called."""
        for number, call in enumerate(orjson.loads(answer)["tool_calls"]):
            place, schema = f"tool_calls/{number}", self._tools.get(call["name"])
            if schema is None:
                return f"{place} calls a function that is not among the tools"
            if isinstance(call["arguments"], str):
                return f"{place}/arguments is not JSON"
            if reason := schema.breach_of(call["arguments"], f"{place}/arguments"):
                return reason
        return None


class _Schema:
    """A compiled JSON schema (2020-12, unless its ``$schema`` says otherwise), and the pydantic model it is of."""

    def __init__(self, place: str, schema: Mapping[str, Any], model: type[BaseModel] | None = None) -> None:
        """Raises ``PromptError`` where it is none, or refers to what is not in it: found at the first answer, either
        would end a job whose calls are paid for. Nothing is fetched."""
        try:
            self._validator = jsonschema_rs.validator_for(dict(schema), retriever=_no_retrieval)
        except (ValueError, TypeError, RecursionError) as error:
            reason = str(getattr(error, "message", error)).partition("\n")[0]
            raise PromptError(f"{place}: not a JSON schema that can be checked: {reason}") from None
        self._names = frozenset(_property_names(schema))
        self._model = model

    def breach(self, answer: str) -> str | None:
        """The first violation of an answer by place and rule."""
        value = _parsed(answer)
        if value is _NOT_JSON:
            return "the answer is not JSON"
        return self.breach_of(value) or (self._model_breach(self._model, answer) if self._model else None)

    def breach_of(self, value: Any, root: str = "") -> str | None:
        if self._validator.is_valid(value):
            return None
        error = next(iter(self._validator.iter_errors(value)))
        rule = next((step for step in reversed(error.schema_path) if isinstance(step, str)), "false")
        return f"{self._place(error.instance_path, root)} breaks rule {rule!r}"

    def _model_breach(self, model: type[BaseModel], answer: str) -> str | None:
        """What the model's own validators say; their messages may quote the value."""
        from pydantic import ValidationError

        try:
            model.model_validate_json(answer)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            rule = first["type"] if _RULE.fullmatch(first["type"]) else "value_error"
            return f"{self._place(first['loc'])} breaks rule {rule!r} of {model.__name__}"
        except Exception as error:  # noqa: BLE001 - a validator is the user's code; its message may hold the value
            return f"a validator of {model.__name__} raised {type(error).__name__}"
        return None

    def _place(self, path: Sequence[str | int], root: str = "") -> str:
        """Names that the schema does not give are the model's own, and may be a person's: they stand as ``*``."""
        steps = [str(step) if isinstance(step, int) or step in self._names else "*" for step in path[:_SHOWN_STEPS]]
        return "/".join([root, *steps] if root else steps) or "the answer"


def _property_names(part: object) -> Iterator[str]:
    """Names of properties anywhere in a schema."""
    if isinstance(part, Mapping):
        if isinstance(properties := part.get("properties"), Mapping):
            yield from map(str, properties)
        for inner in part.values():
            yield from _property_names(inner)
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from _property_names(inner)


_NOT_JSON = object()


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _NOT_JSON


def _no_retrieval(uri: str) -> Any:
    raise LookupError("nothing is fetched")


def _ungrounded(answer: str, prompt: str) -> str | None:
    """The first figure of the answer that does not stand in the prompt."""
    figures = {figure: _plain(figure) for figure in _NUMBER.findall(answer)}
    if not figures:
        return None
    known = {_plain(figure) for figure in _NUMBER.findall(prompt)}
    return next((figure for figure, plain in figures.items() if plain not in known), None)


def _plain(figure: str) -> str:
    return unicodedata.normalize("NFKC", figure).replace(",", "")
