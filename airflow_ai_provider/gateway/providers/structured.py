"""Output schemas and tools as they are sent, with ``strict: true`` where vendor and schema allow it.

The rules are OpenAI's, from its guide on structured outputs ("Supported schemas"); Azure and fine-tuned models support
fewer keywords. A schema is sent as it is or not strictly, and is never changed: answers are checked against it here in
either case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_ai_provider.gateway.providers.base import ModelRequest
from airflow_ai_provider.gateway.providers.dialect import NOT_STRICT, STRICT, Dialect
from airflow_ai_provider.policy import Deployment

_TAKES_STRICT = frozenset({"openai", "azure", "litellm_proxy", "openrouter", "cerebras", "mistral", "xai"})
"""Providers that document ``strict`` for any of their models. Others ignore it or refuse it for some of them."""
_PLAIN = frozenset(
    "type properties required additionalProperties items enum const anyOf $ref $defs definitions title description "
    "$schema $id".split()
)
_BOUNDS = frozenset(
    "pattern format multipleOf minimum maximum exclusiveMinimum exclusiveMaximum minItems maxItems".split()
)
_FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid".split())
_LOOKS_AROUND = re.compile(r"\(\?(?!:)|\\[1-9]")
"""What no automaton can follow: lookarounds and references back."""
_MOST_PROPERTIES, _MOST_LEVELS, _MOST_CHARACTERS, _MOST_ENUM = 5000, 10, 120_000, 1000
_LONG_ENUM, _LONG_ENUM_CHARACTERS = 250, 15_000
_MOST_PROPERTIES_ON_AZURE, _MOST_LEVELS_ON_AZURE = 100, 5


@dataclass(frozen=True, slots=True)
class StrictRules:
    """What a deployment's vendor takes in a strict schema."""

    keywords: frozenset[str] = _PLAIN | _BOUNDS
    properties: int = _MOST_PROPERTIES
    levels: int = _MOST_LEVELS

    def allow(self, schema: Mapping[str, Any]) -> bool:
        """Whether the schema may be sent with ``strict: true``."""
        if schema.get("type") != "object" or "anyOf" in schema:
            return False
        try:
            found = [*_parts(schema, 0)]
        except (RecursionError, TypeError, AttributeError):
            return False
        return all(level <= self.levels and self._allow_part(part) for part, level in found) and self._fits(found)

    def _allow_part(self, part: Mapping[str, Any]) -> bool:
        if part.keys() - self.keywords or part.get("format", "date") not in _FORMATS:
            return False
        if not part.keys() & {"type", "anyOf", "$ref", "enum", "const"}:
            return False
        if ("$ref" in part and len(part) > 1) or _LOOKS_AROUND.search(str(part.get("pattern", ""))):
            return False
        types = part.get("type")
        if "array" in _listed(types) and "items" not in part:
            return False
        if "object" not in _listed(types) and "properties" not in part:
            return True
        names = {*part.get("properties", {})}
        return part.get("additionalProperties") is False and {*part.get("required", ())} == names

    def _fits(self, found: Sequence[tuple[Mapping[str, Any], int]]) -> bool:
        names = [name for part, _ in found for name in part.get("properties", {})]
        defined = [name for part, _ in found for key in ("$defs", "definitions") for name in part.get(key, {})]
        enums = [part["enum"] for part, _ in found if "enum" in part]
        values = [value for enum in enums for value in enum] + [part["const"] for part, _ in found if "const" in part]
        characters = sum(map(len, (*names, *defined, *(value for value in values if isinstance(value, str)))))
        return (
            len(names) <= self.properties
            and sum(map(len, enums)) <= _MOST_ENUM
            and characters <= _MOST_CHARACTERS
            and all(len(enum) <= _LONG_ENUM or _characters(enum) <= _LONG_ENUM_CHARACTERS for enum in enums)
        )


def strict_rules(deployment: Deployment) -> StrictRules | None:
    """The rules of a deployment's vendor; ``None`` where ``strict`` is not sent."""
    if deployment.provider not in _TAKES_STRICT:
        return None
    if deployment.provider == "azure":
        return StrictRules(_PLAIN, _MOST_PROPERTIES_ON_AZURE, _MOST_LEVELS_ON_AZURE)
    if deployment.model.rpartition("/")[2].startswith("ft:"):
        return StrictRules(_PLAIN)
    return StrictRules()


class Structure:
    """What a deployment is sent of a job's output schema and tools; tools are passed on as their author wrote them."""

    def __init__(self, rules: StrictRules | None) -> None:
        self._rules = rules
        self._judged: tuple[Any, bool] = (None, False)
        """The output schema of the job, and whether it may be strict."""

    def of(self, request: ModelRequest, dialect: Dialect) -> dict[str, Any]:
        """``response_format``, ``tools`` and ``tool_choice`` of a request."""
        fields: dict[str, Any] = {}
        if (schema := request.output_schema) is not None:
            fields["response_format"] = schema_format(schema, strict=self._sent(schema, dialect) == STRICT)
        if request.tools:
            fields["tools"] = request.tools
        if request.tool_choice is not None:
            fields["tool_choice"] = request.tool_choice
        return fields

    def flags(self, request: ModelRequest, dialect: Dialect) -> Sequence[str]:
        """Whether the request was sent with ``STRICT``, or with ``NOT_STRICT`` although its schema might be strict."""
        word = None if request.output_schema is None else self._sent(request.output_schema, dialect)
        return (word,) if word else ()

    def _sent(self, schema: Mapping[str, Any], dialect: Dialect) -> str | None:
        if self._judged[0] is not schema:
            self._judged = (schema, (self._rules or StrictRules()).allow(schema))
        if not self._judged[1]:
            return None
        if NOT_STRICT in dialect.refused:
            return STRICT
        return STRICT if self._rules and STRICT not in dialect.refused else NOT_STRICT


def schema_format(schema: Mapping[str, Any], *, strict: bool = False) -> Mapping[str, Any]:
    """``response_format`` for an answer by a JSON schema."""
    named = {"name": "answer", "schema": schema}
    return {"type": "json_schema", "json_schema": {**named, "strict": True} if strict else named}


def _parts(schema: Mapping[str, Any], level: int) -> Iterator[tuple[Mapping[str, Any], int]]:
    """The schema and all schemas in it, each with the number of objects around it."""
    yield schema, level
    inside = level + ("properties" in schema)
    for key in ("properties", "$defs", "definitions"):
        for part in schema.get(key, {}).values():
            yield from _parts(part, inside if key == "properties" else 0)
    for part in schema.get("anyOf", ()):
        yield from _parts(part, level)
    if "items" in schema:
        yield from _parts(schema["items"], level)


def _listed(types: Any) -> Sequence[Any]:
    return types if isinstance(types, list | tuple) else (types,)


def _characters(values: Sequence[Any]) -> int:
    return sum(len(value) for value in values if isinstance(value, str))
