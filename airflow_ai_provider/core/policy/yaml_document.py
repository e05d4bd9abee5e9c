"""YAML documents: read safely, validated whole, every finding with its file and line.

YAML is read by a safe loader with YAML 1.2 booleans (``off`` stays a word), and a key given twice is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from airflow_ai_provider.core.errors import PolicyError


def read_document(path: Path, absent: str) -> str:
    """The text of a YAML file. Raises ``PolicyError``, with ``absent`` where there is no file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PolicyError(f"{path}: {absent}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: cannot be read ({error.__class__.__name__}); expected UTF-8 YAML") from None


_Document = TypeVar("_Document", bound=BaseModel)
Inconsistencies = Iterator[tuple[tuple[str | int, ...], str]]


def parse_document(
    text: str,
    name: str,
    model: type[_Document],
    keys: str,
    inconsistencies: Callable[[_Document], Inconsistencies] = lambda _: iter(()),
) -> _Document:
    """Validate YAML (or JSON, which is YAML) as ``model``; ``keys`` says what the file should hold.

    Raises ``PolicyError`` that lists every finding as ``name:line: place: problem``.
    """
    root, data = _read(text, name, keys)
    try:
        document = model.model_validate(data)
    except ValidationError as error:
        findings = [(_line(root, item["loc"]), place_of(item["loc"]), explained(item)) for item in error.errors()]
    else:
        findings = [(_line(root, loc), place_of(loc), problem) for loc, problem in inconsistencies(document)]
        if not findings:
            return document
    lines = [f"{name}:{line}: {place}: {problem}" for line, place, problem in sorted(findings)]
    raise PolicyError("\n".join(lines))


def _read(text: str, name: str, keys: str) -> tuple[yaml.Node, dict[Any, Any]]:
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            data = loader.construct_document(root) if root is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PolicyError(f"{name}:{line}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise PolicyError(f"{name}: not YAML: {str(error).splitlines()[0]}") from None
    except (
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:  # a date, number or anchor that YAML's types refuse
        raise PolicyError(f"{name}: a value cannot be read ({type(error).__name__}); put text in quotes") from None
    if root is None or not isinstance(data, dict):
        raise PolicyError(f"{name}:1: expected a mapping with {keys}")
    return root, data


class _Loader(yaml.SafeLoader):
    """Safe YAML with YAML 1.2 booleans and without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _line(node: yaml.Node, loc: tuple[str | int, ...]) -> int:
    """Line of the innermost place along ``loc`` that stands in the file; the key's line for a mapping entry."""
    line = node.start_mark.line + 1
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            match = next(((k, v) for k, v in node.value if k.value == str(step)), None)
            if match is None:
                continue
            line, node = match[0].start_mark.line + 1, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
    return line


def place_of(loc: tuple[str | int, ...]) -> str:
    return ".".join(str(step) for step in loc) or "policy"


def explained(item: Mapping[str, Any]) -> str:
    """A finding of pydantic in our words, without the value (it might be a secret in the wrong place)."""
    match item["type"]:
        case "extra_forbidden":
            return "unknown key"
        case "missing":
            return "required, and not there"
        case "value_error":
            return str(item["ctx"]["error"])
        case _:
            return str(item["msg"]).removeprefix("Input should be ").join(("expected ", ""))
