"""Prompts from rows: a sandboxed Jinja template, or a function.

A row's text is data. The template is compiled once from its own source; what a row holds is put in as a value and
is never looked at as a template again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import concat

from airflow_ai_provider.errors import PromptError
from airflow_ai_provider.gateway.job import Message, Row, RowPrompt

_FILE = "file:"
_ROLES = ("system", "user", "assistant")


class _NullPutIn(Exception):
    """A null was to be written into a prompt, where it would read as the word None."""


def _not_null(value: Any) -> Any:
    if value is None:
        raise _NullPutIn
    return value


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes for HTML and beyond ASCII, which would hide names from masking."""
    return json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=True)


class RowTemplate:
    """A Jinja template over a row's columns."""

    def __init__(self, source: str, name: str = "prompt") -> None:
        """``source`` is the template, or ``file:PATH`` of one. Raises ``PromptError`` with file and line."""
        if source.startswith(_FILE):
            name = source.removeprefix(_FILE)
            source = _read(Path(name))
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, finalize=_not_null)
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
            self.columns = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        except TemplateSyntaxError as error:
            raise PromptError(f"{name}:{error.lineno}: {error.message}") from None
        self._globals = dict(environment.globals)
        if not source.strip():
            raise PromptError(f"{name}: the template is empty")
        self.name = name
        self.version = hashlib.sha256(source.encode()).hexdigest()[:16]

    def check_columns(self, available: Iterable[str]) -> None:
        """Raise ``PromptError`` if the template names a column the rows do not have."""
        known = set(available)
        if missing := sorted(self.columns - known):
            raise PromptError(
                f"{self.name}: no column {', '.join(missing)} in the rows; they have: {', '.join(sorted(known))}"
            )

    def render(self, row: Row) -> str:
        """The text for one row. Raises ``PromptError`` that names the fault, never the row's text."""
        try:
            context = self._template.new_context({**self._globals, **row}, shared=True)
            return concat(self._template.root_render_func(context))
        except _NullPutIn:
            names = ", ".join(sorted(name for name in self.columns if row.get(name) is None)) or "a value"
            raise PromptError(
                f"{self.name}: {names} is null in this row; say what stands in its place: {{{{ column or '' }}}}"
            ) from None
        except UndefinedError:  # its own message may hold the row's value
            missing = sorted(self.columns - row.keys())
            what = f"'{missing[0]}' is undefined" if missing else "something it looks up is not there"
            raise PromptError(f"{self.name}: {what} for this row") from None
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise PromptError(f"{self.name}: {error.__class__.__name__} while the row was put in") from None


class Renderer:
    """Messages from rows: an optional system prompt, then what the prompt makes of the row."""

    def __init__(self, prompt: str | RowPrompt, system_prompt: str | None = None) -> None:
        self._template = RowTemplate(prompt) if isinstance(prompt, str) else None
        self._function = None if isinstance(prompt, str) else prompt
        self.system = read_system(system_prompt)
        digest = hashlib.sha256((self.system or "").encode()).hexdigest()[:16]
        self.version = f"{self._template.version if self._template else 'function'}-{digest}"

    @property
    def columns(self) -> frozenset[str]:
        """Columns the rows must have; a function's are not known beforehand."""
        return self._template.columns if self._template else frozenset()

    def check_columns(self, available: Iterable[str]) -> None:
        if self._template:
            self._template.check_columns(available)

    def messages(self, row: Row) -> list[dict[str, Any]]:
        """Chat messages for one row. Raises ``PromptError``."""
        body = self.body(row)
        return [{"role": "system", "content": self.system}, *body] if self.system else body

    def body(self, row: Row) -> list[dict[str, Any]]:
        """What the prompt itself makes of a row, without the system prompt. Raises ``PromptError``."""
        if self._template:
            return [{"role": "user", "content": self._template.render(row)}]
        assert self._function is not None
        try:
            made = self._function(row)
        except Exception as error:  # noqa: BLE001 - the function is the user's; its message may hold the row
            raise PromptError(f"the prompt function raised {error.__class__.__name__} for this row") from None
        return _checked(made)


def _checked(made: str | Sequence[Message]) -> list[dict[str, Any]]:
    if isinstance(made, str):
        return [{"role": "user", "content": made}]
    if isinstance(made, Sequence) and made and all(_is_message(m) for m in made):
        return [{**m} for m in made if isinstance(m, Mapping)]
    raise PromptError(
        "the prompt function must return text, or messages such as "
        f'[{{"role": "user", "content": "…"}}] with roles {", ".join(_ROLES)}; it returned {type(made).__name__}'
    )


def _is_message(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"role", "content"}
        and value["role"] in _ROLES
        and isinstance(value["content"], str)
    )


def read_system(system_prompt: str | None) -> str | None:
    if system_prompt and system_prompt.startswith(_FILE):
        return _read(Path(system_prompt.removeprefix(_FILE)))
    return system_prompt


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PromptError(f"{path}: no such prompt file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: cannot be read ({error.__class__.__name__}); expected UTF-8 text") from None
