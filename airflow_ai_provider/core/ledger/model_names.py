"""When a model of the ledger and a model of an invoice are the same one.

A name is compared in lower case, without the provider before the last slash, with dashes for blanks and dots
(``Claude Haiku 4.5`` is ``claude-haiku-4-5``). Equal names are the same model. Else a name with the date of a snapshot
(``gpt-4o-mini-2024-07-18``, ``claude-haiku-4-5-20251001``, ``…-latest``) is the model of that name without a date,
where exactly one of the two names has one: two dated names are two models.

``same_model`` compares what was asked for with what an answer names, which is less exact: there, versions count little.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_SNAPSHOT = re.compile(r"[-@](20\d\d-?\d\d-?\d\d|(?:0\d|1[0-2])[0-3]\d|latest)$")


class ModelNames:
    """Labels under which the models of a ledger and of an invoice are compared."""

    def __init__(self, ledger_models: Iterable[str]) -> None:
        self._labels = {_plain(model) for model in ledger_models}
        self._undated: dict[str, set[str]] = {}
        for label in self._labels:
            self._undated.setdefault(_without_date(label), set()).add(label)

    def of_ledger(self, model: str) -> str:
        return _plain(model)

    def of_invoice(self, model: str) -> str:
        """The label of the ledger's model that it is, else one of its own."""
        name = _plain(model)
        if name in self._labels:
            return name
        base = _without_date(name)
        if base in self._labels:
            return base
        dated = self._undated.get(base, set())
        return next(iter(dated)) if name == base and len(dated) == 1 else name

    def knows(self, model: str) -> bool:
        """Whether an invoice's model is one of the ledger's."""
        return self.of_invoice(model) in self._labels


@lru_cache(maxsize=1024)
def same_model(asked: str, served: str) -> bool:
    """Whether a model that an answer names is the one asked for, or a snapshot, a variant or a spelling of it."""
    return _family(asked) == _family(served)


_VERSION = re.compile(
    r"[-@:](20\d\d-?\d\d-?\d\d|\d\d-\d\d|\d{3,4}|\d{6,8}|latest|preview|exp|experimental|beta|stable|v\d+(:\d+)?)$"
)
_VARIANT = re.compile(r":[a-z0-9._-]+$")
"""Behind a colon: tags of Ollama, ways of OpenRouter (``:free``, ``:nitro``)."""
_MAKER = re.compile(r"^(?:[a-z]{2,6}\.)?(?:anthropic|amazon|meta|mistral|cohere|deepseek|google|openai|qwen|ai21)\.")
"""Region and maker before the name in Bedrock's ids."""


def _family(model: str) -> str:
    name = _MAKER.sub("", model.strip().lower().rpartition("/")[2])
    if not name.startswith("ft:"):
        name = _VARIANT.sub("", re.sub(r"-v\d+:\d+$", "", name))
    name = _plain(name).replace("gpt-3-5", "gpt-35")  # Azure's spelling
    while (shorter := _VERSION.sub("", name)) != name:
        name = shorter
    return name


def _plain(model: str) -> str:
    name = re.sub(r"[\s.]+", "-", model.strip().lower().rpartition("/")[2])
    if name.startswith("claude-"):  # the Console says "Claude Sonnet 3.7" for claude-3-7-sonnet
        family, _, rest = name.partition("-")
        date = _SNAPSHOT.search(rest)
        parts = (rest[: date.start()] if date else rest).split("-")
        words = [part for part in parts if not part.isdigit()] + [part for part in parts if part.isdigit()]
        return "-".join([family, *words]) + (date.group() if date else "")
    return name


def _without_date(label: str) -> str:
    return _SNAPSHOT.sub("", label)
