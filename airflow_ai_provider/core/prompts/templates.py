"""Prompts from rows: sandboxed Jinja templates, or a function.

A row's text is data. A template is compiled once from its own source; what a row holds is put in as a value and
is never looked at as a template again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import concat

from airflow_ai_provider.core.errors import PromptError
from airflow_ai_provider.core.job import Message, Prompt, Row
from airflow_ai_provider.core.prompts.messages import ATTACHED, EXAMPLE, shape_problem

_FILE = "file:"
_ABSENT = object()
_JINJAS_OWN = frozenset({"self", "super", "loop", "caller", "varargs", "kwargs"})
"""Names that mean something in a template although no column has them."""


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

    def __init__(self, source: str, name: str = "prompt", *, may_be_file: bool = True) -> None:
        """``source`` is the template, or ``file:PATH`` of one. Raises ``PromptError`` with file and line."""
        if may_be_file and source.startswith(_FILE):
            name = source.removeprefix(_FILE)
            source = _read(Path(name))
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, finalize=_not_null)
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
            parsed = environment.parse(source)
        except TemplateSyntaxError as error:
            raise PromptError(f"{name}:{error.lineno}: {error.message}") from None
        self.columns = frozenset(meta.find_undeclared_variables(parsed))
        self._plain = _plain_pieces(parsed, environment)
        self._globals = dict(environment.globals)
        if not source.strip():
            raise PromptError(f"{name}: the template is empty")
        self.name = name
        self.version = hashlib.sha256(source.encode()).hexdigest()[:16]

    @property
    def constant(self) -> str | None:
        """The text, where it is the same for every row."""
        if self._plain is None or any(column is not None for _, column in self._plain):
            return None
        return "".join(text for text, _ in self._plain)

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
            if self._plain is not None:
                return _joined(self._plain, row)
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


def _plain_pieces(parsed: nodes.Template, environment: Environment) -> tuple[tuple[str, str | None], ...] | None:
    """(text, column after it) of a template of nothing but text and ``{{ column }}``; ``None`` for any other.

    Such a template is most of them, and joining is ten times as fast as Jinja's context.
    """
    pieces: list[tuple[str, str | None]] = []
    text = ""
    for output in parsed.body:
        if not isinstance(output, nodes.Output):
            return None
        for node in output.nodes:
            if isinstance(node, nodes.TemplateData):
                text += node.data
            elif isinstance(node, nodes.Name) and node.name not in {*environment.globals, *_JINJAS_OWN}:
                pieces.append((text, node.name))
                text = ""
            else:
                return None
    return (*pieces, (text, None))


def _joined(pieces: Iterable[tuple[str, str | None]], row: Row) -> str:
    """As Jinja would: what is not there raises, so does a null, and what is no text is written by ``str``."""
    made: list[str] = []
    for text, column in pieces:
        made.append(text)
        if column is None:
            continue
        value = row.get(column, _ABSENT)
        if value is None:
            raise _NullPutIn
        if value is _ABSENT:
            raise UndefinedError
        made.append(value if type(value) is str else str(value))
    return "".join(made)


class Renderer:
    """Messages from rows: an optional system prompt, then what the prompt makes of the row."""

    def __init__(self, prompt: Prompt, system_prompt: str | None = None) -> None:
        """Raises ``PromptError`` for a template, a file or messages that cannot be used."""
        self.system = read_system(system_prompt)
        """What stands in the system message, if there is one."""
        self._head = [{"role": "system", "content": self.system}] if self.system else []
        self._templates: Sequence[_MessageTemplate] = ()
        self._make: Callable[[Row], list[dict[str, Any]]]
        if callable(prompt):
            self._make, version = _Function(prompt), "function"
        else:
            self._templates = _compiled(prompt)
            self._make = self._of_templates
            version = _version(prompt, self._templates)
        self.columns = frozenset().union(*(message.columns for message in self._templates))
        """Columns the rows must have; a function's are not known beforehand."""
        self.attached = frozenset().union(*(message.attached for message in self._templates))
        """Kinds of attachments that rows will have; a function's are not known beforehand."""
        self.constants = tuple(self._constants())
        """Texts that are the same in the messages of every row."""
        self.version = f"{version}-{hashlib.sha256((self.system or '').encode()).hexdigest()[:16]}"

    def check_columns(self, available: Iterable[str]) -> None:
        for template in (template for message in self._templates for template in message.templates):
            template.check_columns(available)

    def messages(self, row: Row) -> list[dict[str, Any]]:
        """Messages for one row, of the shape in ``messages.py``. Raises ``PromptError``."""
        return [*self._head, *self._make(row)]

    def _of_templates(self, row: Row) -> list[dict[str, Any]]:
        return [message.render(row) for message in self._templates]

    def _constants(self) -> Iterable[str]:
        if self.system:
            yield self.system
        for message in self._templates:
            for template in message.texts:
                if (text := template.constant) is not None:
                    yield text


