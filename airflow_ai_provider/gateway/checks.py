"""Checks on an answer, before it is given back. Pure: an answer goes in, the reason to reject it comes out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import orjson
from jsonschema import Draft202012Validator, SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from airflow_ai_provider.errors import PromptError
from airflow_ai_provider.privacy.restoring import TokenReport

_NUMBER = re.compile(r"\d[\d.,]*\d")
"""Figures of two digits and more; single digits are list markers and counts too often to say anything."""


def _no_tokens(answer: str) -> TokenReport:
    return TokenReport()


class AnswerChecks:
    """The checks of one job, in the order of their cost."""

    def __init__(self, on: Iterable[str], output_schema: Mapping[str, Any] | None) -> None:
        """Raises ``PromptError`` where ``output_schema`` is no JSON schema."""
        self._on = frozenset(on)
        self._validator: Draft202012Validator | None = None
        if output_schema is not None:
            try:
                Draft202012Validator.check_schema(output_schema)
            except SchemaError as error:
                raise PromptError(f"output_schema: not a JSON schema: {error.message}") from None
            _check_references(output_schema)
            self._validator = Draft202012Validator(output_schema)

    def problem(self, answer: str, prompt: str, tokens: Callable[[str], TokenReport] = _no_tokens) -> str | None:
        """Why this answer to this (masked) prompt is rejected, as ``check: reason``; ``None`` if it is good.

        ``tokens`` says what an answer made of its row's tokens.
        """
        if "empty" in self._on and not answer.strip():
            return "empty: the answer has no text"
        if self._validator is not None and (reason := _schema_problem(self._validator, answer)):
            return f"schema: {reason}"
        if "restore" in self._on and (reason := tokens(answer).problem):
            return f"restore: {reason}"
        if "grounding" in self._on and (figure := _ungrounded(answer, prompt)):
            return f"grounding: the answer has a figure that is not in the prompt ({len(figure)} characters)"
        return None


def _check_references(schema: Mapping[str, Any]) -> None:
    """Raise ``PromptError`` for a ``$ref`` that leads nowhere or out of the schema: nothing is fetched."""
    resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except (Unresolvable, ValueError):
            raise PromptError(f"output_schema: $ref {reference!r} is not in the schema itself") from None


def _references(part: object) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(reference := part.get("$ref"), str):
            yield reference
        for inner in part.values():
            yield from _references(inner)
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from _references(inner)


def _schema_problem(validator: Draft202012Validator, answer: str) -> str | None:
    """The first violation by place and rule; never the value, which may be personal."""
    try:
        value = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return "the answer is not JSON"
    for error in validator.iter_errors(value):
        place = "/".join(str(step) for step in error.absolute_path) or "the answer"
        return f"{place} breaks rule {error.validator!r}"
    return None


def _ungrounded(answer: str, prompt: str) -> str | None:
    """The first figure of the answer that does not stand in the prompt."""
    figures = {figure: _plain(figure) for figure in _NUMBER.findall(answer)}
    if not figures:
        return None
    known = {_plain(figure) for figure in _NUMBER.findall(prompt)}
    return next((figure for figure, plain in figures.items() if plain not in known), None)


def _plain(figure: str) -> str:
    return unicodedata.normalize("NFKC", figure).replace(",", "")
