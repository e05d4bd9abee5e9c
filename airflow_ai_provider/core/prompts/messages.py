"""Messages and tools of a request: their shape, as DAG authors write them.

The shape of messages, as a DAG's author writes them or a prompt function returns them.

    {"role": "user", "content": "text"}
    {"role": "user", "content": [{"type": "text", "text": "text"},
                                 {"type": "image", "uri": "s3://bucket/scan.png"},
                                 {"type": "file", "uri": "/data/letters/7.pdf"}]}

Roles are ``system``, ``user`` and ``assistant``; an image or a file stands in a message of the user. What is wrong is
named by place and never by content, which may be a row's.

Tools: functions that a model may ask for, as OpenAI's chat API defines them, and the calls that it answers with.

Definitions are passed through as they are. Only ``function`` is taken: a tool that the vendor itself runs, such as a
web search, would cost what no hold covers. Nothing is ever called here; the calls are the row's answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

ROLES = ("system", "user", "assistant")
ATTACHED = ("image", "file")
"""Types of parts that are named by a URI."""
EXAMPLE = '[{"role": "user", "content": "…"}]'


def shape_problem(messages: object) -> str | None:
    """What is wrong with messages; ``None`` if nothing is."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        return f"expected messages such as {EXAMPLE}"
    for number, message in enumerate(messages):
        if problem := _message_problem(message):
            return f"message {number}: {problem}"
    return None


def _message_problem(message: object) -> str | None:
    if not isinstance(message, Mapping) or message.keys() != {"role", "content"}:
        return "expected role and content, and nothing else"
    role, content = message["role"], message["content"]
    if role not in ROLES:
        return f"role: expected one of {', '.join(ROLES)}"
    if isinstance(content, str):
        return None
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        return "content: expected text, or a list of parts"
    problems = (_part_problem(part, role) for part in content)
    return next((f"part {number}: {problem}" for number, problem in enumerate(problems) if problem), None)


def _part_problem(part: object, role: str) -> str | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", *ATTACHED):
        return f"type: expected one of text, {', '.join(ATTACHED)}"
    assert isinstance(part, Mapping)
    field = "text" if kind == "text" else "uri"
    if part.keys() != {"type", field} or not isinstance(part[field], str):
        return f"expected type and {field}, both text"
    if kind != "text" and role != "user":
        return f"type {kind}: only a message of the user can hold one"
    return None


_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CHOICES = ("auto", "none", "required")
_OVERHEAD = 1024
"""Tokens a vendor may add for tools; Anthropic documents up to 530 (its page on tool use)."""


def check_tools(tools: object, tool_choice: object) -> None:
    """Raises ``ValueError`` that names what is wrong with the shape of tools, or of the choice among them."""
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise ValueError("tools: expected a list of function definitions")
    names: set[str] = set()
    for number, tool in enumerate(tools):
        name = _checked(f"tools[{number}]", tool)
        if name in names:
            raise ValueError(f"tools[{number}]: a second function {name!r}")
        names.add(name)
    _check_choice(tool_choice, names)


def forced(tool_choice: object) -> bool:
    """Whether an answer must call a tool."""
    return tool_choice == "required" or isinstance(tool_choice, Mapping)


def tools_bytes(tools: Sequence[Mapping[str, Any]]) -> int:
    """What tools add to a prompt, in bytes: their JSON, and what a vendor may wrap them in."""
    return len(orjson.dumps(tools)) + _OVERHEAD if tools else 0


def answer_of(text: str, tool_calls: Sequence[Mapping[str, Any]]) -> str:
    """What the output holds for a reply: its text or, where it calls tools, JSON.

    ``{"tool_calls": [{"name": …, "arguments": {…}}], "text": …}``, with ``text`` only where the model wrote some.
    Arguments stand as the vendor sent them, digit for digit; those that are no JSON as a string.
    """
    if not tool_calls:
        return text
    made: dict[str, Any] = {"tool_calls": [_call(call) for call in tool_calls]}
    return orjson.dumps({**made, "text": text} if text else made).decode()


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    said = function if isinstance(function, Mapping) else {}
    return {"name": str(said.get("name", "")), "arguments": _arguments(said.get("arguments"))}


def _arguments(arguments: object) -> Any:
    if not isinstance(arguments, str):
        return arguments
    if not arguments.strip():
        return {}  # how some vendors write a call without arguments
    try:
        orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments
    return orjson.Fragment(arguments)


def _checked(place: str, tool: object) -> str:
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or tool.keys() != {"type", "function"}:
        raise ValueError(
            f'{place}: expected {{"type": "function", "function": {{"name": …, "parameters": …}}}}; '
            "tools that a vendor runs itself are not passed on: no hold would cover what they cost"
        )
    function = tool["function"]
    if not isinstance(function, Mapping):
        raise ValueError(f"{place}.function: expected a mapping with name, description and parameters")
    if unknown := sorted(function.keys() - {"name", "description", "parameters", "strict"}):
        raise ValueError(f"{place}.function: unknown key {unknown[0]!r}")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{place}.function.name: expected up to 64 letters, digits, underscores and dashes")
    if not isinstance(function.get("parameters", {}), Mapping):
        raise ValueError(f"{place}.function.parameters: expected a JSON schema as a mapping")
    if not isinstance(function.get("description", ""), str) or not isinstance(function.get("strict", False), bool):
        raise ValueError(f"{place}.function: expected description as text, and strict as true or false")
    _check_json(place, tool)
    return name


def _check_json(place: str, value: object) -> None:
    try:
        orjson.dumps(value)
    except (orjson.JSONEncodeError, RecursionError):
        raise ValueError(f"{place}: holds something that JSON cannot") from None


def _check_choice(choice: object, names: set[str]) -> None:
    if choice is None:
        return
    if not names:
        raise ValueError("tool_choice: there are no tools to choose from")
    if isinstance(choice, str) and choice in _CHOICES:
        return
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    wanted = function.get("name") if isinstance(function, Mapping) and function.keys() == {"name"} else None
    if wanted is None:
        raise ValueError(
            f'tool_choice: expected one of {", ".join(_CHOICES)}, or {{"type": "function", "function": {{"name": …}}}}'
        )
    if wanted not in names:
        raise ValueError(f"tool_choice: no function {wanted!r} among the tools")