class _Function:
    """A prompt function, and what it may return."""

    def __init__(self, function: Callable[[Row], Any]) -> None:
        self._function = function

    def __call__(self, row: Row) -> list[dict[str, Any]]:
        try:
            made = self._function(row)
        except Exception as error:  # noqa: BLE001 - the function is the user's; its message may hold the row
            raise PromptError(f"the prompt function raised {error.__class__.__name__} for this row") from None
        if isinstance(made, str):
            return [{"role": "user", "content": _exact(made)}]
        if problem := shape_problem(made):
            raise PromptError(
                f"the prompt function must return text, or messages such as {EXAMPLE}; "
                f"it returned {type(made).__name__}: {problem}"
            )
        return [_exact_message(message) for message in made]


def _exact_message(message: Message) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return {"role": message["role"], "content": _exact(content)}
    parts = [{name: _exact(text) for name, text in part.items()} for part in content]
    return {"role": message["role"], "content": parts}


def _exact(text: str) -> str:
    """The characters of a text whose type is derived from ``str``, such as ``numpy.str_`` or ``Markup``."""
    return text if type(text) is str else "".join((text,))


class _MessageTemplate:
    """One message of templates."""

    def __init__(self, place: str, message: Message) -> None:
        content = message["content"]
        self._role = message["role"]
        self._text = RowTemplate(content, place) if isinstance(content, str) else None
        self._parts = [] if self._text else [_part(f"{place}, part {n}", part) for n, part in enumerate(content)]

    @property
    def templates(self) -> list[RowTemplate]:
        return [self._text] if self._text else [template for _, template in self._parts]

    @property
    def texts(self) -> list[RowTemplate]:
        return [self._text] if self._text else [template for kind, template in self._parts if kind == "text"]

    @property
    def columns(self) -> frozenset[str]:
        return frozenset().union(*(template.columns for template in self.templates))

    @property
    def attached(self) -> frozenset[str]:
        return frozenset(kind for kind, _ in self._parts if kind in ATTACHED)

    def render(self, row: Row) -> dict[str, Any]:
        if self._text is not None:
            return {"role": self._role, "content": self._text.render(row)}
        parts = [{"type": kind, _field(kind): template.render(row)} for kind, template in self._parts]
        return {"role": self._role, "content": parts}


def _part(place: str, part: Mapping[str, str]) -> tuple[str, RowTemplate]:
    kind = part["type"]
    # A URI may begin with file: of its own.
    return kind, RowTemplate(part[_field(kind)], place, may_be_file=kind == "text")


def _field(kind: str) -> str:
    return "text" if kind == "text" else "uri"


def _kinds(content: str | Sequence[Mapping[str, str]]) -> list[str] | None:
    return None if isinstance(content, str) else [part["type"] for part in content]


def _compiled(prompt: str | Sequence[Message]) -> list[_MessageTemplate]:
    if isinstance(prompt, str):
        return [_MessageTemplate("prompt", {"role": "user", "content": prompt})]
    if problem := shape_problem(prompt):
        raise PromptError(f"prompt: {problem}")
    return [_MessageTemplate(f"prompt, message {number}", message) for number, message in enumerate(prompt)]


def _version(prompt: str | Sequence[Message], messages: Sequence[_MessageTemplate]) -> str:
    if isinstance(prompt, str):
        return messages[0].templates[0].version
    said = [(message["role"], _kinds(message["content"])) for message in prompt]
    versions = [template.version for message in messages for template in message.templates]
    return hashlib.sha256(json.dumps([said, versions]).encode()).hexdigest()[:16]


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
