"""Every event that the package's code writes, wherever it does, fits the schema: before the path is ever run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import airflow_ai_provider
from airflow_ai_provider.core.audit.trail import schema

PACKAGE = Path(airflow_ai_provider.__path__[0])
CALLS = {"emit", "record", "_record"}
APART = {"outcome"}
"""Arguments of ``record`` that are no fields."""


def emitted() -> Iterator[tuple[str, str, set[str], bool]]:
    """Place, action, names of the fields, and whether further ones are put in by ``**``."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if name in CALLS and texts and "." in texts[0]:
                names = {keyword.arg for keyword in node.keywords if keyword.arg} - APART
                more = any(keyword.arg is None for keyword in node.keywords) or name == "_record"
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", texts[0], names, more


FOUND = list(emitted())


def test_the_search_finds_what_is_there() -> None:
    actions = {action for _, action, _, _ in FOUND}
    assert actions >= {"llm.call", "budget.changed", "plan.approved", "ledger.dropped", "keys.rotated", "task.outcome"}


@pytest.mark.parametrize(("place", "action", "names", "more"), FOUND, ids=[place for place, *_ in FOUND])
def test_the_event_is_in_the_schema(place: str, action: str, names: set[str], more: bool) -> None:
    assert action in schema.ACTIONS
    _, required, optional = schema.ACTIONS[action]
    assert names <= {*required.split(), *optional.split(), *schema.WHO.split()}
    missing = set(required.split()) - names - set(schema.WHO.split())
    assert more or not missing
