"""Preparing a row (render, mask, guard, route) and checking its answer, beside a bare Jinja render and jsonschema.

    python benchmarks/bench_prepare.py

Rows of 150 characters with a customer's name in a column, a system prompt of one sentence, the ``standard`` kinds.
Times are CPU microseconds a row of one core; each is the fastest of some rounds in which both sides take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jsonschema
import orjson
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from airflow_ai_provider.core.checks.answer_checks import AnswerChecks
from airflow_ai_provider.core.pipeline.prepare import Preparer, profile_masker
from airflow_ai_provider.core.policy import MaskingProfile, Route
from airflow_ai_provider.core.privacy.crypto.keyring import Keyring
from airflow_ai_provider.core.prompts.templates import Renderer
from airflow_ai_provider.core.routing.router import Router, terms_of

SYSTEM = "You are a helpful support agent of a bank. Answer briefly, in the customer's language, from the context only."
ROWS = 2_000
ROUNDS = 9
PLAIN = (
    "Hello, my card was declined in the shop on the corner and I would like to know what to do next, case {n} please "
    "answer soon thank you very much indeed"
)
VALUES = (
    "Hello, my card was declined in the shop on the corner, please write to ada.l{n}@example.com or call "
    "+44 7911 123{m} before the weekend is over, thank you"
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["complaint", "question", "praise"]},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
                "required": ["name", "count"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["kind", "confidence", "items"],
    "additionalProperties": False,
}
ANSWER = '{"kind": "question", "confidence": 0.7, "items": [{"name": "card", "count": 1}, {"name": "fee", "count": 2}]}'

Row = dict[str, Any]


def main() -> None:
    print(f"{'':44}{'ours':>8}{'peer':>8}{'ratio':>8}")
    for label, text, route in (
        ("prepare: nothing personal, ÷ Jinja", PLAIN, _route()),
        ("prepare: two values, ÷ Jinja", VALUES, _route()),
        ("prepare: two values, no reuse, ÷ Jinja", VALUES, _route(reuse={"scope": "off"})),
        ("prepare: masking off, ÷ Jinja", PLAIN, _route(masking="off")),
    ):
        _line(label, *_side_by_side(_prepare(route), _jinja(), _rows(text)))
    validator = jsonschema.Draft202012Validator(SCHEMA)
    checks = AnswerChecks(["schema", "empty"], SCHEMA)
    answers: list[Any] = [ANSWER] * ROWS
    ours, peer = _side_by_side(
        lambda answer: checks.problem(answer, ""),
        lambda answer: list(validator.iter_errors(orjson.loads(answer))),
        answers,
    )
    _line("check an answer's schema, ÷ jsonschema", ours, peer)


def _route(**changes: Any) -> Route:
    complexity = {"from": "column", "column": "difficulty"}
    return Route.model_validate(
        {"tiers": {"simple": ["small"]}, "masking": "standard", "complexity": complexity, **changes}
    )


def _rows(text: str) -> list[Row]:
    return [
        {
            "id": str(n),
            "text": text.format(n=n, m=f"{n % 900 + 100:03d}"),
            "customer_name": f"Ada{n} Lovelace",
            "difficulty": "simple",
        }
        for n in range(ROWS)
    ]


def _prepare(route: Route) -> Callable[[Row], Any]:
    profile = MaskingProfile(detect=("standard",), columns={"customer_name": "PERSON"})
    masker = profile_masker(profile, Keyring("k", {"k": b"k" * 32}), team="support", scope="s")
    terms = {tier: terms_of(route, tier, system_prompt=SYSTEM) for tier in route.tiers}
    masker = masker if route.masking != "off" else None
    router = Router("support", route, {})
    preparer = Preparer(Renderer("{{ text }}", SYSTEM), route, masker, router, terms, json=False)
    return lambda row: preparer.prepare(row, row["id"])


def _jinja() -> Callable[[Row], Any]:
    template = ImmutableSandboxedEnvironment(undefined=StrictUndefined).from_string("{{ text }}")
    return lambda row: template.render(row)


def _side_by_side(ours: Callable[[Any], Any], peer: Callable[[Any], Any], items: Sequence[Any]) -> tuple[float, float]:
    """Seconds per item of both."""
    rounds = [(_timed(ours, items), _timed(peer, items)) for _ in range(ROUNDS)]
    return min(mine for mine, _ in rounds) / len(items), min(theirs for _, theirs in rounds) / len(items)


def _timed(act: Callable[[Any], Any], items: Sequence[Any]) -> float:
    started = time.process_time()
    for item in items:
        act(item)
    return time.process_time() - started


def _line(label: str, ours: float, peer: float) -> None:
    print(f"{label:44}{ours * 1e6:>8.1f}{peer * 1e6:>8.1f}{ours / peer:>8.2f}")


if __name__ == "__main__":
    main()
