"""Which parameters one deployment takes, and what is learned of that from its refusals.

A server that refuses a parameter is asked again without it, or with the limit of the answer under its other name. Pure:
an adapter keeps the current ``Dialect`` and replaces it by the one that ``adapted`` returns. A dialect only ever loses
parameters, so that no request can be adapted for ever.

Only parameters whose loss costs nothing and breaks no promise are dropped. The limit of the answer, the output schema,
tools and whatever keeps data or money back (``store``, ``service_tier``, ``enable_search``, …) never are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from airflow_ai_provider.errors import ParameterRefused
from airflow_ai_provider.policy import Deployment

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
