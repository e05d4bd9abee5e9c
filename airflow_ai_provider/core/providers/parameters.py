"""Parameters, output schemas and tools as one deployment takes them.

Which parameters one deployment takes, and what is learned of that from its refusals.

A server that refuses a parameter is asked again without it, or with the limit of the answer under its other name. Pure:
an adapter keeps the current ``Dialect`` and replaces it by the one that ``adapted`` returns. A dialect only ever loses
parameters, so that no request can be adapted for ever.

Only parameters whose loss costs nothing and breaks no promise are dropped. The limit of the answer, the output schema,
tools and whatever keeps data or money back (``store``, ``service_tier``, ``enable_search``, …) never are.

Output schemas and tools as they are sent, with ``strict: true`` where vendor and schema allow it.

The rules are OpenAI's, from its guide on structured outputs ("Supported schemas"); Azure and fine-tuned models support
fewer keywords. A schema is sent as it is or not strictly, and is never changed: answers are checked against it here in
either case.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from airflow_ai_provider.core.errors import ParameterRefused
from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.providers.base import ModelRequest

log = logging.getLogger(__name__)

_OTHER_LIMIT = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
STRICT = "strict"
"""Stands for the flag of an output schema; the schema itself is never dropped."""
NOT_STRICT = "not strict"
"""Stands for a schema that was sent without the flag, where it could have had it."""
_DROPPABLE = frozenset(
    "temperature top_p top_k top_a min_p presence_penalty frequency_penalty repetition_penalty length_penalty stop "
    "seed random_seed logit_bias logprobs top_logprobs parallel_tool_calls user safety_identifier prompt_cache_key "
    "prompt_cache_retention metadata".split()
)
_STATUSES = frozenset({400, 422})
ADAPTABLE = frozenset({"bad_request", "unprocessable", "unsupported_params"})
"""Kinds of errors that may be about a parameter."""
_REASONS = re.compile(r"(?:ft:)?(?:o\d|gpt-[5-9])(?:[.:-].*)?")
"""Names of OpenAI's reasoning models, fine-tuned ones too: they take ``max_completion_tokens`` only."""
_OPENAIS_NAMES = frozenset({"openai", "azure", "litellm_proxy"})
"""Providers that know ``max_completion_tokens`` for certain: a server that ignored it would not limit the answer."""
_MOST_READ = 8192
"""Characters of an error that are looked at."""
_NEAR = 120
"""Characters between a parameter's name and the words that refuse it."""
_REFUSAL = re.compile(
    r"unsupported (?:param|value|arg|field|key)|\bdo(?:es)?(?: not|n't) support|n[o']t supported|is unsupported"
    r"|not allowed|(?:unknown|unrecogni[sz]ed|unexpected|extraneous|extra|invalid) (?:request )?"
    r"(?:param|arg|name|key|field|propert)"
    r"|not permitted|extra_forbidden|not compatible|deprecated for this model|cannot both be|fixed at"
)
_VALUE_REFUSAL = re.compile(
    r"only \S+ is (?:allowed|supported)|(?:may|can) only be set to|must be unset|or unset|only allowed when"
)
"""Says that a parameter is taken with one value alone, or beside another one. A limit is not refused by this."""
_LISTED = re.compile(
    r"(?<!not )\b(?:supported|valid|allowed|permitted|known) (?:param|arg|field|key)|expected one of|did you mean"
)
"""From here on an error lists what it would take."""
_NOT_BOTH = re.compile(r"cannot both be|only one of")
_CODE = re.compile(r'"code": ?"(?:unsupported|unknown|unrecognized)_(?:parameter|value|argument)"')
_PARAM = re.compile(r'"param": ?"([a-z_.]+)')
_WORDS = {
    STRICT: re.compile(r"invalid schema for response_format|\bstrict\b"),
    NOT_STRICT: re.compile(r"\bstrict\b.{0,40}\b(?:required|must|true)\b|\b(?:requires?|must).{0,40}\bstrict\b"),
}
"""What a refusal of a strict schema says, and the demand for one."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one deployment wants to be asked."""

    limit_name: str = "max_tokens"
    """What the limit of an answer is called there."""
    refused: frozenset[str] = frozenset()
    """Parameters that it does not take; ``strict`` among them where it refuses strict schemas."""

    def kept(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """``params`` without the refused ones."""
        if not self.refused:
            return params
        return {name: value for name, value in params.items() if name not in self.refused}

    def adapted(self, status: int | None, error: bytes | str, sent: Iterable[str]) -> Dialect | None:
        """The dialect in which the request may be sent again; ``None`` where the refusal is about something else.

        ``error`` is the body of the refusal, ``sent`` the names of what was sent; ``status`` of ``None`` is a refusal
        by a library before anything was sent.
        """
        if status is not None and status not in _STATUSES:
            return None
        text = _plain(error)
        names = [*{*sent} & (_DROPPABLE | {STRICT, NOT_STRICT}), self.limit_name]
        refused = _named(text, names) - self.refused
        if not refused:
            return None
        if self.limit_name not in refused:
            return replace(self, refused=self.refused | refused)
        other = _OTHER_LIMIT[self.limit_name]
        if other in self.refused:  # it takes neither: there must be a limit
            return None
        return Dialect(other, self.refused | refused)


class Adapting:
    """The dialect of one deployment during one job."""

    def __init__(self, name: str, dialect: Dialect) -> None:
        self._name = name
        self.dialect = dialect

    def learn(
        self, used: Dialect, status: int | None, error: bytes | str, sent: Iterable[str]
    ) -> ParameterRefused | None:
        """Take in the refusal of a request that was sent in the dialect ``used``, and say once in the log what is new.

        Returns the error for that request, which may be sent again; ``None`` where the refusal is about something else.
        """
        adapted = used.adapted(status, error, sent)
        if adapted is None:
            return None
        for parameter in sorted(adapted.refused - self.dialect.refused):
            self._say(parameter, adapted)
        limit_name = self.dialect.limit_name if adapted.limit_name == used.limit_name else adapted.limit_name
        self.dialect = Dialect(limit_name, self.dialect.refused | adapted.refused)
        parameters = ", ".join(sorted(adapted.refused - used.refused))
        message = f"{self._name}: does not take {parameters}"
        return ParameterRefused(message, kind="unsupported_params", http_status=status)

    def _say(self, parameter: str, adapted: Dialect) -> None:
        if parameter in _OTHER_LIMIT:
            log.info("%s does not take %s; %s is sent instead", self._name, parameter, adapted.limit_name)
        elif parameter in _WORDS:
            word = "not sent as strict" if parameter == STRICT else "sent as strict"
            log.warning("%s does not take the output schema so: it is %s in this job", self._name, word)
        else:
            log.warning(
                "%s does not take %s; it is not sent any more in this job, and answers are made without it: take it "
                "out of params",
                self._name,
                parameter,
            )


def dialect_of(deployment: Deployment) -> Dialect:
    """How a deployment is asked first: by what its model's name tells, where the name can be trusted."""
    if deployment.provider not in _OPENAIS_NAMES:
        return Dialect()
    *series, name = deployment.model.split("/")[1:]
    reasons = _REASONS.fullmatch(name) or {*series} & {"o_series", "gpt5_series"}
    return Dialect("max_completion_tokens" if reasons else "max_tokens")


def _plain(error: bytes | str) -> str:
    text = error[: 4 * _MOST_READ].decode("utf-8", "replace") if isinstance(error, bytes) else error
    return _LISTED.split(text.replace("\\", "")[:_MOST_READ].lower(), maxsplit=1)[0]


def _named(text: str, names: Iterable[str]) -> frozenset[str]:
    """Which of ``names`` an error refuses, by its fields or else by its words."""
    if _CODE.search(text) and (param := _PARAM.search(text)):
        return frozenset({param[1].rpartition(".")[2]} & {*names})
    found = {name: place for name in names if (place := _place(text, name)) is not None}
    if not _NOT_BOTH.search(text):
        return frozenset(found)
    return frozenset({max(found, key=found.__getitem__)} if len(found) > 1 else ())


def _place(text: str, name: str) -> int | None:
    """Where the text refuses a parameter."""
    if words := _WORDS.get(name):
        return found.start() if (found := words.search(text)) else None
    refusals = (_REFUSAL,) if name in _OTHER_LIMIT else (_REFUSAL, _VALUE_REFUSAL)
    for match in re.finditer(rf"(?<![a-z_]){name}(?![a-z_])|(?<![a-z_]){name.replace('_', '')}(?![a-z_])", text):
        near = max(0, match.start() - _NEAR), match.end() + _NEAR
        if any(refusal.search(text, *near) for refusal in refusals):
            return match.start()
    return None


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
